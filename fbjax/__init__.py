"""FashionBERT in JAX/Flax: image-text matching and cross-modal retrieval for fashion and e-commerce catalogues."""

__version__ = "0.2.0"


def load(workdir, step=None):
    """The trained model in `workdir`, for notebooks and services: see `fbjax.inference.model.Model`."""
    from fbjax.inference.model import Model

    return Model.load(workdir, step)


def load_exported(folder):
    """A folder of ``fbjax export --format stablehlo``, with jax and numpy alone: `fbjax.exported.runtime.Exported`."""
    from fbjax.exported.runtime import Exported

    return Exported(folder)
