"""The command as a newcomer types it: every example of every verb, in their order, and help that answers at once."""

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fbjax.cli.main import VERBS, _parser, main
from fbjax.core.console import visible
from fbjax.data.sources import release
from fbjax.data.sources.base import Product
from fbjax.inference.rank import Ranking
from tests.support import clips, release_files
from tests.support.runs import CONFIG_FILE
from tests.support.tables import encode, make_products, write_csv

RESULTS = {  # a pattern that shows on stdout, or a file that is there afterwards
    "draw": ["drawn/train.parquet", "drawn/validation.parquet", r"1,000 products"]
    + ["garments/fashiongen_256_256_train.h5", "garments/fashiongen_256_256_validation.h5"],
    "draw-log": ["clicks.parquet", r"synthetic log, seed 0: \d+ events of train products"],
    "prepare": ["prepared", r"config.data.columns.text", r"train: \d+ products"],
    "train": ["runs/mine/config.json"],
    "candidates": ["lists.jsonl.json", r"sha256: [0-9a-f]{64}", r"written: train-lists.jsonl"],
    "evaluate": ["metrics.json", r"Rank@1 \d", r"miscounted on purpose", r"5 drawings", r"6 queries of 4 candidates"]
    + [r"2 queries, 96 products", r"marqo's benchmark over 96 products"],
    "compare": ["comparison.json", r"cannot be told apart on these \d+ queries"],
    "baseline": [r"Rank@1 \d"],
    "probe": [r"category: 4 labels", r"macro f1 \d"],
    "legacy": ["legacy.json", r"legacy: 3 keys of 2 queries"],
    "rank": ["ranking.html", r"best \d+ of \d+ products"],
    "explain": ["why.html", r"patches, from the top left, in hundredths", r"picture and text in colours: why.html"]
    + [r'"word_patches": \['],
    "caption": [r'^.*\n\{"image": "photo.jpg", "caption": "'],
    "embed": ["vectors.npz", "vectors.parquet", "vectors-00000-of-00004/product.npy", r"vectors: vectors.parquet"],
    "index": ["index/milvus.db", r"96 products in the index at index"],
    "search": ["found.html", r"scores: sums of 1 / \(60 \+ rank\)", r"scores: cosines of vectors"],
    "serve": [r"search page: http://127.0.0.1:8000/"],
    "export": ["exported/model.safetensors", r"exported: step \d+ as hf"],
    "import": ["runs/back/checkpoints/0", r"imported: runs/back", r"imported: runs/clip"],
    "interpolate": ["runs/between/checkpoints/0", "runs/path/0.75/config.json", r"interpolated: runs/path/0.25; next"],
    "report": ["runs/mine/report.html"],
    "bench": [r'"memory"'],
    "plan": [r"local: 8 x cpu", r"v5e:4x4: 16 x TPU v5 lite", r"\d ms, [\d.]+ if all overlaps"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trains_on_one_device):
    """What the examples speak of: a template, a table with images, a photograph, scores of another program."""
    folder = tmp_path_factory.mktemp("shop")
    products = [p | {"colour": p["title"].split()[0], "price": 20} for p in make_products(96)]
    products[0]["id"] = "1234"
    write_csv(folder / "products.csv", products, more=("colour", "price"))
    (folder / "photo.jpg").write_bytes(encode(products[0]["image"], "JPEG"))
    lists = release_files.prediction_rows(num_queries=6, num_candidates=4, num_patches=16, feature_size=48)
    release.write(folder / "eval.tsv", lists, release.PREDICTION)
    asked = [{"query": p["title"], "relevant": [p["id"]]} for p in products[:2]]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in asked))
    clicks = [f"{p['title']} now,{p['id']}" for p in products]
    (folder / "clicks.csv").write_text("\n".join(["query,product", *clicks]))
    (folder / "scores.tsv").write_text("a\t1\t0.9\na\t0\t0.1\nb\t1\t0.2\nb\t0\t0.3\n")
    clips.write_hugging_face_clip(folder / "clip-vit-base-patch16")
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
    monkeypatch.setattr("fbjax.training.loop.doubts", lambda last, size, config: f"{size} {sorted(last)}")
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    if verb in ("compare", "interpolate"):
        shutil.copytree("runs/mine", "runs/other" if verb == "compare" else "runs/tuned")
    if verb == "caption":
        train = "train --config configs/my_catalogue.py --workdir runs/captions --config.data.train=products.csv"
        assert main([*train.split(), "--config.tasks=caption,tia", "--config.model.num_layers=1"]) == 0
    for example in VERBS[verb].examples:
        assert example in shown
        assert main(shlex.split(example)[1:]) == 0, capsys.readouterr().err
    printed, said = capsys.readouterr()
    for result in RESULTS[verb]:
        assert (folder / result).exists() or re.search(result, printed), f"{result} not in {printed}"
    if verb == "train":
        assert re.search(r"NOTE: 16 \[.*'tia/loss'.*'validation/auc'", said)
    if verb == "bench":
        json.loads((folder / "bench.json").read_text())


