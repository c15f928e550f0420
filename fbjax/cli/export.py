"""Verbs that convert a run to other formats, and back, and that mix the weights of two."""

from fbjax.cli.common import STEP, WORKDIR, WrongFlag, flag, verb
from fbjax.core.console import answer, say

CONFIG_OF_TOWERS = "config file with the tables, columns and training of a CLIP or SigLIP (default: none)"
FORMATS = "hf: Hugging Face folder for PyTorch; stablehlo: for JAX without Flax; onnx: for onnxruntime"


@verb(
    "export a run to another format, and test that both give the same outputs",
    WORKDIR,
    flag("--format", FORMATS, dest="form", required=True, choices=["hf", "stablehlo", "onnx"]),
    flag("--out", "new or empty folder for the export", required=True, metavar="DIR"),
    flag("--data", "product table or glob for the test (default: the run's validation split)"),
    STEP,
    examples=("fbjax export --workdir runs/mine --format hf --out exported",),
)
def export(form, out, **request) -> None:
    from fbjax.export.package import export

    content = export(form=form, out=out, say=say, **request)
    answer(f"exported: step {content['step']} as {form}, {', '.join(content['functions'])}: {out}")


@verb(
    "import a folder of export --format hf, or a CLIP or SigLIP, as a run, with the weights that it holds now",
    flag("--from", "folder of Hugging Face or open_clip", required=True, dest="folder", metavar="DIR"),
    flag("--workdir", "new or empty folder for the run", required=True),
    flag("--config", CONFIG_OF_TOWERS),
    examples=(
        "fbjax import --from exported --workdir runs/back",
        "fbjax import --from clip-vit-base-patch16 --workdir runs/clip --config my_catalogue",
    ),
)
def import_(folder, workdir, config) -> None:
    from fbjax.export.importing import import_checkpoint

    import_checkpoint(folder, workdir, say, config)
    answer(f"imported: {workdir}; next: fbjax evaluate --workdir {workdir}")


def shares(listed: str) -> tuple[float, ...]:
    """``".25, .5" -> (0.25, 0.5)``"""
    try:
        return tuple(dict.fromkeys(float(part) for part in listed.split(",")))
    except ValueError:
        raise WrongFlag(f"--share {listed!r}: give numbers from 0 to 1, with commas between") from None


@verb(
    "mix the weights of a run and of one that was fine-tuned from it (WiSE-FT); the result is a run",
    flag("before", "folder of the run that the other one started from; its last checkpoint counts", metavar="BEFORE"),
    flag("tuned", "folder of the fine-tuned run; its best checkpoint counts", metavar="TUNED"),
    flag("--share", "share of the fine-tuned weights, from 0 to 1", default="0.5", type=shares, metavar="SHARE,.."),
    flag("--out", "new or empty folder; of several shares each has a folder in it", required=True, metavar="DIR"),
    examples=(
        "fbjax interpolate runs/mine runs/tuned --out runs/between",
        "fbjax interpolate runs/mine runs/tuned --share 0.25,0.5,0.75 --out runs/path",
    ),
)
def interpolate(before, tuned, share, out) -> None:
    from fbjax.export.interpolation import interpolate

    for folder in interpolate(before, tuned, share, out, say).values():
        answer(f"interpolated: {folder}; next: fbjax evaluate --workdir {folder}")
