"""A batch of products from the host to the device, each with its own image and a negative's."""

from typing import Any, NamedTuple

Array = Any  # NumPy's on the host, JAX's on the device


class Batch(NamedTuple):
    """B products. Images are pixels [B, S, S, 3] uint8, cached features [B, P, C] float16, or rows of `pictures`."""

    index: Array  # [B] int32: the product's record, which keys its masks
    group: Array  # [B] int32: products of one group are never told apart
    ids: Array  # [B, T] int32: [CLS] w1 .. wn [SEP] [PAD] ..
    word_ids: Array  # [B, T] int32: which word a piece belongs to; -1 on [CLS], [SEP], [PAD]
    image: Array  # or [B] int32 with `pictures`
    negative: Array | None  # the image of another product; None where no task reads negative pairs
    pictures: Array | None = None  # [N, ..]: the images of all products, on the devices
    towers: Array | None = None  # [B, 2, E]: text and image by towers that have not seen them; their product is a logit
    attributes: Any = None  # [B, A] int32: the class of each of A columns of the product table; -1: none
    links: Any = None  # [B, most T, K] int16: the image tokens that each text token goes to, or -1, in each of K grids
    query: Any = None  # [B, Q] int32: [CLS] w1 .. wn [SEP] [PAD] .. of a query that led to the product
    negative_query: Any = None  # [B, Q]: another product's; all [PAD] where that one leads to this product as well
    label: Any = None  # [B] int32: 1 where query and product match
    partner: Any = None  # a `Batch` of other products, one for each of these

    def with_rows_of(self, **arrays: Array | None) -> "Batch":
        """The batch with these fields, of each array [N, ..] the rows of its products; None stays None."""
        return self._replace(**{name: None if of is None else of[self.index] for name, of in arrays.items()})

    def looked_up(self) -> "Batch":
        """The batch with images in place of their rows."""
        if self.pictures is None:
            return self
        negative = None if self.negative is None else self.pictures[self.negative]
        partner = self.partner and self.partner._replace(pictures=self.pictures).looked_up()
        return self._replace(image=self.pictures[self.image], negative=negative, partner=partner, pictures=None)

    @property
    def text_mask(self) -> Array:
        """[B, T] bool: True up to and with [SEP]. [PAD] is id 0 and stands nowhere else."""
        return self.ids != 0
