"""What a setting is: a field of a frozen dataclass with its default, its meaning and the values that it allows.

`setting` declares all of it at the field. `problems` checks values; `fbjax.config.reference` writes the page of all
settings.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from fbjax.core.registry import meant

INTERVALS = {"[1, inf)": "at least 1", "[0, inf)": "at least 0", "(0, inf)": "above 0", "(-inf, inf)": "finite"}
MAX_INT = 2**31 - 1  # of JAX's whole numbers


def setting(
    default: Any,
    about: str,
    interval: str = "",
    *,
    is_path: bool = False,
    or_name: bool = False,
    several: bool = False,
    may_change: bool = False,
) -> Any:
    """A field of a section of settings.

    `about`: its meaning. `interval`: where a number must lie, as "[0, 1)". `is_path`: a local path becomes absolute,
    but under `or_name` not a word without a separator and an ending, which names a package; `several`: so does each of
    several paths with + in between. `may_change`: a run may be resumed with another value, since it changes no result.
    """
    metadata = {"about": about, "interval": interval, "may_change": may_change}
    metadata |= {"is_path": is_path, "or_name": or_name, "several": several}
    return dataclasses.field(default=default, metadata=types.MappingProxyType(metadata))


def settings_of(section: Any) -> Iterator[dataclasses.Field]:
    """The fields of a section, a class or an instance, that are plain settings and no sections themselves."""
    return (field for field in dataclasses.fields(section) if "about" in field.metadata)


def choices(section: type, name: str) -> tuple[str, ...]:
    """The values that a field of type ``Literal[...]`` allows, () for any other."""
    kind = typing.get_type_hints(section)[name]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def problems(section: Any, prefix: str) -> list[str]:
    """One message for each value that its field does not allow; it names the value and what is allowed."""
    found = []
    for field in settings_of(section):
        name, value = f"{prefix}.{field.name}", getattr(section, field.name)
        known = choices(type(section), field.name)
        if known and value not in known:
            found.append(f"{name} {value!r} is unknown (use {' or '.join(map(repr, known))}){meant(value, known)}")
        interval = field.metadata["interval"]
        if type(value) is int and abs(value) > MAX_INT:
            found.append(f"{name} {value} must be at most {MAX_INT}")
        elif interval and not _lies_in(value, interval):
            found.append(f"{name} {value} must be {INTERVALS.get(interval, f'in {interval}')}")
    return found


def _lies_in(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below and not math.isnan(value)
