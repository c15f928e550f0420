"""Several pictures of a product: their patches one after another, those of a picture that is not there NaN.

NaN goes with features [B, M P, C] and with embedded images [B, M P, D], in place of a mask beside them: no other number
can be taken for it. Whoever computes with them calls `shown` first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


def shown(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``image [B, M P, X]`` with zeros for pictures that are not there, and ``[B, M P]`` bool: which patches are."""
    there = are_there(image)
    return jnp.where(there[..., None], image, 0), there


def are_there(image: jax.Array) -> jax.Array:
    """``[..., M P, X] -> [..., M P]`` bool."""
    return ~jnp.isnan(image[..., 0])


def mean_picture(features: jax.Array, num_images: int) -> jax.Array:
    """``[B, M P, C] -> [B, P, C]``: the mean over the pictures that are there, of each place by itself."""
    if num_images == 1:
        return features
    apart = lambda x: x.reshape(len(x), num_images, -1, *x.shape[2:])  # noqa: E731
    features, there = (apart(x) for x in shown(features.astype(jnp.float32)))
    return features.sum(axis=1) / there.sum(axis=1)[..., None]


def several(network: Any, num_images: int) -> Any:
    """The `PatchNetwork` of products with up to M pictures: an image that is given to it is a product's only one."""
    if network.num_images == num_images:
        return network

    def apply(params: Any, images: jax.Array, **options) -> jax.Array:
        features = network.apply(params, images, **options)
        absent = jnp.full((len(features), (num_images - 1) * network.num_patches, network.feature_size), jnp.nan)
        return jnp.concatenate([features, absent.astype(features.dtype)], axis=1)

    return dataclasses.replace(
        network,
        apply=apply,
        num_patches=num_images * network.num_patches,
        num_images=num_images,
        fingerprint=f"{network.fingerprint}-{num_images}pictures",
    )
