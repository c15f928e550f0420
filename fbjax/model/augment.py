"""Augmentation of training pictures on the device: flip, crop, brightness and contrast as `patches.augment` says."""

import jax
import jax.numpy as jnp

from fbjax.config.schema import Augment


def augment(config: Augment, key: jax.Array, images: jax.Array) -> jax.Array:
    """``images [n, S, S, 3] uint8 -> the same`` shape and dtype: n pictures, changed each in its own way.

    A pure function of `key`. With everything off it returns its input.
    """
    if not config.is_on:
        return images
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(lambda key, image: _augmented(config, key, image))(keys, images)


def _augmented(config: Augment, key: jax.Array, image: jax.Array) -> jax.Array:
    flip, share, across, down, brightness, contrast = jax.random.split(key, 6)
    pixels = image.astype(jnp.float32)
    if config.flip or config.crop < 1:
        side = jax.random.uniform(share, (), minval=config.crop, maxval=1.0)
        mirrored = jax.random.bernoulli(flip) & config.flip
        rows = crop_weights(len(image), side, jax.random.uniform(down))
        columns = crop_weights(len(image), side, jax.random.uniform(across))
        columns = jnp.where(mirrored, columns[::-1], columns)
        pixels = jnp.einsum("ih,jw,hwc->ijc", rows, columns, pixels, precision="highest")
    if config.contrast:
        by = 1 + jax.random.uniform(contrast, (), minval=-config.contrast, maxval=config.contrast)
        pixels = (pixels - pixels.mean()) * by + pixels.mean()
    if config.brightness:
        pixels *= 1 + jax.random.uniform(brightness, (), minval=-config.brightness, maxval=config.brightness)
    return jnp.round(jnp.clip(pixels, 0, 255)).astype(jnp.uint8)


def crop_weights(size: int, share: jax.Array, place: jax.Array) -> jax.Array:
    """float32 [size, size]: bilinear weights that enlarge `share` of an axis to all of it.

    The part begins at `place` of what is left, in [0, 1]. With share 1 it is the identity.
    """
    cells = jnp.arange(size, dtype=jnp.float32)
    centres = place * size * (1 - share) + (cells + 0.5) * share - 0.5
    return jnp.maximum(1 - jnp.abs(jnp.clip(centres, 0, size - 1)[:, None] - cells), 0)
