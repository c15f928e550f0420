"""FashionBERT in JAX/Flax: image-text matching and cross-modal retrieval for fashion and e-commerce catalogues."""

__version__ = "0.1.0"


def load(workdir, step=None):
    """The trained model in `workdir`, for notebooks and services: see `fbjax.api.Model`."""
    from fbjax.api import Model

    return Model.load(workdir, step)
