"""The architecture: which package may import which, what libraries belong where, and how large things may grow."""

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fbjax"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES, MAX_FILES = 350, 10

READS_RECORDS = ("tensorflow", "tensorflow_datasets", "array_record")  # training from arrays does without
# Bottom to top: a package may import those above it in this table, never those below. Beside each: libraries that it
# must not reach, directly or through what it imports.
LAYERS = {
    "core": ("jax", "flax", *READS_RECORDS, "torch"),
    "config": ("jax", "flax", *READS_RECORDS, "torch"),
    "parallel": (*READS_RECORDS, "torch"),
    "data.text": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.sources": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.batches": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.records": ("jax", "flax", "torch"),
    "data.arrays": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.log": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.inspection": ("jax", "flax", *READS_RECORDS, "torch"),
    "data.synthetic": ("jax", "flax", *READS_RECORDS, "torch"),
    "model.weights": (*READS_RECORDS, "torch"),
    "model.backbones": READS_RECORDS,
    "model": READS_RECORDS,
    "tasks": READS_RECORDS,
    "runs": READS_RECORDS,
    "inference": READS_RECORDS,
    "serve.index": READS_RECORDS,
    "serve.search": READS_RECORDS,
    "serve": READS_RECORDS,
    "monitoring": READS_RECORDS,
    "evaluation": READS_RECORDS,
    "evaluation.baselines": READS_RECORDS,
    "training": READS_RECORDS,
    "exported": ("flax", *READS_RECORDS, "torch"),
    "export.hub": ("jax", "flax", "numpy", *READS_RECORDS, "fbjax"),
    "export": READS_RECORDS,
    "report": READS_RECORDS,
    "tools.bench": (),
    "tools.plan": (),
    "cli": (),
}
# A library -> the only packages or files that import it.
ONLY_IN = {
    "tensorflow": ("data.records.pipeline",),
    "tensorflow_datasets": ("data.records",),
    "array_record": ("data.records",),
    "etils": ("core.paths",),
    "apache_beam": ("data.records.beam",),
    "pyarrow": (
        "data.sources",
        "data.synthetic.products",
        "data.synthetic.queries",
        "inference.catalogue.vector_files",
    ),
    "charset_normalizer": ("data.sources.readers.encodings",),
    "python_calamine": ("data.sources.readers.excel",),
    "h5py": ("data.sources.fashiongen", "model.weights.files"),
    "orbax": ("runs.checkpoints",),
    "tensorboard": ("monitoring.logger",),
    "matplotlib": ("report", "tools.plan.report"),
    "jinja2": ("report",),
    "markupsafe": ("report",),
    "resvg_py": ("data.synthetic",),
    "ml_collections": ("config",),
    "jax2onnx": ("export.onnx",),
    "onnx": ("export.onnx",),
    "onnxruntime": ("export.onnx",),
    "cachetools": ("serve.search.kept",),
    "bm25s": ("evaluation.baselines.bm25",),
    "nltk": ("evaluation.captions.figures",),
    "pycocoevalcap": ("evaluation.captions.figures",),
    "fastapi": ("serve.web",),
    "prometheus_client": ("serve.web.metrics",),
    "uvicorn": ("serve.web.server",),
    "pymilvus": ("serve.index.collection", "serve.index.database"),
    "milvus_lite": ("serve.index.database",),
    "sklearn": ("evaluation.baselines",),
    "torch": ("tools.bench", "export.hub", "export.huggingface"),
}


