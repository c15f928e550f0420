"""``fbjax export``: writes a trained run in one of `FORMATS`, proves it, and describes it in a manifest.

A format is a module with ``write(source_model, folder)`` and ``load(folder)``, whose result has
``call(name, **arrays) -> {output: array}``. Its optional ``carried(source_model)`` drops what the format cannot carry.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax

from fbjax import __version__
from fbjax.core.atomic_folder import check_fresh, fresh_folder
from fbjax.export.proof import prove, real_inputs
from fbjax.export.source_model import SourceModel
from fbjax.exported import manifest
from fbjax.runs.run import VOCABULARY

# name -> its module, and whether it carries the heads of pretraining
FORMATS = {"hf": ("huggingface", True), "stablehlo": ("stablehlo", False), "onnx": ("onnx", False)}


def export(
    workdir: str | Path,
    form: str,
    out: str | Path,
    *,
    step: int | None = None,
    data: str | None = None,
    say: Callable[[str], None],
) -> dict:
    """Exports the run in `workdir` to the new or empty folder `out`, in the format `form`; returns the manifest.

    Takes the best checkpoint, or that of `step`. The proof runs on random inputs and on the first products of `data` (a
    table or glob; default: the run's validation split). Raises OSError or ValueError, and then `out` is unchanged.
    """
    module = _module(form)
    check_fresh("--out", out)
    source = SourceModel.open(workdir, step, with_heads=FORMATS[form][1])
    _check_exportable(source)
    source_model = module.carried(source) if hasattr(module, "carried") else source
    real = real_inputs(source_model, data)
    with fresh_folder("--out", out) as folder:
        module.write(source_model, folder)
        source_model.run.vocabulary.save(folder / VOCABULARY)
        say(f"written: {sum(path.stat().st_size for path in folder.rglob('*')) / 2**20:,.1f} MiB; proving it ..")
        content = describe(source_model, form)
        manifest.write(folder, content)  # loading reads it
        proof = prove(source_model, module.load(folder), real, say)
        manifest.write(folder, content | {"proof": proof})
    return content | {"proof": proof}


def _check_exportable(source: SourceModel) -> None:
    """Raises ValueError where the encoder reads queries in a segment of their own, pairs are scored by tokens, or a
    product has several pictures: no export has any of these."""
    config = source.run.config
    if source.run.late_interaction:
        raise ValueError(
            "this run scores a pair by its tokens (task scan), which exports do not: use it from Python (fbjax.load)"
        )
    if config.data.max_images > 1:
        raise ValueError(
            f"this run reads up to {config.data.max_images} pictures of a product (data.max_images), and exports one: "
            "use it from Python (fbjax.load)"
        )
    if config.reads_queries and config.reads_encoder:
        raise ValueError(
            "this run's encoder reads queries in a segment of their own, which exports do not have: use it from Python "
            "(fbjax.load), or export towers with branches 'linear'"
        )


def describe(source_model: SourceModel, form: str) -> dict:
    """The manifest of a run without its proof and files."""
    config = source_model.run.config
    return {
        "format": form,
        "fbjax": __version__,
        "jax": jax.__version__,
        "step": source_model.step,
        "tokenizer": VOCABULARY,
        "text_tokens": config.model.text_tokens,
        "image_size": config.patches.image_size if "features" in source_model.functions else None,
        "image_fit": config.patches.fit if "features" in source_model.functions else None,
        "functions": {
            name: {"inputs": [dataclasses.asdict(given) for given in function.inputs], "outputs": function.outputs}
            for name, function in source_model.functions.items()
        },
        "config": dataclasses.asdict(config),
    }


def _module(form: str) -> ModuleType:
    if form not in FORMATS:
        raise ValueError(f"--format {form!r} is unknown (use {', '.join(FORMATS)})")
    try:
        return importlib.import_module(f"fbjax.export.{FORMATS[form][0]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--format {form} needs {error.name}: pip install 'fbjax[export]'") from None
