"""Devices, logical axis rules and shardings: the only place that says what lies where.

Parameters are boxed with logical names where they are made (`fbjax.model.encoder`); the rules below map those to the
mesh axes ``data`` (examples), ``fsdp`` (parameters, and examples too) and ``tensor`` (heads, MLP, vocabulary).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fbjax.config.schema import Config, MeshConfig

AXES = ("data", "fsdp", "tensor")
TILE = 8  # rows of the blocks in which a TPU keeps a matrix
BATCH = "batch"  # of examples, not of parameters
RULES = (
    (BATCH, ("data", "fsdp")),
    ("vocabulary", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("feature", None),
    ("norm", None),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all of them, axes `AXES`, all Auto: under Explicit ones linen's constraints are
    assertions."""
    devices = jax.devices() if devices is None else devices
    sizes, num_devices = [config.data, config.fsdp, config.tensor], len(devices)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {sizes}: at most one axis may be -1, the others at least 1")
    if -1 in sizes:
        fixed = -int(np.prod(sizes))
        if num_devices % fixed:
            raise ValueError(f"mesh {sizes}: {fixed} does not divide the {num_devices} devices")
        sizes[sizes.index(-1)] = num_devices // fixed
    if int(np.prod(sizes)) != num_devices:
        raise ValueError(f"mesh {sizes} needs {int(np.prod(sizes))} devices, there are {num_devices}")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)


def shardings(mesh: Mesh, boxed):
    """A `NamedSharding` for each leaf of an abstract tree whose parameters are boxed with logical names.

    Nothing is replicated by oversight: raises ValueError on a matrix without names, on a name without a rule, on a rule
    that no name asks for, and on an axis that its devices do not divide.
    """
    problems, used = [], {BATCH}
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=_is_boxed):
        names, shape = (leaf.names, leaf.value.shape) if _is_boxed(leaf) else ((), leaf.shape)
        parameter = f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(shape)}"
        if len(shape) > 1 and not _is_boxed(leaf):
            problems.append(f"{parameter} names none of its axes: it would lie whole on every device")
        for name, size in zip(names, shape, strict=True) if names else ():
            problems += [f"{parameter}, axis {name!r}: {problem}" for problem in _problems(name, size, mesh)]
        used.update(names)
    problems += [f"the rule for {name!r} matches no parameter" for name, _ in RULES if name not in used]
    if problems:
        raise ValueError("parameters cannot be placed on the mesh:\n  " + "\n  ".join(problems))
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def _problems(name: str | None, size: int, mesh: Mesh) -> Iterator[str]:
    """What keeps an axis of `size` called `name` from being placed."""
    rules = dict(RULES)
    if name is not None and name not in rules:
        yield f"no rule for it (there are {', '.join(rules)})"
    elif name is not None and rules[name] and size % mesh.shape[rules[name]]:
        yield f"mesh.{rules[name]} {mesh.shape[rules[name]]} does not divide it"


def replicated_params(params):
    """`params` boxed to lie whole on every device, as is meant of a patch network that trains."""
    return jax.tree.map(lambda p: nn.LogicallyPartitioned(p, (None,) * p.ndim), params)


def shardings_of(tree):
    """Where each array or shape of `tree` lies."""
    return jax.tree.map(lambda x: x.sharding, tree)


def scatter_shards(mesh: Mesh, tree):
    """A `NamedSharding` for each placed array or shape of `tree`: as it lies, and in shards over ``data`` besides.

    Along the width D, which ``fsdp`` cuts up already: there XLA adds up on TPUs by reduce-scatter, and not along the
    longer axis of a matrix, which it lays out last. An array stays as it is where that leaves a device no whole tiles,
    as on a ``data`` of more than 96 at BERT-base's 768: those XLA would add up whole, and once more to gather them.
    """
    width, num_data = "fsdp", mesh.shape["data"]

    def scatter(x):
        spec = list(x.sharding.spec)
        if width in spec and x.shape[spec.index(width)] % (mesh.shape[width] * num_data * TILE) == 0:
            spec[spec.index(width)] = (width, "data")
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(scatter, tree)


def _is_boxed(leaf) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The part of each global batch that this process feeds: what lies on its devices."""

    rows: np.ndarray  # [b] int, sorted
    batch_size: int  # of the global batch

    @classmethod
    def of(cls, mesh: Mesh, batch_size: int) -> "HostShard":
        places = by_example(mesh).addressable_devices_indices_map((batch_size,)).values()
        return cls(np.unique(np.concatenate([np.arange(batch_size)[place] for place in places])), batch_size)


def put_batch(batch, mesh: Mesh, share: HostShard | None = None):
    """Host arrays as one global batch on the mesh: whole ones, the same in every process, or this one's `share`."""
    sharding = by_example(mesh)

    def put(x):
        rows, size = (share.rows, share.batch_size) if share else (np.arange(len(x)), len(x))

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return x[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch) if share or jax.process_count() > 1 else jax.device_put(batch, sharding)


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows` followed by copies of the first up to `size`, whose results are to be dropped."""
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def check_fit(config: Config, mesh: Mesh) -> None:
    """Raises ValueError, before long work, where the devices do not divide the batch or the heads."""
    train, num_shards = config.train, mesh.shape["data"] * mesh.shape["fsdp"]
    if train.batch_size % (num_shards * train.micro_batches):
        raise ValueError(
            f"train.batch_size {train.batch_size} is not divisible by the {num_shards} devices that share it, times "
            f"train.micro_batches {train.micro_batches} (mesh {dict(mesh.shape)}; use a multiple of "
            f"{num_shards * train.micro_batches})"
        )
    if config.model.num_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh.tensor {mesh.shape['tensor']} does not divide model.num_heads {config.model.num_heads} "
            f"(mesh {dict(mesh.shape)}; use a divisor of the heads)"
        )
