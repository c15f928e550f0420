"""A store that gs:// leads to, in a folder: what etils' paths ask of TensorFlow is asked of files there."""

import functools

from etils.epath import backend, gpath

ASKED = (
    *("open", "exists", "isdir", "listdir", "glob", "makedirs", "mkdir"),
    *("rmtree", "remove", "rename", "replace", "copy", "stat"),
)


class Store(backend._OsPathBackend):
    def __init__(self, folder):
        self.root = f"{folder}/"
        for name in ASKED:
            setattr(self, name, functools.partial(self._ask, getattr(super(), name)))

    def _ask(self, function, *paths, **options):
        paths = [str(path).replace("gs://", self.root) if not isinstance(path, bool) else path for path in paths]
        found = function(*paths, **options)
        return [name.replace(self.root, "gs://") for name in found] if function.__name__ == "glob" else found


def install(monkeypatch, folder):
    """Until the test ends, gs://bucket is `folder`/bucket to everything that goes by etils' paths."""
    store = Store(folder)
    monkeypatch.setattr(backend, "tf_backend", store)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", frozenset([store]))
