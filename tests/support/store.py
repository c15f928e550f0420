"""A store that gs:// leads to, in a folder: what etils' paths, logs and checkpoints' arrays ask is asked of files."""

import functools

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils
from tensorboard.summary import Writer

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
    """Until the test ends, gs://bucket is `folder`/bucket: to etils' paths, to logs and to checkpoints' arrays."""
    store = Store(folder)

    def inside(path: str) -> str:
        return path.replace("gs://", store.root)

    monkeypatch.setattr("fbjax.monitoring.logger.Writer", lambda path: Writer(inside(path)))
    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", lambda path: {"driver": "file", "path": inside(path)})
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setattr(backend, "tf_backend", store)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", frozenset([store]))
