"""The command as a newcomer types it: every example of every verb, in their order, and help that answers at once."""

import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import pytest

from fbjax.cli.main import VERBS, main
from fbjax.data.sources import release
from tests.support import release_files
from tests.support.runs import CONFIG_FILE
from tests.support.tables import encode, make_products, write_csv

RESULTS = {  # a pattern that shows on stdout, or a file that is there afterwards
    "draw": ["drawn/train.parquet", "drawn/validation.parquet", r"1,000 products"]
    + ["garments/fashiongen_256_256_train.h5", "garments/fashiongen_256_256_validation.h5"],
    "prepare": ["prepared", r"config.data.columns.text", r"train: \d+ products"],
    "train": ["runs/mine/config.json"],
    "candidates": ["lists.jsonl.json", r"sha256: [0-9a-f]{64}", r"written: train-lists.jsonl"],
    "evaluate": ["metrics.json", r"Rank@1 \d", r"miscounted on purpose", r"5 drawings", r"6 queries of 4 candidates"]
    + [r"2 queries, 96 products"],
    "compare": ["comparison.json", r"cannot be told apart on these \d+ queries"],
    "baseline": [r"Rank@1 \d"],
    "probe": [r"category: 4 labels", r"macro f1 \d"],
    "legacy": ["legacy.json", r"legacy: 3 keys of 2 queries"],
    "rank": ["ranking.html", r"best \d+ of \d+ products"],
    "embed": ["vectors.npz", "images.npz", r"vectors: images.npz"],
    "export": ["exported/model.safetensors", r"exported: step \d+ as hf"],
    "import": ["runs/back/checkpoints/0", r"imported: runs/back"],
    "report": ["runs/mine/report.html"],
    "bench": [r'"memory"'],
    "plan": [r"local: 8 x cpu", r"v5e:4x4: 16 x TPU v5 lite", r"\d ms, [\d.]+ if all overlaps"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trains_on_one_device):
    """What the examples speak of: a template, a table with images, a photograph, scores of another program."""
    folder = tmp_path_factory.mktemp("shop")
    products = make_products(96)
    write_csv(folder / "products.csv", products)
    (folder / "photo.jpg").write_bytes(encode(products[0]["image"], "JPEG"))
    lists = release_files.prediction_rows(num_queries=6, num_candidates=4, num_patches=16, feature_size=48)
    release.write(folder / "eval.tsv", lists, release.PREDICTION)
    asked = [{"query": p["title"], "relevant": [p["id"]]} for p in products[:2]]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in asked))
    (folder / "scores.tsv").write_text("a\t1\t0.9\na\t0\t0.1\nb\t1\t0.2\nb\t0\t0.3\n")
    (folder / "configs").mkdir()
    template = CONFIG_FILE.format(train="", validation="", prepared="prepared")
    settings = 'c.data.holdout, c.tasks = 0.3, {"tia": {}, "itc": {"embedding_dim": 16}}; c.adaptive.method = "fixed"'
    for name in ("my_catalogue", "my_fashionbert"):
        (folder / "configs" / f"{name}.py").write_text(template.replace("return c", f"{settings}; return c"))
    yield folder
    shutil.rmtree(folder)


COMPILING = ("bench", "plan")


@pytest.mark.parametrize("verb", [pytest.param(v, marks=[pytest.mark.slow] * (v in COMPILING)) for v in VERBS])
def test_every_example_in_the_help_runs(verb, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    if verb == "compare":
        shutil.copytree("runs/mine", "runs/other")
    for example in VERBS[verb].examples:
        assert example in shown
        assert main(shlex.split(example)[1:]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    for result in RESULTS[verb]:
        assert (folder / result).exists() or re.search(result, printed), f"{result} not in {printed}"
    if verb == "bench":
        json.loads(printed)


def test_the_examples_cover_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = re.findall(r"^    (\w+)\s", capsys.readouterr().out, flags=re.MULTILINE)
    assert verbs == list(VERBS) and sorted(verbs) == sorted(RESULTS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_of_every_flag_whether_it_is_required_or_its_default(verb):
    for name, options in VERBS[verb].flags:
        assert not name.startswith("--") or re.search(r"\((required|default: .+)\)$", options["help"]), name


def test_help_answers_in_half_a_second():
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fbjax", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["rank", "--workdir", "w"], "a text or an image"),
        (["rank", "--workdir", "nowhere", "--text", "red"], "nowhere is no workdir"),
        (["prepare"], "--config FILE, or --check TABLE"),
        (["prepare", "--check", "nothing.csv"], "no table at"),
        (["report", "--workdir", "nowhere"], "nowhere is no workdir"),
        (["draw", "--out", "drawn", "--products", "3"], "3"),
        (["rank", "--workdir", "w", "--text", "red", "--html", "no/such/folder/x.html"], "no/such/folder/x.html"),
        (["train", "--config", "c.py", "--workdir", "w", "--steps=3"], "unknown argument --steps=3"),
        (["trian"], "unknown verb trian: did you mean train?"),
        (["train", "--confg", "c.py", "--workdir", "w"], "unknown argument --confg: did you mean --config?"),
        (["train", "--confg.data.train=x", "--workdir", "w"], "did you mean --config?"),
        (["train", "--num_proceses=2"], "unknown argument --num_proceses=2: did you mean --num-processes?"),
        (["rank", "--workdir", "w", "--config.data.train=x"], "unknown argument --config.data.train=x"),
        (["prepare", "--check", "t.csv", "--config.data.train=x"], "--config.data.train=x needs --config FILE"),
        (["prepare", "--check", "t.csv", "--beam_options=x"], "--beam-options x needs --beam"),
        (["prepare", "--check", "t.csv", "--beam-options=x"], "--beam-options x needs --beam"),
        (["legacy", "scores.tsv", "more.tsv"], "unknown argument more.tsv"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and len(printed.err.splitlines()) == 1
