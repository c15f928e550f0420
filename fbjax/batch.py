"""What the host sends to the device: one batch of products, each with its own image and a partner's."""

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
    """B products. `image` and `partner` hold whatever the patch network takes.

    That is pixels [B, S, S, 3] uint8, or cached features [B, P, C] float16.
    """

    index: jax.Array  # [B] int32: the product's record, which keys its masks
    ids: jax.Array  # [B, T] int32: [CLS] w1 .. wn [SEP] [PAD] ..
    word_ids: jax.Array  # [B, T] int32: which word a piece belongs to; -1 on [CLS], [SEP], [PAD]
    image: jax.Array
    partner: jax.Array  # the image of another product

    @property
    def text_mask(self) -> jax.Array:
        """[B, T] bool: True up to and with [SEP]. [PAD] is id 0 and stands nowhere else."""
        return self.ids != 0
