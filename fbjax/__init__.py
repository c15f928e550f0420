"""FashionBERT in JAX/Flax: image-text matching and cross-modal retrieval for fashion and e-commerce catalogues.

The names in `__all__` are the public interface. Everything else may change between versions.
"""

import importlib
import operator
from typing import Any

__version__ = "0.2.0"
__all__ = [
    *("load", "load_exported", "load_config", "train", "evaluate"),
    *("register_task", "register_backbone", "register_source", "__version__"),
]
_LAZY = {  # public name -> its definition, imported when it is first used
    "load_config": "fbjax.config.load:load_config",
    "train": "fbjax.training.loop:train",
    "evaluate": "fbjax.evaluation.evaluate:evaluate",
    "register_task": "fbjax.tasks.base:register_task",
    "register_backbone": "fbjax.model.backbones.registry:register_backbone",
    "register_source": "fbjax.data.sources.base:SOURCES.register",
}


def load(workdir, step=None, **settings):
    """The trained model in `workdir`, for notebooks and services: `fbjax.inference.model.Model`.

    `settings`: its `cache_bytes` and `rows`.
    """
    import dataclasses

    from fbjax.inference.model import Model

    return dataclasses.replace(Model.load(workdir, step), **settings)


def load_exported(folder):
    """A folder of ``fbjax export --format stablehlo``, with jax and numpy alone: `fbjax.exported.runtime.Exported`."""
    from fbjax.exported.runtime import Exported

    return Exported(folder)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"fbjax has no {name!r}; public are {', '.join(__all__)}")
    module, _, path = _LAZY[name].partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))
