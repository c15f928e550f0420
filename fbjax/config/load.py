"""Configs are files: found, read, overridden, checked and frozen here. Past this module a config is frozen.

A config file's ``get_config()`` takes `defaults()`, a mutable `ml_collections.ConfigDict`, changes what it needs and
returns it; ``--config.field=value`` overrides it.
"""

import ast
import contextlib
import dataclasses
import importlib
import json
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

import fbjax
from fbjax.config.checks import contradictions, out_of_range
from fbjax.config.python_files import UnknownSetting, config_of, faults_told, module_at
from fbjax.config.renamed import RENAMED
from fbjax.config.schema import PAPER_TASKS, TASKS, Config, ParameterGroup
from fbjax.core.registry import meant, meant_or_nearest

PACKAGED = [Path(fbjax.__file__).parent / "configs", Path(fbjax.__file__).parents[1] / "configs"]  # installed, cloned
NEEDED = ("data", "patches", "model", "tasks", "train")  # sections that every version of a run's config has
REPLACE = "put a copy of the file there, or train in another --workdir"
SHARED = ("common",)  # not a config: what configs are made of


def defaults() -> ml_collections.ConfigDict:
    """All settings with their defaults and the paper's three tasks, to be changed in a config file."""
    return _mutable(Config(tasks={name: TASKS[name]() for name in PAPER_TASKS}))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a .py file, of a workdir's config.json, or of a packaged one by its name; checked.

    `overrides`: ``section.field=value``. Paths become absolute: a run can be resumed and evaluated from any folder.
    Raises FileNotFoundError or ValueError.
    """
    config = _read(find_config(path))
    for override in sorted(overrides, key=lambda override: not override.startswith("tasks=")):
        config = _overridden(config, override)
    return freeze(config)


def _read(path: Path) -> ml_collections.ConfigDict:
    """What the file at `path` makes of the defaults, with every setting of the tasks and groups that it only names."""
    try:
        values = read_values(path) if path.suffix == ".json" else config_of(path).to_dict()
    except UnknownSetting as error:
        name, where = error.args
        raise ValueError(f"{where}: {_no_such_setting(name)}") from error
    try:
        import_plugins(_typed("plugins", values.get("plugins", ()), ()))
        return _mutable(build(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_config(path: str | Path) -> Path:
    """The file at `path`, else the packaged config of that name: ``my_catalogue`` or ``configs/my_catalogue.py``."""
    path = Path(path)
    if path.is_file():
        return path
    by_name = path.suffix in ("", ".py") and str(path.parent) in (".", "configs")
    for folder in PACKAGED if by_name else ():
        if (folder / f"{path.stem}.py").is_file():
            return folder / f"{path.stem}.py"
    if path.is_dir():
        raise IsADirectoryError(f"--config {path} is a folder: give a .py file, or the name of a packaged config")
    known = packaged_configs()
    raise FileNotFoundError(
        f"no config file {path}{meant(path.stem, known)} (packaged, to be had by name: {', '.join(known)})"
    )


def packaged_configs() -> list[str]:
    """Names of the project's own configs."""
    files = next((sorted(folder.glob("*.py")) for folder in PACKAGED if folder.is_dir()), [])
    return [file.stem for file in files if file.stem not in SHARED]


def freeze(config: ml_collections.ConfigDict) -> Config:
    """The frozen form of `config`; every setting that contradicts another is reported in one error."""
    frozen = _absolute(build(config.to_dict()))
    if problems := contradictions(frozen):
        raise ValueError(f"config.{problems[0]}" if len(problems) == 1 else "\n  ".join(["config:", *problems]))
    return frozen


def build(values: dict) -> Config:
    """The frozen form of nested dicts, unchecked but for names and types. What they lack has its default."""
    tasks, groups = (_section(values.get(name, {}), name) for name in ("tasks", "groups"))
    tasks = {name: _build(_task(name), tasks[name], f"tasks.{name}") for name in sorted(tasks)}
    groups = {name: _build(ParameterGroup, group, f"groups.{name}") for name, group in groups.items()}
    rest = {name: value for name, value in values.items() if name not in ("tasks", "groups")}
    return dataclasses.replace(_build(Config, rest, ""), tasks=tasks, groups=groups)


