"""Python files that users write, configs and plugins: run from any folder, every fault of theirs told in one line."""

import contextlib
import importlib.util
import re
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

import ml_collections


class UnknownSetting(ValueError):
    """A setting that a config file reads and that there is not; `args` holds its last name alone and where that is."""


def module_at(path: Path) -> types.ModuleType:
    """The module that a .py file makes, in no package. Raises ValueError as `faults_told` does, or OSError."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not (spec and spec.loader):
        raise ValueError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    with faults_told(path):
        spec.loader.exec_module(module)
    return module


def config_of(path: Path) -> ml_collections.ConfigDict:
    """What ``get_config()`` of the file at `path` returns. Raises ValueError as `faults_told` does, or OSError."""
    with _importable(path.parent):
        module = module_at(path)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(f"{path} has no function get_config(): see configs/my_catalogue.py for one")
        with faults_told(path):
            config = module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{path}: get_config() returns {type(config).__name__}, not the settings that defaults() gave it (end it "
            "with return c)"
        )
    return config


@contextlib.contextmanager
def faults_told(path: Path) -> Iterator[None]:
    """For a block that runs the file at `path`: raises its exceptions as ValueError with file, line and fault.

    The line is the last one in the file's folder: a module beside the file, such as configs/common.py, may be at fault.
    Raises UnknownSetting where a setting is read that there is not.
    """
    try:
        yield
    except SyntaxError as error:
        where = _shown(error.filename or path, path) + (f" line {error.lineno}" if error.lineno else "")
        raise ValueError(f"{where} is not Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f"{_shown(f.filename, path)} line {f.lineno}" for f in frames if _is_beside(f.filename, path)]
        where, said = (own or [str(path)])[-1], " ".join(str(error).split())
        if isinstance(error, (AttributeError, KeyError)) and "ml_collections" in frames[-1].filename:
            name = re.search(r"['\"](\w+)['\"]", said)
            raise UnknownSetting(name[1] if name else said, where) from error
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{said}".rstrip(": ")) from error


def _is_beside(file: str | Path, path: Path) -> bool:
    return not str(file).startswith("<") and Path(file).absolute().parent == path.absolute().parent


def _shown(file: str | Path, path: Path) -> str:
    """`file` as the user wrote the path of its folder in `path`."""
    return str(path.with_name(Path(file).name) if _is_beside(file, path) else file)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules in a config file's folder, such as configs/common.py, importable by their names meanwhile."""
    names = {file.stem for file in folder.glob("*.py")}
    elsewhere = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(elsewhere)
