"""`fbjax bench`: the figures of the design, a rival that computes what we compute, and no TensorFlow."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fbjax.config.load import freeze
from fbjax.config.schema import Config
from fbjax.model.patch_features import build_patch_network
from fbjax.tools.bench.bench import bench, format_table
from fbjax.tools.bench.timing import Times, take_turns
from fbjax.tools.bench.workload import make_workload, padded_lengths, synthetic_batch, train_flops
from tests.runs import CONFIG_FILE


def tiny(**model) -> Config:
    """A config whose tables are not there: bench reads none."""
    space: dict = {}
    exec(CONFIG_FILE.format(train="none.csv", validation="", prepared=""), space)
    config = freeze(space["get_config"]())
    return replace(config, model=replace(config.model, **model))


@pytest.fixture
def one_thread(monkeypatch):
    torch = pytest.importorskip("torch")
    set_num_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: set_num_threads(1))
    from fbjax.tools.bench import contest

    monkeypatch.setattr(contest, "compiled", lambda function: _raise(RuntimeError("no C++ compiler\nat all")))


def _raise(error):
    raise error


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    times = Times({"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 4.0]})
    assert times.ratio_entry("x", "theirs", "ours") == {"x": 2.0, "x.range": [1.0, 3.0]}
    assert times.mixed("both", {"ours": 0.5, "theirs": 0.25}).seconds["both"] == [1.25, 2.0, 3.0]


def test_contenders_take_turns_and_the_first_rounds_do_not_count():
    runs = []
    times = take_turns({name: lambda name=name: runs.append(name) for name in "ab"}, 3, lambda turn: None)
    assert "".join(runs) == "ab" * 5 and [len(s) for s in times.seconds.values()] == [3, 3]


def test_texts_of_a_batch_share_their_padded_length():
    config = tiny(text_tokens=48)
    assert padded_lengths(config, 4) == [16, 32, 48]
    assert padded_lengths(tiny(text_tokens=8 * 16 + 3), 3) == [16, 80, 131]
    subject = make_workload(config, build_patch_network(config.patches))
    batch = synthetic_batch(subject, 32)
    lengths = np.asarray(batch.text_mask.sum(axis=1))
    assert batch.ids.shape[1] == lengths.max() == 32 and lengths.min() > 16
    assert np.array_equal(np.asarray((batch.word_ids >= 0).sum(axis=1)), lengths - 2)


def test_flops_do_not_depend_on_how_the_step_is_computed():
    config = tiny()
    network = build_patch_network(config.patches)
    counts = []
    for remat, parts in (("none", 1), ("layers", 2)):
        model, train = replace(config.model, remat=remat), replace(config.train, micro_batches=parts)
        subject = make_workload(replace(config, model=model, train=train), network)
        counts.append(train_flops(subject, synthetic_batch(subject, config.model.text_tokens)))
    first_layer = 16 * (24 + 16) * 2 * (4 * 32 * 32 + 2 * 32 * 64)  # 16 pairs of 24 pieces and 16 patches
    assert counts[0] == counts[1] and 3 * first_layer < counts[0] < 9 * first_layer


@pytest.mark.slow
@pytest.mark.parametrize("mask_negatives", [False, True])
def test_the_rival_gives_our_losses_and_scores_by_both_its_ways(mask_negatives, one_thread):
    from fbjax.tools.bench.torch_comparison import Comparison

    # tasks and towers beyond the paper's are left out of the comparison
    config = tiny(text_tokens=32, embedding_dim=8, tia_reads="modalities", cross_attention="gated")
    config = replace(config, tasks=replace(config.tasks, names=("itc", "tia"), mask_negatives=mask_negatives))
    said = []
    Comparison(make_workload(config, build_patch_network(config.patches)), said.append)
    assert said == ["PyTorch gives the same losses and scores"]


def test_a_rival_that_differs_is_not_compared(one_thread, monkeypatch):
    from fbjax.tools.bench import torch_comparison, torch_model

    monkeypatch.setattr(torch_model, "NORM_EPSILON", 1e-3)
    config = tiny()
    with pytest.raises(ValueError, match="not compared"):
        torch_comparison.Comparison(make_workload(config, build_patch_network(config.patches)), print)


@pytest.mark.slow
def test_figures_have_the_keys_of_the_design(one_thread, tmp_path):
    said = []
    figures = bench(tiny(num_layers=1), 1, said.append, compare="torch", trace=str(tmp_path / "trace"))
    train, score = figures["train"], figures["score"]
    methods = ("gradient", "every_16", "estimate", "loss_softmax")
    assert set(train["adaptive"]) == {n + s for n in methods for s in ("", ".range")}
    assert set(train["by_length"]) == {"16", "24"}
    for ratios, last in ((train, "vs_torch_as_written"), (score, "vs_torch_padded")):
        for key in ("peak_share", "vs_torch_eager", last):
            low, high = ratios[f"{key}.range"]
            assert 0 < low <= ratios[key] <= high
        assert ratios["pairs_per_second"] > 0 and ratios["vs_torch_compile"] is None
    assert figures["patches"]["images_per_second"] > 0 and set(figures["memory"]["step"]) == {"fixed", *methods}
    assert "torch.compile does not work here, its figures are null: no C++ compiler" in said
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert json.loads(json.dumps(figures)) == figures and any("PyTorch" in line for line in format_table(figures))


@pytest.mark.slow
def test_towers_alone_are_timed_in_training_and_score_no_pair():
    config = tiny(num_layers=1, text_tokens=16, embedding_dim=8)
    config = replace(config, tasks=replace(config.tasks, names=("itc",)))
    figures = bench(config, 1, print)
    assert figures["score"] is None and figures["train"]["pairs_per_second"] > 0
    assert not any(line.startswith("score") for line in format_table(figures))


@pytest.mark.slow
def test_without_repeats_memory_alone_is_planned_and_tensorflow_never_imported(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG_FILE.format(train="none.csv", validation="", prepared=""))
    code = (
        "import sys; from fbjax.cli.main import main\n"
        "status = main(['bench', '--config', 'c.py', '--repeats', '0', '--json'])\n"
        "import fbjax.tools.bench.torch_comparison\n"
        "print(status, [m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    *printed, last = done.stdout.strip().split("\n")
    assert last == "0 []", done.stderr
    figures = json.loads("\n".join(printed))
    assert set(figures) == {"repeats", "device", "memory"} and figures["memory"]["step"]["fixed"] > 0
