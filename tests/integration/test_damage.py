"""What a disk does to files: a flipped bit, a cut or a missing file is refused in one line, or changes nothing."""

import random
import shutil

import numpy as np
import pytest

from fbjax.cli.main import USER_ERRORS
from fbjax.config.load import load_config
from fbjax.core.checksums import damage, write_sums
from fbjax.data.arrays.reader import open_arrays
from fbjax.data.arrays.writer import write_arrays
from fbjax.data.records.builder import build_records
from fbjax.data.sources.base import open_source
from fbjax.runs.feature_cache import cached_features
from fbjax.runs.run import Run
from fbjax.runs.stored_evaluation import read_evaluation, write_evaluation
from fbjax.runs.vocabulary import make_vocabulary
from tests.support.runs import write_config, write_mobilenet

QUIET = lambda rows, *_: rows  # noqa: E731


def prepared(config):
    vocabulary = make_vocabulary(config, lambda _: None)
    source = open_source(config.data, config.patches.image_size)
    return vocabulary, build_records(source, vocabulary, config.data.prepared, QUIET)


def everything(split):
    rows = np.arange(len(split))
    pieces = [(p.tolist(), w.tolist()) for p, w in split.pieces(rows)]
    images = np.concatenate([*split.images(rows, 32, 16)]).tobytes()
    return split.digests, split.report(), split.strings(rows), pieces, images, split.products([0, len(split) - 1])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{what: (its folder, a function that reads all of it)}."""
    folder = tmp_path_factory.mktemp("damaged")
    write_mobilenet(folder / "mobilenet.npz")
    config = load_config(write_config(folder), ["patches.mode=cached", "patches.network=mobilenet_v1"]
                         + [f"patches.weights={folder / 'mobilenet.npz'}", "patches.patch_input_size=32"])  # fmt: skip
    vocabulary, splits = prepared(config)
    write_arrays(config, splits, vocabulary, folder / "arrays", QUIET)
    with_arrays = load_config(folder / "tiny.py", [f"data.arrays={folder / 'arrays'}"])
    network = Run.build(config, vocabulary, None).patches
    home, cache = splits["train"].home, folder / "features"

    def read_records():
        vocabulary, splits = prepared(config)
        return vocabulary.rows, [everything(split) for split in splits.values()]

    def read_features():
        return cached_features(splits["train"], network, 32, cache, QUIET).tobytes()

    read_features()
    return {
        "records": (home, read_records),
        "vocabulary": (home.parents[2], read_records),
        "features": (cache, read_features),
        "arrays": (folder / "arrays", lambda: [everything(s) for s in open_arrays(with_arrays, vocabulary).values()]),
    }


@pytest.mark.parametrize("flips", [12, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["records", "vocabulary", "features", "arrays"])
def test_a_flipped_bit_is_refused_or_harmless(places, what, flips):
    folder, read = places[what]
    chance, refused, before = random.Random(0), 0, read()
    recursive = what == "arrays"
    files = [p for p in sorted(folder.rglob("*") if recursive else folder.iterdir()) if p.is_file()]
    files = [path for path in files if path.stat().st_size and path.suffix != ".lock"]
    for _ in range(flips):
        path = chance.choice(files)
        whole = path.read_bytes()
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            assert read() == before, f"{path} byte {place} bit {bit}: read as it is"
        except USER_ERRORS as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error), error
            assert "delete" in str(error) or "copy" in str(error) or "writes a folder" in str(error), error
        path.write_bytes(whole)
    assert refused > flips / 4
    assert read() == before


def test_an_evaluation_that_was_cut_says_how_to_make_it_anew(tmp_path):
    write_evaluation(tmp_path, {"figures": {}})
    (tmp_path / "evaluation.json").write_text('{"figures": {')
    with pytest.raises(ValueError, match="evaluation.json is damaged .*: delete it, fbjax evaluate writes it anew"):
        read_evaluation(tmp_path)


def test_checksums_find_what_is_missing_changed_or_cut(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a b", "inner/ä"):
        (tmp_path / name).write_text(name)
    assert damage(tmp_path) == ""  # nothing is noted yet
    write_sums(tmp_path)
    assert damage(tmp_path) == ""
    if shutil.which("sha256sum"):
        import subprocess

        subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "a b").write_text("a c")
    assert damage(tmp_path) == "a b is not as it was written" and damage(tmp_path, ["inner/ä"]) == ""
    (tmp_path / "inner/ä").unlink()
    assert damage(tmp_path, ["inner/ä"]) == "inner/ä is missing"
    (tmp_path / "SHA256SUMS").write_text("")
    assert damage(tmp_path) == "SHA256SUMS is cut"