def test_the_examples_cover_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = re.findall(r"^    ([\w-]+)\s", capsys.readouterr().out, flags=re.MULTILINE)
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
        (["explain", "--workdir", "w", "--text", "red"], "a text and an image; --id of a product stands in"),
        (["prepare"], "--config FILE, or --check TABLE"),
        (["prepare", "--check", "nothing.csv"], "no table at"),
        (["report", "--workdir", "nowhere"], "nowhere is no workdir"),
        (["draw", "--out", "drawn", "--products", "3"], "3"),
        (["rank", "--workdir", "w", "--text", "red", "--html", "no/such/folder/x.html"], "no/such/folder/x.html"),
        (["train", "--config", "c.py", "--workdir", "w", "--steps=3"], "unknown argument --steps=3"),
        (["trian"], "unknown verb trian; did you mean 'train'?"),
        (["train", "--confg", "c.py", "--workdir", "w"], "unknown argument --confg; did you mean '--config'?"),
        (["train", "--confg.data.train=x", "--workdir", "w"], "did you mean '--config'?"),
        (["train", "--num_proceses=2"], "unknown argument --num_proceses=2; did you mean '--num-processes'?"),
        (["rank", "--workdir", "w", "--config.data.train=x"], "unknown argument --config.data.train=x"),
        (["prepare", "--check", "t.csv", "--config.data.train=x"], "--config.data.train=x needs --config FILE"),
        (["prepare", "--check", "t.csv", "--beam_options=x"], "--beam-options x needs --beam"),
        (["prepare", "--check", "t.csv", "--beam-options=x"], "--beam-options x needs --beam"),
        (["legacy", "scores.tsv", "more.tsv"], "unknown argument more.tsv"),
        ([], "arguments are required: VERB (see fbjax --help)"),
        (["--workdir", "w"], "unknown argument --workdir: begin with a verb"),
        (["rank"], "required: --workdir (see fbjax rank --help)"),
        (["rank", "--workdir"], "--workdir: expected one argument"),
        (["rank", "--workdir", "", "--text", "a"], "--workdir '': give a value"),
        (["rank", "--workdir", "w", "--text", " "], "--text ' ': give a value"),
        (["train", "--config", "", "--workdir", "w"], "--config '': give a value"),
        (["evaluate", "--workdir", "w", "--data", "a.csv", ""], "--data '': give a value"),
        (
            ["rank", "--workdir", "w", "--text", "a", "--top", "0"],
            "--top 0: give a whole number from 1 to 2147",
        ),
        (["rank", "--workdir", "w", "--text", "a", "--step", "-1"], "--step -1: give a whole number from 0"),
        (["rank", "--workdir", "w", "--text", "a", "--top", ""], "--top '': give a whole number"),
        (["evaluate", "--workdir", "w", "--queries", "1e3"], "--queries 1e3: give a whole number from 1"),
        (["evaluate", "--workdir", "w", "--correct-hubs", str(10**40)], "--correct-hubs 1000"),
        (["baseline", "cca", "--config", "quickstart", "--ridge", "nan"], "--ridge nan: give a number above 0"),
        (["baseline", "nope", "--config", "c.py"], "family: invalid choice: 'nope'"),
        (
            ["embed", "--workdir", "w", "--out", "v.npz", "--what", "both,text"],
            "--what 'both' is unknown (use text, image, product)",
        ),
        (["embed", "--workdir", "w", "--out", "no/v.npz"], "--out 'no/v.npz': give a file in an existing folder"),
        (["embed", "--workdir", "w", "--out", "/proc/v.npz"], "--out '/proc/v.npz': /proc takes no file"),
        (["bench", "--trace", "/dev/null"], "--trace '/dev/null': /dev/null is a file; give a folder"),
        (["draw", "--out", "/dev/null/x"], "--out '/dev/null/x': /dev/null is a file; give a folder"),
        (["baseline", "cca", "--config", "quickstart", "--workdir", "/proc/b"], "--workdir '/proc/b': /proc takes no"),
        (["rank", "--workdir", "w", "--image", "nowhere.jpg"], "no image file nowhere.jpg"),
        (["prepare", "--check", "."], ". holds neither a table"),
        (["prepare", "--config", "."], "--config . is a folder"),
        (
            ["prepare", "--config", "quickstart", "--config.train.batch_size=-8"],
            "config.train.batch_size -8 must be",
        ),
        (["prepare", "--config", "quickstart", "--config.groups.x=3"], "no setting config.groups.x"),
        (["prepare", "--config", "quickstart", "--config.=3"], "no setting config. "),
        (["legacy", "."], "no scores at ."),
        (["rank", "--workdir", "w\x1b[31m\u202e\r", "--text", "a"], r"w\x1b[31m\u202e\r is no workdir"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and len(printed.err.splitlines()) == 1


def test_a_traceback_is_printed_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("FBJAX_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no config file nowhere"):
        main(["prepare", "--config", "nowhere"])


def test_an_error_of_a_store_is_one_line(monkeypatch, capsys):
    denied = type("Denied", (Exception,), {"__module__": "google.cloud.exceptions"})
    monkeypatch.setattr("fbjax.data.inspection.check.check", Mock(side_effect=denied("no access to gs://b")))
    assert main(["prepare", "--check", "gs://b/x.csv"]) == 1
    assert capsys.readouterr().err == "fbjax: no access to gs://b\n"


OBEYED = "\x00\x07\x08\r\x1b\x7f\x85\x9b\u2028\u202e\u2066"


@given(st.text(st.characters(exclude_characters=OBEYED, exclude_categories=["Cc", "Cs"])), st.sampled_from(OBEYED))
def test_a_terminal_obeys_nothing_that_is_visible(text, control):
    assert visible(f"a\tb\n{text}{control}") == f"a\tb\n{visible(text)}{ascii(control)[1:-1]}"
    assert all(ord(letter) >= 32 and letter not in OBEYED for letter in visible(text))
    assert visible(visible(text)) == visible(text)


def test_control_characters_of_a_table_are_shown_and_not_obeyed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evil, seen = "\x1b[2Jred\x07\u202e", r"\x1b[2Jred\x07\u202e"
    products = [p | {"id": f"{p['id']}{evil}", "title": evil, "category": evil} for p in make_products(6)]
    table = write_csv(f"{evil}.csv", products)
    table.write_text(table.read_text(encoding="utf-8").replace("caption", f"caption{evil}", 1), encoding="utf-8")
    assert main(["prepare", "--check", str(table)]) == 0
    found = [Product(p["id"], p["title"], p["category"], "", b"", "") for p in products]
    ranking = Ranking("red", 6, 6, found, [0.5] * 6, True)
    monkeypatch.setattr("fbjax.inference.rank.rank", lambda **request: ranking)
    assert main(["rank", "--workdir", "w", "--text", "red"]) == 0
    assert main(["prepare", "--check", f"{evil}.gone.csv"]) == 1
    printed = capsys.readouterr()
    assert not set(printed.out + printed.err) & set(OBEYED)
    assert seen in printed.err and f"p0-0001{seen}" in printed.out and f"{seen}.csv" in printed.out


SCORES = "a\t1\t0.9\na\t0\t0.1\n"


def run_fbjax(folder: Path, shell: str, **environment) -> subprocess.CompletedProcess:
    """``fbjax`` on `SCORES` in a shell, which redirects its output."""
    (folder / "scores.tsv").write_text(SCORES)
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m fbjax {shell}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize(
    "shell, status, error",
    [
        ("legacy scores.tsv | true", 141, ""),
        ("legacy --help | true", 141, ""),
        ("legacy nowhere.tsv 2>&1 | true", 141, ""),
        ("legacy scores.tsv >&-", 0, ""),
        ("legacy nowhere.tsv 2>&-", 1, ""),
        ("legacy scores.tsv <&- >&- 2>&-", 0, ""),
        ("legacy scores.tsv >/dev/full", 1, "fbjax: cannot write to <stdout>: No space left on device\n"),
        ("legacy nowhere.tsv 2>/dev/full", 1, ""),
    ],
)
def test_output_that_cannot_be_written_ends_without_a_trace(shell, status, error, tmp_path):
    done = run_fbjax(tmp_path, shell, FBJAX_TRACEBACK="1" if status == 0 else "")
    assert (done.returncode, done.stderr) == (status, error)


def test_a_file_is_written_even_if_nobody_reads_what_is_printed(tmp_path):
    assert run_fbjax(tmp_path, "legacy scores.tsv --out legacy.json | true").returncode == 141
    assert json.loads((tmp_path / "legacy.json").read_text())["correct"]["queries"] == 1


def test_letters_that_a_terminal_does_not_know_are_escaped(tmp_path):
    done = run_fbjax(tmp_path, "legacy r\u00f6te.tsv", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 1 and done.stderr == "fbjax: no scores at r\\xf6te.tsv\n"


def test_commands_of_containers_are_commands():
    launch = Path(__file__).parents[2] / "launch"
    services = yaml.safe_load((launch / "compose.yaml").read_text())["services"]
    (deployment, _) = yaml.safe_load_all((launch / "search-deployment.yaml").read_text())
    commands = [service["command"] for service in services.values() if service["image"] == "fbjax"]
    commands += [box["args"] for box in deployment["spec"]["template"]["spec"]["containers"]]
    commands.append(json.loads((launch / "Containerfile").read_text().rpartition("\nCMD ")[2]))
    assert len(commands) == 4
    for command in commands:
        assert _parser().parse_args(command).index in ("/data/index", "http://milvus:19530")
