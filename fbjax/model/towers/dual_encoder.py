"""The dual encoder of a CLIP or SigLIP behind its patch network: vectors of texts, and of images that this has read.

The patch network is the image tower. Its features of the whole image come first among its patches; what follows it here
is CLIP's projection of them, or nothing.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from fbjax.model.backbones.layers import named_dense
from fbjax.model.linear import unit
from fbjax.model.towers.text import ClipTextTower, SiglipTextTower, TextTower


class Form(NamedTuple):
    """What kind of text tower there is, its activation, and whether the image is projected."""

    text: type[TextTower]
    activation: str
    projects_image: bool


FORMS = {
    "clip": Form(ClipTextTower, "quick_gelu", projects_image=True),
    "clip_gelu": Form(ClipTextTower, "gelu", projects_image=True),
    "siglip": Form(SiglipTextTower, "gelu_tanh", projects_image=False),
    "siglip_gelu": Form(SiglipTextTower, "gelu", projects_image=False),
}


class DualEncoder(nn.Module):
    """Vectors [B, E] of ids and of patch features, not of length 1.

    `sizes`: vocabulary, T, D, layers, heads and F of the text tower. Raises ValueError where E is not the width of an
    image tower whose features are not projected.
    """

    form: str
    sizes: tuple[int, int, int, int, int, int]
    size: int  # E
    image_weight: float  # in a product, beside its text

    def setup(self):
        form = FORMS[self.form]
        self.text_tower = form.text(*self.sizes, size=self.size, activation=form.activation)
        if form.projects_image:
            self.image_projection = named_dense(self.size, ("feature", None), "image_projection", use_bias=False)

    def text(self, ids: jax.Array) -> jax.Array:
        """``[B, t] -> [B, E]``."""
        return self.text_tower(ids)

    def image(self, features: jax.Array, deterministic: bool = True) -> jax.Array:
        """``features [B, P, C] -> [B, E]``, of the first: those of the whole image. There is no dropout."""
        whole = features[:, 0]
        if FORMS[self.form].projects_image:
            return self.image_projection(whole)
        if whole.shape[-1] != self.size:
            raise ValueError(
                f"embedding_dim {self.size}: towers of the form {self.form!r} have the width of their image tower, "
                f"{whole.shape[-1]} (set it to that)"
            )
        return whole

    def product(self, text: jax.Array, image: jax.Array) -> jax.Array:
        """``[B, E]`` of a `text` and an `image` [B, E]: the sum of both at length 1, the image times its weight."""
        return unit(text) + self.image_weight * unit(image)
