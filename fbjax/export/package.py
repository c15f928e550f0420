"""``fbjax export``: a trained run written in one of `FORMATS`, proved, described by a manifest, and only then there.

A format is a module with ``write(subject, folder)`` and ``load(folder)``, whose result has
``call(name, **arrays) -> {output: array}``.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax

from fbjax import __version__
from fbjax.core.atomic_folder import check_fresh, fresh_folder
from fbjax.core.console import progress
from fbjax.export.proof import RealInputs, prove
from fbjax.export.source_model import SourceModel
from fbjax.exported import manifest
from fbjax.runs.run import VOCABULARY

FORMATS = {  # name -> its module, and whether it carries the heads of pretraining
    "hf": ("huggingface", True),
    "stablehlo": ("stablehlo", False),
    "onnx": ("onnx", False),
}


def export(
    workdir: str | Path,
    form: str,
    out: str | Path,
    *,
    step: int | None = None,
    data: str | None = None,
    say: Callable[[str], None],
) -> dict:
    """The manifest of the run in `workdir`, written in the format `form` to the folder `out`, empty or not there yet.

    Its best checkpoint, or that of `step`. It is proved on random inputs and on the first products of `data` (a table
    or glob; default: the run's validation split). Raises OSError or ValueError, and then `out` is as it was.
    """
    module = _module(form)
    check_fresh("--out", out)
    subject = SourceModel.open(workdir, step, with_heads=FORMATS[form][1])
    with fresh_folder("--out", out) as folder:
        module.write(subject, folder)
        subject.run.vocabulary.save(folder / VOCABULARY)
        say(f"written: {sum(path.stat().st_size for path in folder.rglob('*')) / 2**20:,.1f} MiB; proving it ..")
        content = describe(subject, form)
        manifest.write(folder, content)  # as its user finds it, it is loaded
        proof = prove(subject, module.load(folder), RealInputs.of(subject, data, progress), say)
        content |= {"proof": proof}
        manifest.write(folder, content)
    return content


def describe(subject: SourceModel, form: str) -> dict:
    """What a manifest says of a run beside proof and files."""
    config = subject.run.config
    return {
        "format": form,
        "fbjax": __version__,
        "jax": jax.__version__,
        "step": subject.step,
        "tokenizer": VOCABULARY,
        "text_tokens": config.model.text_tokens,
        "image_size": None if config.patches.ready_made else config.patches.image_size,
        "functions": {
            name: {"inputs": [dataclasses.asdict(given) for given in function.inputs], "outputs": function.outputs}
            for name, function in subject.functions.items()
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
