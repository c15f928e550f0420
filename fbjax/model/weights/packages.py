"""Weight files inside Python packages: found by the package's name, without importing its code."""

import dataclasses
import importlib.util
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that carries a weight file: its `name` in the index, the `file` in its module's folder, the command to
    `install` it."""

    name: str
    file: str
    install: str

    def path(self) -> Path:
        """The file. Raises ModuleNotFoundError with the way to install it, FileNotFoundError where it holds no such."""
        spec = importlib.util.find_spec(self.name.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"the package {self.name!r} is not installed: {self.install}")
        path = Path(next(iter(spec.submodule_search_locations))) / self.file
        if not path.is_file():
            raise FileNotFoundError(f"the package {self.name!r} has no file {self.file}: {self.install}")
        return path
