"""What the host sends to the device: one batch of products, each with its own image and a negative's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """B products. `image` and `negative` hold whatever the patch network takes.

    That is pixels [B, S, S, 3] uint8, or cached features [B, P, C] float16.
    """

    index: jax.Array  # [B] int32: the product's record, which keys its masks
    group: jax.Array  # [B] int32: products of one group are never told apart
    ids: jax.Array  # [B, T] int32: [CLS] w1 .. wn [SEP] [PAD] ..
    word_ids: jax.Array  # [B, T] int32: which word a piece belongs to; -1 on [CLS], [SEP], [PAD]
    image: jax.Array
    negative: jax.Array | None  # the image of another product; None where no task reads negative pairs

    @property
    def text_mask(self) -> jax.Array:
        """[B, T] bool: True up to and with [SEP]. [PAD] is id 0 and stands nowhere else."""
        return self.ids != 0


def batch_shapes(config, patches, text_tokens: int) -> Batch:
    """Shapes and dtypes of a global batch, texts padded to `text_tokens`, for a `Config` and its patch network."""
    b, size = config.train.batch_size, config.patches.image_size
    text = jax.ShapeDtypeStruct((b, text_tokens), jnp.int32)
    if config.patches.cached:
        image = jax.ShapeDtypeStruct((b, patches.num_patches, patches.feature_size), jnp.float16)
    else:
        image = jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8)
    number = jax.ShapeDtypeStruct((b,), jnp.int32)
    return Batch(number, number, text, text, image, image if config.tasks.mismatched else None)
