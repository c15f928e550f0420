"""Devices, logical axis rules and shardings; no other module places arrays.

Parameters are boxed with logical names where they are created (`fbjax.model.encoder`). The rules below map these to the
mesh axes ``data`` (examples), ``fsdp`` (parameters, and examples too) and ``tensor`` (heads, MLP, vocabulary).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fbjax.config.schema import Config, MeshConfig

AXES = ("data", "fsdp", "tensor")
TILE = 8  # rows of a TPU's tiles of a matrix
BATCH = "batch"  # of examples, not of parameters
RULES = ((BATCH, ("data", "fsdp")), ("vocabulary", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))
RULES += (("embed", "fsdp"), ("feature", None), ("norm", None))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all), axes `AXES`, all Auto: on Explicit ones linen's constraints assert."""
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

    Raises ValueError for a matrix without names, a name without a rule, and an axis that its devices do not divide.
    """
    problems = []
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=_is_boxed):
        names, shape = (leaf.names, leaf.value.shape) if _is_boxed(leaf) else ((), leaf.shape)
        parameter = f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(shape)}"
        if len(shape) > 1 and not _is_boxed(leaf):
            problems.append(f"{parameter} names none of its axes: every device would hold a whole copy")
        for name, size in zip(names, shape, strict=True) if names else ():
            problems += [f"{parameter}, axis {name!r}: {problem}" for problem in _problems(name, size, mesh)]
    if problems:
        raise ValueError("parameters cannot be placed on the mesh:\n  " + "\n  ".join(problems))
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def _problems(name: str | None, size: int, mesh: Mesh) -> Iterator[str]:
    """The reasons why an axis of `size` called `name` cannot be placed."""
    rules = dict(RULES)
    if name is not None and name not in rules:
        yield f"no rule for it (there are {', '.join(rules)})"
    elif name is not None and rules[name] and size % mesh.shape[rules[name]]:
        yield f"mesh.{rules[name]} {mesh.shape[rules[name]]} does not divide it"


def replicated_params(params):
    """`params` boxed to be replicated, as those of a trained patch network are."""
    return jax.tree.map(lambda p: nn.LogicallyPartitioned(p, (None,) * p.ndim), params)


def on_host(tree):
    """The arrays of `tree`, whole, as NumPy's, in every process."""
    if jax.process_count() > 1:
        return jax.tree.map(partial(multihost_utils.process_allgather, tiled=True), tree)
    return jax.device_get(tree)


def shardings_of(tree):
    """The sharding of each array or shape of `tree`."""
    return jax.tree.map(lambda x: x.sharding, tree)


def scatter_shards(mesh: Mesh, tree):
    """A `NamedSharding` for each placed array or shape of `tree`: its own, and sharded over ``data`` in addition.

    It shards the width D, which ``fsdp`` shards already: there XLA sums on TPUs by reduce-scatter, which it does not
    along a matrix's longer axis, the last in its layout. An array keeps its sharding where a device would get no whole
    tiles, as on a ``data`` of more than 96 at BERT-base's 768: XLA would sum those whole, and gather them afterwards.
    """

    def scatter(x):
        spec = list(x.sharding.spec)
        if "fsdp" in spec and x.shape[spec.index("fsdp")] % (mesh.shape["fsdp"] * mesh.shape["data"] * TILE) == 0:
            spec[spec.index("fsdp")] = ("fsdp", "data")
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
    """The rows of each global batch that this process loads, for its own devices."""

    rows: np.ndarray  # [b] int, sorted
    batch_size: int  # of the global batch

    @classmethod
    def of(cls, mesh: Mesh, batch_size: int) -> "HostShard":
        places = by_example(mesh).addressable_devices_indices_map((batch_size,)).values()
        return cls(np.unique(np.concatenate([np.arange(batch_size)[place] for place in places])), batch_size)


def put_batch(batch, mesh: Mesh, share: HostShard | None = None):
    """Host arrays as one global batch on the mesh: the whole batch in every process, or this process's `share`."""
    sharding = by_example(mesh)

    def put(x):
        rows, size = (share.rows, share.batch_size) if share else (np.arange(len(x)), len(x))

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return x[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch) if share or jax.process_count() > 1 else jax.device_put(batch, sharding)


def put_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Host rows [N, ..] on the mesh, sharded as a batch is; zeros follow up to a multiple of the shards."""
    size, shape = rows_per_device(len(array), mesh), array.shape[1:]

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        found = np.ascontiguousarray(array[index[0]])
        return np.concatenate([found, np.zeros((size - len(found), *shape), array.dtype)])

    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return jax.make_array_from_callback((size * num_shards, *shape), by_example(mesh), shard)


def rows_per_device(num_rows: int, mesh: Mesh) -> int:
    """How many of `num_rows` a device holds."""
    return -(-num_rows // (mesh.shape["data"] * mesh.shape["fsdp"]))


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows`, padded to `size` with copies of the first; drop their results."""
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def check_fit(config: Config, mesh: Mesh) -> None:
    """Raises ValueError where the devices do not divide the batch or the heads."""
    train, num_shards, shape = config.train, mesh.shape["data"] * mesh.shape["fsdp"], dict(mesh.shape)
    unit = num_shards * train.micro_batches
    if train.batch_size % unit:
        raise ValueError(
            f"train.batch_size {train.batch_size} is not divisible by the {num_shards} devices that share it, times "
            f"train.micro_batches {train.micro_batches} (mesh {shape}; use a multiple of {unit})"
        )
    if config.model.num_heads % shape["tensor"]:
        raise ValueError(
            f"mesh.tensor {shape['tensor']} does not divide model.num_heads {config.model.num_heads} "
            f"(mesh {shape}; use a divisor of the heads)"
        )