def name_of(file: Path) -> str:
    """``fbjax/data/text/wordpiece.py -> data.text.wordpiece``; a package's ``__init__`` is the package."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(file): file for file in FILES}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str) -> str | None:
    """The layer of a module; None at the root of the package, which offers what lies anywhere."""
    return max((layer for layer in LAYERS if within(module, layer)), key=len, default=None)


@cache
def imports_of(module: str, *, at_import: bool = False) -> frozenset[str]:
    """What a module imports: our modules by their names here, of others the library. `at_import`: not what a function
    imports when it runs."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = list(ast.walk(tree))
    if at_import:
        inside = {id(n) for f in nodes if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        nodes = [node for node in nodes if id(node) not in inside]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if not within(name, "fbjax"):
                found.add(name.split(".")[0])
                continue
            ours = name.removeprefix("fbjax").lstrip(".")
            found.add(f"fbjax:{ours if ours in MODULES else ours.rpartition('.')[0]}")
    return frozenset(found)


def ours(module: str, **options) -> set[str]:
    return {name.removeprefix("fbjax:") for name in imports_of(module, **options) if name.startswith("fbjax:")}


@cache
def reached_by(module: str, packages: bool = True) -> frozenset[str]:
    """Every module of ours that importing `module` imports, with or without the packages that they lie in."""
    seen, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            parents = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
            parents = parents if packages else set()
            waiting += (ours(name, at_import=True) | parents) & MODULES.keys()
    return frozenset(seen)


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_packages_below_it(module):
    order, layer = list(LAYERS), layer_of(module)
    if layer is None:  # the public surface, and packages that hold packages alone
        holds_packages = MODULES[module].name == "__init__.py" and not ours(module)
        assert module in ("", "__main__") or holds_packages, f"{module} belongs to no layer: put it into a package"
        return
    for other in ours(module) - {""}:
        assert order.index(layer_of(other)) <= order.index(layer), f"{module} imports {other}, of a higher layer"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_packages(module):
    for library in imports_of(module):
        allowed = ONLY_IN.get(library)
        assert allowed is None or any(within(module, place) for place in allowed), f"{module} imports {library}"


PRINTS = ("core.console", "config.reference", "parallel.distributed")  # the last: from any thread, as it exits


@pytest.mark.parametrize("module", MODULES)
def test_what_a_terminal_shows_passes_through_the_console(module):
    calls = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
    names = {part.id for call in calls for part in (call.func, *call.args) if isinstance(part, ast.Name)}
    assert ("print" in names) == (module in PRINTS), f"{module}: use answer, say or complain of core.console"


@pytest.mark.parametrize("module", MODULES)
def test_a_package_reaches_no_library_that_it_must_not_know(module):
    for other in reached_by(module):
        libraries = {name.split(":")[0] for name in imports_of(other, at_import=True)}
        wrong = libraries & set(LAYERS.get(layer_of(module), ()))
        assert not wrong, f"{module} reaches {', '.join(wrong)} through {other}"


def test_no_circles():
    for module in MODULES:
        for other in ours(module, at_import=True) - {module, ""}:
            if within(other, module):  # a package that offers what its own modules hold
                continue
            assert module not in reached_by(other, packages=False), f"{module} and {other} import each other"


def test_every_rule_still_means_something():
    """A rule that no file falls under guards nothing."""
    for layer in LAYERS:
        assert any(layer_of(module) == layer for module in MODULES), f"no module lies in {layer}"
    for library, places in ONLY_IN.items():
        for place in places:
            users = [module for module in MODULES if within(module, place) and library in imports_of(module)]
            assert users, f"nothing in {place} imports {library}"


def test_files_and_packages_stay_small():
    assert {str(f): n for f in FILES if (n := len(f.read_text().splitlines())) > MAX_LINES} == {}
    folders = {file.parent for file in FILES}
    sizes = {str(folder): len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) for folder in folders}
    assert {folder: n for folder, n in sizes.items() if n > MAX_FILES} == {}
    assert {f.name for f in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_help_needs_no_heavy_import():
    code = "import sys, fbjax.cli.main; print([m for m in ('jax', 'tensorflow', 'flax', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


OUTSIDE = sorted(file for folder in ("launch", "configs") for file in (PACKAGE.parent / folder).glob("*.py"))


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: file.name)
def test_scripts_and_configs_import_what_is_there(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and within(node.module, "fbjax"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_public_name_is_there():
    import fbjax

    for name in fbjax.__all__:
        assert getattr(fbjax, name), name
    with pytest.raises(AttributeError, match="fbjax has no 'trian'"):
        fbjax.trian  # noqa: B018
