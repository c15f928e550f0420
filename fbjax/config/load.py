"""Every setting, its default and its meaning: the only place where a default is written.

A config file's ``get_config()`` takes `defaults()`, a mutable `ml_collections.ConfigDict`, changes what it needs and
returns it; ``--config.field=value`` overrides it; `freeze` checks it as a whole. Past this module a config is frozen.
"""

import ast
import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import ml_collections

from fbjax.config.checks import contradictions
from fbjax.config.schema import FREE, PATHS, Config


def defaults() -> ml_collections.ConfigDict:
    """All settings with their defaults, to be changed in a config file."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """The config of a file's ``get_config()`` with ``section.field=value`` overrides applied, frozen and checked.

    Paths become absolute: a run can be taken up and evaluated from any folder.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; the project's own are in configs/")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config() function")
    config = module.get_config()
    for override in overrides:
        _apply(config, override)
    for name in PATHS:
        section, field = name.split(".")
        config[section][field] = absolute(config[section][field])
    return freeze(config)


def freeze(config: ml_collections.ConfigDict) -> Config:
    """The frozen form of `config`; every setting that contradicts another is reported in one error."""
    frozen = _build(Config, config.to_dict())
    problems = contradictions(frozen)
    if problems:
        raise ValueError("config:\n  " + "\n  ".join(problems))
    return frozen


def config_to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2)


def config_from_json(text: str) -> Config:
    return _build(Config, json.loads(text))


def difference(stored: str, given: Config) -> list[str]:
    """One line for each setting in which a config differs from JSON, or that this lacks, but for those in `FREE`."""
    old, new = _flat(json.loads(stored)), _flat(dataclasses.asdict(given))
    return [
        f"{name}: {repr(old[name]) if name in old else 'nothing'} in the workdir, {new[name]!r} given"
        for name in new
        if (name not in old or old[name] != new[name]) and name not in FREE
    ]


def _build(cls, values: dict):
    """An instance of the dataclass `cls` from nested dicts; lists become tuples."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = values.keys() - fields.keys()
    if unknown:
        raise ValueError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))} (there are: {', '.join(fields)})")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name].type):
            value = _build(fields[name].type, value)
        elif isinstance(value, list | tuple):
            value = tuple(value)
        built[name] = value
    return cls(**built)


def _apply(config: ml_collections.ConfigDict, override: str) -> None:
    """Sets one ``section.field=value``: a Python literal, or the string itself; ``a,b`` where strings are listed."""
    name, _, text = override.partition("=")
    *parents, field = name.split(".")
    node = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, ml_collections.ConfigDict) else None
    if not isinstance(node, ml_collections.ConfigDict) or field not in node:
        raise ValueError(f"no setting config.{name} (known: {', '.join(_flat(defaults().to_dict()))})")
    current = node[field]
    value = text
    if not isinstance(current, str):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, str):
        value = tuple(part.strip() for part in value.split(","))
    elif isinstance(current, tuple) and not isinstance(value, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    if isinstance(current, bool) and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    if type(value) is not type(current):
        raise ValueError(f"config.{name} expects {type(current).__name__}, such as {current!r}, not {text!r}")
    node[field] = value


def absolute(path: str) -> str:
    """A local path as an absolute one; "", URLs, "fashiongen:train", "train:8000" and "used" as they are."""
    return path if path in ("", "used") or ":" in path else os.path.abspath(path)


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}
