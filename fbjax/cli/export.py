"""Verbs that convert a run to other formats, and back."""

from fbjax.cli.common import STEP, WORKDIR, flag, verb

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
    from fbjax.core.console import say
    from fbjax.export.package import export

    content = export(form=form, out=out, say=say, **request)
    print(f"exported: step {content['step']} as {form}, {', '.join(content['functions'])}: {out}")


@verb(
    "import a folder of export --format hf as a run, with the weights that it holds now",
    flag("--from", "Hugging Face folder", required=True, dest="folder", metavar="DIR"),
    flag("--workdir", "new or empty folder for the run", required=True),
    examples=("fbjax import --from exported --workdir runs/back",),
)
def import_(folder, workdir) -> None:
    from fbjax.core.console import say
    from fbjax.export.importing import import_checkpoint

    import_checkpoint(folder, workdir, say)
    print(f"imported: {workdir}; next: fbjax evaluate --workdir {workdir}")
