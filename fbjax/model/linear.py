"""The linear branch of the towers: a bag of n-grams for a text, patch features side by side for an image.

Each n-gram has a learned vector, and so has each feature of each patch. Alone it is a linear model; beside the encoder
it reads the whole text and keeps apart where in the picture something is.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.model.ngrams import Bag

SMALLEST_ROOT = 1e-2  # ``x / sqrt(|x| + this)``: a root whose slope is finite at 0


class LinearBranch(nn.Module):
    """Maps a `Bag` [B, G] and patch features [B, P, C] to vectors [B, E], not yet of length 1.

    `mean` and `deviation` [P C] of the features' roots are those of the training images that a run starts with; they
    get no gradient.
    """

    num_ngrams: int
    num_cells: int  # P C
    size: int  # E
    dropout: float  # of standardised features
    image_weight: float  # in a product, beside its text

    def setup(self):
        def param(name, deviation, shape, axes):
            start = nn.initializers.normal(deviation)
            return self.param(name, nn.with_logical_partitioning(start, axes), shape)

        across, cells = 1 / math.sqrt(self.size), 1 / math.sqrt(self.num_cells)
        self.ngrams = param("ngrams", across, (self.num_ngrams, self.size), ("vocabulary", None))
        self.cells = param("cells", cells, (self.num_cells, self.size), ("feature", None))
        moments = {"mean": nn.initializers.zeros, "deviation": nn.initializers.ones}
        self.moments = {
            name: self.param(name, nn.with_logical_partitioning(start, ("feature",)), (self.num_cells,))
            for name, start in moments.items()
        }
        self.drop = nn.Dropout(self.dropout)

    def text(self, bag: Bag) -> jax.Array:
        """``[B, E]``: the weighted sum of the vectors of a text's n-grams."""
        return jnp.einsum("bg,bge->be", bag.weights, self.ngrams[bag.rows])

    def product(self, text: jax.Array, image: jax.Array) -> jax.Array:
        """``[B, E]`` of a `text` and an `image` [B, E]: the sum of both at length 1, the image times its weight."""
        return unit(text) + self.image_weight * unit(image)

    def image(self, features: jax.Array, deterministic: bool = True) -> jax.Array:
        """``features [B, P, C] -> [B, E]``: of their roots with mean 0 and deviation 1, some dropped in training."""
        mean, deviation = (jax.lax.stop_gradient(self.moments[name]) for name in ("mean", "deviation"))
        return self.drop((feature_roots(features) - mean) / deviation, deterministic) @ self.cells


def unit(x: jax.Array) -> jax.Array:
    """Vectors ``[..., E]`` of length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def feature_roots(features: jax.Array) -> jax.Array:
    """``[B, P, C] -> [B, P C]``: signed roots, which even out the few large values of features after a ReLU."""
    flat = features.reshape(features.shape[0], -1).astype(jnp.float32)
    return flat * jax.lax.rsqrt(jnp.abs(flat) + SMALLEST_ROOT)