def config_to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2)


def config_from_json(text: str) -> Config:
    """The config that `config_to_json` gave as `text`. Raises ValueError where it is none of this version."""
    return _from_values(_section(json.loads(text), ""))


def read_config(path: Path) -> Config:
    """The config that a run keeps at `path`, as `config_to_json` gave it. Raises ValueError as `read_values` does."""
    values = read_values(path)
    try:
        return _from_values(values)
    except ValueError as error:
        raise ValueError(f"{path} is no config of this version of fbjax: {error} ({REPLACE})") from error


def read_values(path: Path) -> dict:
    """What the JSON at `path` says of each setting. Raises ValueError, with a remedy, where it is no JSON of them."""
    try:
        return _section(json.loads(path.read_text(encoding="utf-8")), "")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error} ({REPLACE})") from error


def _from_values(values: dict) -> Config:
    if lacking := [name for name in NEEDED if name not in values]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    import_plugins(_typed("plugins", values.get("plugins", []), []))
    config = build(values)
    if wrong := out_of_range(config):
        raise ValueError(f"config.{wrong[0]}")
    return config


def difference(stored: dict, given: Config) -> list[str]:
    """One line for each setting in which a config differs from `read_values`, or that this lacks, but for those that
    may."""
    old, new = flat(stored), flat(dataclasses.asdict(given))
    names = dict.fromkeys([*new, *(name for name in old if name.startswith(("tasks.", "groups.")))])
    free = {name for name, field in fields_of(given) if field.metadata["may_change"]}
    return [
        f"{name}: {repr(old[name]) if name in old else 'nothing'} in the workdir, "
        f"{repr(new[name]) if name in new else 'nothing'} given"
        for name in names
        if (name not in old or name not in new or old[name] != new[name]) and name not in free
    ]


def fields_of(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted name, field) of every setting below `section`, an instance."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        elif isinstance(value, dict):
            for key, part in value.items():
                yield from fields_of(part, f"{prefix}{field.name}.{key}.")
        elif "about" in field.metadata:
            yield prefix + field.name, field


