"""A batch of products from the host to the device, each with its own image and a negative's."""

from typing import Any, NamedTuple

Array = Any  # NumPy's on the host, JAX's on the device


class Batch(NamedTuple):
    """B products. Images are pixels [B, S, S, 3] uint8 or cached features [B, P, C] float16.

    That is pixels [B, S, S, 3] uint8, or cached features [B, P, C] float16.
    """

    index: Array  # [B] int32: the product's record, which keys its masks
    group: Array  # [B] int32: products of one group are never told apart
    ids: Array  # [B, T] int32: [CLS] w1 .. wn [SEP] [PAD] ..
    word_ids: Array  # [B, T] int32: which word a piece belongs to; -1 on [CLS], [SEP], [PAD]
    image: Array
    negative: Array | None  # the image of another product; None where no task reads negative pairs

    @property
    def text_mask(self) -> Array:
        """[B, T] bool: True up to and with [SEP]. [PAD] is id 0 and stands nowhere else."""
        return self.ids != 0
