"""FashionBERT in JAX/Flax: image-text matching and cross-modal retrieval for fashion and e-commerce catalogues."""

__version__ = "0.1.0"


def load(workdir, step=None):
    """The trained model in `workdir`, for notebooks and services: see `fbjax.api.Model`."""
    from fbjax.api import Model

    return Model.load(workdir, step)


def load_exported(folder):
    """A folder of ``fbjax export --format stablehlo``, with jax and numpy alone: see `fbjax.exported.Exported`."""
    from fbjax.exported import Exported

    return Exported(folder)
