"""`fbjax bench` on whole workloads: what compiles long."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fbjax.config.load import config_to_json
from fbjax.tools.bench.bench import bench
from tests.support.objectives import COSINE, make_tasks
from tests.support.runs import CONFIG_FILE, config_without_tables


def test_pytorch_gives_our_losses_and_scores_both_ways(one_thread):
    from fbjax.tools.bench.ours import Ours
    from fbjax.tools.bench.theirs import Theirs
    from fbjax.tools.bench.torch_model import draw_masks

    # tasks and towers beyond the paper's are left out of the comparison
    config = config_without_tables(text_tokens=32, cross_attention="gated")
    config = config_to_json(replace(config, tasks=make_tasks("itc", "tia", **COSINE)))
    theirs = Theirs(config, "cpu", 1)
    theirs.check(*Ours(config).for_torch())
    # what PyTorch draws in each step is a whole-word mask of the rate that it is asked for
    words, (ids, chosen, hidden) = theirs._masked.word_ids.numpy(), draw_masks(theirs._masked, 0.3)
    chosen = chosen.numpy()
    for row, of_row in zip(words, chosen, strict=True):
        assert all(len(set(of_row[row == word])) == 1 for word in set(row) - {-1}) and not of_row[row < 0].any()
        assert 0 < of_row.sum() <= round(0.3 * (row >= 0).sum())
    assert (ids.numpy() != theirs._masked.ids.numpy())[~chosen].sum() == 0
    assert all(len(set(row)) == len(row) for row in hidden.numpy())


def test_figures_have_the_keys_of_the_design(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    said = []
    config = config_without_tables(num_layers=1)
    figures = bench(config, 1, said.append, compare="torch", trace=str(tmp_path / "trace"))
    train, score = figures["train"], figures["score"]
    methods = ("gradient", "every_16", "estimate", "loss_softmax")
    assert set(train["adaptive"]) == {n + s for n in methods for s in ("", ".range")}
    assert set(train["by_length"]) == {"16", "24"}
    for part in (train, score):
        for key in ("peak_share", "pairs_per_second", "vs_torch_eager", "vs_torch_compile", "vs_torch_as_written"):
            low, high = part[f"{key}.range"]
            assert 0 < low <= part[key] <= high
    assert figures["patches"]["images_per_second"] > 0 and set(figures["memory"]["step"]) == {"fixed", *methods}
    assert set(figures["torch"]["train"]) == set(figures["torch"]["score"]) > {"fbjax", "compile"}
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert np.isclose(sum(figures["trace"].values()), 1) and {"attention", "feed forward"} < set(figures["trace"])
    assert json.loads(json.dumps(figures)) == figures and "failed" not in figures
    assert any("PyTorch, compile" in line for line in said)


def test_towers_alone_are_timed_in_training_and_score_no_pair():
    config = config_without_tables(num_layers=1, text_tokens=16)
    config = replace(config, tasks=make_tasks("itc"))
    said = []
    figures = bench(config, 1, said.append, only=("step", "score"))
    assert figures["score"] is None and figures["train"]["pairs_per_second"] > 0
    assert not any(line.startswith("score") for line in said)


def test_without_repeats_memory_alone_is_planned_and_tensorflow_never_imported(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG_FILE.format(train="none.csv", validation="", prepared=""))
    code = (
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    from fbjax.cli.main import main\n"
        "    status = main(['bench', '--config', 'c.py', '--repeats', '0', '--json', '--out', 'b.json'])\n"
        "    import fbjax.tools.bench.ours, fbjax.tools.bench.theirs\n"
        "    print(status, [m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    pytest.importorskip("torch")
    (tmp_path / "code.py").write_text(code)
    done = subprocess.run([sys.executable, "code.py"], cwd=tmp_path, capture_output=True, text=True)
    *printed, last = done.stdout.strip().split("\n")
    assert last == "0 []", done.stderr
    figures = json.loads("\n".join(printed))
    assert set(figures) == {"repeats", "device", "memory"} and figures["memory"]["step"]["fixed"] > 0
    assert json.loads((tmp_path / "b.json").read_text()) == figures
