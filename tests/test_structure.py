"""The shape of the house: who may import whom, how large a file may grow, where defaults live."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fbjax"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350

ONLY_IN = {  # import -> the files or folders that may have it
    "tensorflow": ("data/pipeline.py",),
    "tensorflow_datasets": ("data/",),
    "array_record": ("data/",),
    "etils": ("places.py",),
    "apache_beam": ("data/beam.py",),
    "pyarrow": ("data/rows.py", "data/release.py", "data/drawn/products.py"),
    "h5py": ("data/fashiongen.py", "model/networks/files.py"),
    "orbax": ("checkpoint.py",),
    "tensorboard": ("log.py",),
    "matplotlib": ("pages/", "planning/report.py"),
    "jinja2": ("pages/",),
    "markupsafe": ("pages/",),
    "resvg_py": ("data/drawn/",),
    "ml_collections": ("config.py",),
    "jax2onnx": ("exporting/onnx.py",),
    "onnx": ("exporting/onnx.py",),
    "onnxruntime": ("exporting/onnx.py",),
    "sklearn": ("evaluation/baseline.py", "evaluation/probe.py"),
    "torch": (
        *("model/networks/files.py", "model/pretrained.py", "bench/rival.py", "bench/contest.py"),
        *("exporting/hub/", "exporting/huggingface.py"),
    ),
}
LAYERS = {  # a room -> what it must not know
    "model/": (
        "fbjax.data",
        "fbjax.objectives",
        "fbjax.adaptive",
        "fbjax.train",
        "fbjax.evaluation",
        "fbjax.workdir",
    ),
    "objectives/": ("fbjax.data", "fbjax.adaptive", "fbjax.train", "fbjax.evaluation", "fbjax.workdir"),
    "data/": ("jax", "fbjax.model", "fbjax.objectives", "fbjax.train", "fbjax.evaluation", "fbjax.workdir"),
    "adaptive.py": ("fbjax.model", "fbjax.objectives", "fbjax.config", "fbjax.batch", "fbjax.step"),
    "branches.py": ("fbjax.",),
    "evaluation/metrics.py": ("jax", "fbjax."),
    "evaluation.py": ("jax", "fbjax."),
    "legacy.py": ("jax", "fbjax.data", "fbjax.model", "fbjax.evaluation"),
    "exporting/hub/": ("jax", "flax", "numpy", "fbjax."),  # it goes where fbjax is not
    "exporting/functions.py": ("fbjax.exporting",),
    "exported.py": ("flax", "fbjax.model", "fbjax.config", "fbjax.workdir", "fbjax.exporting.package"),  # jax and NumPy
    "resize.py": ("jax", "fbjax."),
    "exporting/manifest.py": ("jax", "flax", "numpy", "fbjax."),
    "compare.py": ("jax", "fbjax.data", "fbjax.model", "fbjax.evaluation"),  # it answers at once
}


def imports_of(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_keep_the_direction_of_the_flow(file):
    place = str(file.relative_to(PACKAGE))
    for name in imports_of(file):
        root = name.split(".")[0]
        assert root not in ONLY_IN or place.startswith(ONLY_IN[root]), f"{place} imports {name}"
        for room, forbidden in LAYERS.items():
            if place.startswith(room):
                assert not any(name == f or name.startswith(f.rstrip(".") + ".") for f in forbidden), f"{place}: {name}"


def test_no_file_is_too_long_to_hold_in_the_head():
    assert {str(f): n for f in FILES if (n := len(f.read_text().splitlines())) > MAX_LINES} == {}


def test_help_needs_no_heavy_import():
    code = "import sys, fbjax.cli; print([m for m in ('jax', 'tensorflow', 'flax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
