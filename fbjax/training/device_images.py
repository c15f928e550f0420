"""All images of the training split on the devices: a batch is then rows of them (config.data.on_device)."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.data.batches.batch import Batch
from fbjax.parallel.mesh import put_rows, rows_per_device


def put_images(config: Config, images: np.ndarray | None, mesh: Mesh) -> jax.Array | None:
    """Pictures [N, S, S, 3] or features [N, P, C] on the devices, if the config wants them there.

    Raises ValueError where a device has no room for its rows.
    """
    if not config.data.on_device or images is None:
        return None
    size = rows_per_device(len(images), mesh) * math.prod(images.shape[1:]) * images.dtype.itemsize
    for device in mesh.local_devices:
        _check_room(device, size, images)
    say(f"images on the devices: {len(images):,}, {size / 2**30:.2f} GiB on each")
    return put_rows(images, mesh)


def _check_room(device: jax.Device, size: int, images: np.ndarray) -> None:
    stats = device.memory_stats() or {}  # None on a CPU
    free = stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)
    if size > free:
        raise ValueError(
            f"data.on_device: {images.dtype} {list(images.shape)} takes {size / 2**30:.2f} GiB of each device, and "
            f"{device} has {free / 2**30:.2f} GiB free (use more devices, a smaller patches.image_size, or "
            "data.on_device false)"
        )


def with_rows(batch: Batch, images: jax.Array | None) -> Batch:
    """The shapes of a `batch` that has rows of `images` in place of images."""
    if images is None:
        return batch
    negative = None if batch.negative is None else batch.index
    partner = batch.partner and batch.partner._replace(image=batch.index)
    return batch._replace(image=batch.index, negative=negative, partner=partner, pictures=images)
