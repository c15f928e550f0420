"""Registries: a class or function in a new file of a package registers itself under a name.

Use it as a decorator::

    BACKBONES = Registry("patch network", "fbjax.model.backbones")

    @BACKBONES.register("resnet50")
    class ResNet50: ...

A look-up first imports every module of the package. Modules elsewhere use the same decorator, and must be imported
before the look-up.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


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
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown {self.kind} {name!r}{hint}; known: {', '.join(sorted(known)) or 'none'}")
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
