"""`fbjax bench` on whole workloads: what compiles long."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fbjax.model.patch_features import build_patch_network
from fbjax.tools.bench.bench import bench, format_table
from fbjax.tools.bench.workload import make_workload
from tests.support.objectives import COSINE, make_tasks
from tests.support.runs import CONFIG_FILE, config_without_tables


def test_pytorch_gives_our_losses_and_scores_both_ways(one_thread):
    from fbjax.tools.bench.torch_comparison import Comparison

    # tasks and towers beyond the paper's are left out of the comparison
    config = config_without_tables(text_tokens=32, cross_attention="gated")
    config = replace(config, tasks=make_tasks("itc", "tia", **COSINE))
    said = []
    Comparison(make_workload(config, build_patch_network(config.patches)), said.append)
    assert said == ["PyTorch gives the same losses and scores"]


def test_figures_have_the_keys_of_the_design(one_thread, tmp_path):
    said = []
    figures = bench(config_without_tables(num_layers=1), 1, said.append, compare="torch", trace=str(tmp_path / "trace"))
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


def test_towers_alone_are_timed_in_training_and_score_no_pair():
    config = config_without_tables(num_layers=1, text_tokens=16)
    config = replace(config, tasks=make_tasks("itc"))
    figures = bench(config, 1, print)
    assert figures["score"] is None and figures["train"]["pairs_per_second"] > 0
    assert not any(line.startswith("score") for line in format_table(figures))


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