def flat(values: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict of dotted names; tuples become lists, as JSON has them."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def absolute(path: str) -> str:
    """A local path as an absolute one; "", URLs, "fashiongen:train", "train:8000" and "used" as they are."""
    return path if path in ("", "used") or ":" in path else os.path.abspath(path)


def import_plugins(plugins: Sequence[str]) -> None:
    """Imports modules, by name or by the path of a .py file, that register tasks, backbones or sources."""
    for name in plugins:
        if not name.endswith(".py"):
            with faults_told(Path(name)):
                importlib.import_module(name)
        elif (key := f"fbjax_plugin:{os.path.abspath(name)}") not in sys.modules:
            sys.modules[key] = module_at(Path(name))


def _mutable(config: Config) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def _absolute(section: Any) -> Any:
    """`section` with local paths made absolute."""
    changed = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _absolute(value)
        elif field.metadata.get("is_path"):
            changed[field.name] = _absolute_paths(value, field.metadata)
        elif field.name == "tasks":
            changed[field.name] = {name: _absolute(task) for name, task in value.items()}
        elif field.name == "plugins":
            changed[field.name] = tuple(absolute(name) if name.endswith(".py") else name for name in value)
    return dataclasses.replace(section, **changed)


def _absolute_paths(value: str, metadata: Mapping) -> str:
    """`absolute` of a path; of each where several may stand with + in between, names of packages as they are."""
    exists = os.path.isfile if metadata["or_name"] else os.path.exists
    if exists(value) or not (metadata["or_name"] or metadata["several"]):
        return absolute(value)
    is_name = re.compile(r"[\w-]+" if metadata["or_name"] else "")
    return "+".join(part if is_name.fullmatch(part) else absolute(part) for part in value.split("+"))


def _task(name: str) -> type:
    if name not in TASKS:
        raise ValueError(f"no task {name!r}{meant(name, TASKS)} (there are {', '.join(TASKS)})")
    return TASKS[name]


def _build(cls: type, values: dict, prefix: str) -> Any:
    """An instance of the dataclass `cls` from nested dicts; lists become tuples, and whole numbers floats."""
    fields, hints = {field.name: field for field in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    built = {}
    for name, value in _section(values, prefix).items():
        dotted = f"{prefix}.{name}".lstrip(".")
        if name not in fields:
            raise ValueError(_unknown(dotted, [f"{prefix}.{known}".lstrip(".") for known in fields]))
        if dataclasses.is_dataclass(hints[name]):
            built[name] = _build(hints[name], value, dotted)
        else:
            built[name] = _typed(dotted, value, getattr(cls, name, None))
            _check_parts(dotted, built[name], typing.get_args(hints[name]))
    return cls(**built)


def _section(values: Any, name: str) -> dict:
    """`values`, which must be settings by their names, else ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"{f'config.{name}' if name else 'it'} holds settings by their names, not {values!r}")
    return values


def _typed(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`, or ValueError."""
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"config.{name} expects {type(default).__name__}, such as {default!r}, not {value!r}")
    return value


def _check_parts(name: str, value: Any, kinds: tuple) -> None:
    """Raises ValueError where a part of a tuple is not of the first of `kinds`."""
    for part in value if isinstance(value, tuple) else ():
        if type(part) is not kinds[0]:
            raise ValueError(f"config.{name} expects {kinds[0].__name__} only, not {part!r}")


def _overridden(config: ml_collections.ConfigDict, override: str) -> ml_collections.ConfigDict:
    """`config` with one ``section.field=value``: a Python literal, or the string itself; ``a,b`` where strings are
    listed. ``tasks=mlm,tia`` names the tasks and keeps the settings of those that the config has."""
    name, _, text = override.partition("=")
    values = config.to_dict()
    if name == "tasks":
        wanted = [part.strip() for part in text.split(",") if part.strip()]
        return _mutable(build(values | {"tasks": {task: values["tasks"].get(task, {}) for task in wanted}}))
    *parents, field = name.split(".")
    if len(parents) == 2 and parents[0] == "groups":
        values["groups"].setdefault(parents[1], dataclasses.asdict(ParameterGroup()))
    node: Any = values
    for parent in parents:
        node = node.get(parent, {}) if isinstance(node, dict) else {}
    if field not in node or isinstance(node[field], dict):
        raise ValueError(_unknown(name, flat(values)))
    node[field] = _typed(name, _parsed(text, node[field]), node[field])
    if name == "plugins":
        import_plugins(node[field])
    return ml_collections.ConfigDict(values)


def _parsed(text: str, current: Any) -> Any:
    """The value that `text` writes for a setting whose value is `current`."""
    value: Any = text
    if not isinstance(current, str):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
    if isinstance(current, tuple) and isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    if isinstance(current, tuple) and not isinstance(value, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    if isinstance(current, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return value


def _unknown(name: str, known: typing.Collection[str]) -> str:
    """What to say of a setting that there is not: its new name, the one that was meant, or the nearest."""
    if name in RENAMED:
        return f"config.{name} {RENAMED[name]}"
    section, _, rest = name.partition(".")
    task = rest.split(".")[0]
    if section == "tasks" and _task(task) and not any(other.startswith(f"tasks.{task}.") for other in known):
        return f"config.{name}: this config has no task {task!r} (name all that it has in config.tasks)"
    return f"no setting config.{name}{meant_or_nearest(name, known)}"


def _no_such_setting(field: str) -> str:
    """The same of a setting whose last name alone is known."""
    if old := [f"config.{name} {told}" for name, told in RENAMED.items() if name.split(".")[-1] == field]:
        return "; ".join(old)
    return f"no setting {field!r}" + meant_or_nearest(field, flat(defaults().to_dict()))
