"""Cached patch features: equal to the network's, continued after an interruption, warned about where they are dead."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model.patch_features import build_patch_network
from fbjax.runs.feature_cache import cached_features, describe
from tests.support.runs import tiny_config

SIZE = 32


@pytest.fixture(scope="module")
def records_and_network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    config = tiny_config(folder)
    vocabulary = Vocabulary.train(["red dress bag"], 100)
    records = build_records(
        open_source(config.data, config.patches.image_size), vocabulary, folder, lambda rows, total, label: rows
    )["train"]
    return records, build_patch_network(config.patches)


def run(records, network, folder, stop_after=None):
    seen = []

    def progress(batches, total, label):
        for batch in batches:
            if len(seen) == stop_after:
                raise KeyboardInterrupt
            seen.append(len(batch))
            yield batch

    return cached_features(records, network, SIZE, folder, progress, batch_size=5), seen


def test_interrupted_extraction_goes_on_and_gives_the_networks_features(
    records_and_network, tmp_path, monkeypatch, capsys
):
    records, network = records_and_network
    monkeypatch.setattr("fbjax.runs.feature_cache.FLUSH_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(records, network, tmp_path, stop_after=7)
    features, seen = run(records, network, tmp_path)
    assert sum(seen) == 48 - 7 * 5
    images = next(records.images(np.arange(48), SIZE, 48))
    np.testing.assert_allclose(features, np.asarray(network.apply({}, images)), atol=1e-3)
    said = "48 images x 16 x 48 x 2 bytes = 0.00 GiB"
    assert capsys.readouterr().err.count(said) == 2  # before each of the two passes, and not where all lies ready
    assert run(records, network, tmp_path)[1] == [] and said not in capsys.readouterr().err


def test_two_runs_that_want_the_same_features_at_once_compute_them_once(records_and_network, tmp_path):
    records, network = records_and_network
    with ThreadPoolExecutor(2) as pool:
        (ours, seen), (theirs, also_seen) = pool.map(lambda _: run(records, network, tmp_path), range(2))
    assert sum(seen) + sum(also_seen) == 48
    np.testing.assert_array_equal(ours, theirs)


def test_dead_dimensions_are_counted_and_warned_about():
    rng = np.random.default_rng(0)
    features = np.zeros((10, 4, 50), np.float16)
    features[..., :4] = rng.uniform(size=(10, 4, 4))
    assert "50 dimensions, 4 of them live" in describe(features) and "WARNING" in describe(features)
    features[..., :6] = rng.uniform(size=(10, 4, 6))
    assert "WARNING" not in describe(features)


def test_a_disk_without_room_is_an_error_before_the_work(records_and_network, small_disk):
    records, network = records_and_network
    (small_disk / "filler").write_bytes(b"x" * (2 * 2**20 - 2**15))
    with pytest.raises(OSError, match="no room for 0.00 GiB of patch features"):
        run(records, network, small_disk)
    left = [path.name for path in small_disk.iterdir() if path.suffix != ".lock"]
    assert left == ["filler"]
