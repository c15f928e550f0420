"""Devices, logical axis rules and shardings: the only place that says what lies where.

Parameters are boxed with logical names where they are made (`fbjax.model.bert`); the rules below map those to the
mesh axes ``data`` (examples), ``fsdp`` (parameters, and examples too) and ``tensor`` (heads, MLP, vocabulary).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fbjax.config import Config, MeshConfig

AXES = ("data", "fsdp", "tensor")
RULES = (
    ("batch", ("data", "fsdp")),
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
    """A `NamedSharding` for each leaf of an abstract tree whose parameters are boxed with logical names."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(batch, mesh: Mesh):
    """Host arrays (this process's rows) as one global batch on the mesh."""
    sharding = by_example(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def padded(rows: np.ndarray, size: int) -> np.ndarray:
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
