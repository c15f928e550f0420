"""The sweep's table and its differences by hand, and that every variant of it is a config that trains."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from fbjax.config.load import load_config

PATH = Path(__file__).parents[2] / "launch" / "sweep.py"
CONFIGS = PATH.parents[1] / "configs"
SPEC = importlib.util.spec_from_file_location("sweep", PATH)
sweep = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)


def runs_of(*rates, num_queries=100):
    """One run a seed in which the first `rate` of the queries hit."""
    hits = np.array([np.arange(num_queries) < round(rate * num_queries) for rate in rates])
    return sweep.Runs(hits, np.full(len(rates), 0.9))


@pytest.mark.parametrize("name", sweep.SWEEPS)
def test_every_variant_of_a_sweep_is_a_config(name, tmp_path):
    from_towers = name in sweep.FROM_TOWERS
    arguments = SimpleNamespace(towers=str(tmp_path) * from_towers, steps=600, settings=[])
    base = {"pictures": "catalogue_kaleido_ablation"}.get(name, "catalogue_ablation")
    config = CONFIGS / f"{'catalogue_fashionbert' if from_towers else base}.py"
    loaded = [load_config(config, sweep.overrides_of(v, 1, arguments)) for v in sweep.SWEEPS[name].values()]
    assert len(set(map(repr, loaded))) == len(loaded)  # no two variants are the same run


def test_a_difference_and_its_interval_by_hand():
    runs = {"a": runs_of(0.40, 0.44), "b": runs_of(0.50, 0.54)}
    found, smallest = sweep.differences(runs)
    # variance over seeds (.02 sqrt 2)^2 = .0008, twice over 2; a query's mean difference is .5 for 4 of them, 1 for 6,
    # .5 for 4, 0 else: mean .1, variance (.25 * 8 + 6 - 100 * .01) / 99
    error = np.sqrt(0.0008 + (0.25 * 8 + 6 - 1) / 99 / 100)
    low, high = 10 - 100 * 4.3027 * error, 10 + 100 * 4.3027 * error
    assert (found["b"].mean, found["b"].low, found["b"].high) == pytest.approx((10, low, high), rel=1e-4)
    assert found["b"].verdict == "not told apart"
    assert smallest == pytest.approx(100 * (4.3027 + 1.0607) * error, rel=1e-4)


def test_only_what_stands_out_of_seeds_and_queries_is_told_apart():
    runs = {"base": runs_of(0.40, 0.41, 0.42), "level": runs_of(0.42, 0.40, 0.41), "far below": runs_of(0.1, 0.12, 0.1)}
    found, _ = sweep.differences(runs)
    assert {name: d.verdict for name, d in found.items()} == {"level": "not told apart", "far below": "behind"}


def test_holm_by_hand():
    """.01 <= .05 / 4 and .015 <= .05 / 3, but .03 > .05 / 2: this one and the next, however small its limit, stay."""
    assert sweep.holm(np.array([0.03, 0.01, 0.04, 0.015])).tolist() == [False, True, False, True]


@pytest.mark.parametrize("seed", range(3))
def test_without_a_true_difference_few_sweeps_tell_any_apart(seed):
    """300 sweeps of 4 variants that differ by noise of seeds and queries alone."""
    rng = np.random.default_rng(seed)
    told = 0
    for _ in range(300):
        easy = rng.normal(0, 1.5, 200)  # queries differ
        variants = {}
        for name in "abcd":
            shift = rng.normal(0, 0.1, (3, 1))  # seeds differ
            chance = scipy.special.expit(easy + shift)
            variants[name] = sweep.Runs(rng.random((3, 200)) < chance, np.zeros(3))
        told += any(d.verdict != "not told apart" for d in sweep.differences(variants)[0].values())
    assert told / 300 < 0.08


def test_the_table_says_each_variant_and_what_it_could_have_seen():
    lines = sweep.table({"a": runs_of(0.40, 0.44), "b": runs_of(0.50, 0.54)})
    assert lines[2] == "| a | 42.0% | 40.0% to 44.0% | | | 0.900 |"
    assert lines[3].startswith("| b | 52.0% | 50.0% to 54.0% | +10.0 [")
    assert "2 seeds and 100 queries" in lines[-1]
    assert "one seed" in sweep.table({"a": runs_of(0.4), "b": runs_of(0.4)})[3]


def test_a_plot_is_drawn(tmp_path):
    sweep.plot("tasks", {"a": runs_of(0.40, 0.44), "b": runs_of(0.50, 0.54)}, tmp_path / "tasks.svg")
    drawn = (tmp_path / "tasks.svg").read_text()
    assert "Rank@1 to" in drawn and ">b<" in drawn


def test_a_folder_of_other_settings_is_not_taken_for_this_sweep_s(tmp_path):
    (tmp_path / "asked.json").write_text(json.dumps(["other"]))
    arguments = SimpleNamespace(config=CONFIGS / "catalogue_ablation.py", lists="l", queries=3)
    with pytest.raises(ValueError, match="holds a run of other settings than train.seed=1"):
        sweep.run(tmp_path, ["train.seed=1"], arguments, sweep.shares_of_cores(1))
