"""Names: registries of what has one, and what a misspelt one was meant to be.

A class or function in a new file of a package registers itself under a name. Use a registry as a decorator::

    BACKBONES = Registry("patch network", "fbjax.model.backbones")

    @BACKBONES.register("resnet50")
    class ResNet50: ...

A look-up first imports every module of the package. Modules elsewhere use the same decorator, and must be imported
before the look-up.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
CLOSE, VERY_CLOSE = 0.6, 0.8  # likenesses from which on one name is offered alone


class Registry(Mapping[str, T]):
    """``{name: thing}``, sorted by name; `kind` is a thing's name in messages, `package` holds the modules.

    An unknown name raises ValueError, in `get` too, with a message that lists the known ones.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a thing as `name`. Raises ValueError where `name` is taken."""

        def add(thing: T) -> T:
            if self._things.setdefault(name, thing) is not thing:
                raise ValueError(f"{self.kind} {name!r} is registered already, as {self._things[name]!r}: rename one")
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        known = self._all()
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"unknown {self.kind} {name!r}{meant(name, known)} (known: {listed})")
        return known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        """All things, after an import of every module of the package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        return self._things


def meant(name: object, known: Iterable[str], at_least: float = CLOSE) -> str:
    """ "; did you mean 'x'?" where the likeness of one of `known` to `name` is `at_least` that, else nothing.

    One of a very different length is not meant: 'id' is no misspelt 'kind'.
    """
    name = str(name)
    alike = [other for other in known if abs(len(other) - len(name)) <= max(1, len(name) // 3)]
    close = difflib.get_close_matches(name, alike, 1, at_least)
    return f"; did you mean {close[0]!r}?" if close else ""


def meant_or_nearest(name: str, known: Iterable[str]) -> str:
    """`meant` for a name of a long list: where none is very close, the three nearest."""
    known = list(known)
    return meant(name, known, VERY_CLOSE) or f" (the nearest are {', '.join(nearest(name, known))})"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` of `known` most like `name`, best first. Their last parts may be alike, or their initials be `name`:
    ``lr`` is near to ``train.learning_rate``."""
    return sorted(known, key=lambda other: -_likeness(name.lower(), other.lower()))[:count]


def _likeness(a: str, b: str) -> float:
    last_a, last_b = a.rpartition(".")[2], b.rpartition(".")[2]
    if last_a == "".join(word[:1] for word in last_b.split("_")):
        return 1.0
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((a, b), (last_a, last_b)))
