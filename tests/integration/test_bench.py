"""`fbjax bench`: what one contestant does to the report, what is timed, and that PyTorch computes what we compute."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.config.load import config_to_json
from fbjax.model.patch_features import build_patch_network
from fbjax.tools.bench import bench as benching
from fbjax.tools.bench.bench import bench
from fbjax.tools.bench.contestant import Failed, OutOfTime, contestant
from fbjax.tools.bench.latency import Request, candidate, requests_of
from fbjax.tools.bench.timing import Run, Times, launches, timed
from fbjax.tools.bench.trace import parts_of, shares
from fbjax.tools.bench.workload import make_workload, padded_lengths, synthetic_batch, train_flops
from tests.support.objectives import make_tasks
from tests.support.runs import config_without_tables

MISBEHAVING = "tests.support.contestants:Misbehaving"


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    times = Times({name: [Run(s, s / 4) for s in runs] for name, runs in {"a": [1.0, 2, 4], "b": [3.0, 4, 4]}.items()})
    assert times.ratio_entry("x", "b", "a") == {"x": 2.0, "x.range": [1.0, 3.0]}
    assert times.ratio_entry("x", "b", "c") == {"x": None, "x.range": None}
    assert times.mixed("both", {"a": 0.5, "b": 0.25}).seconds("both") == [1.25, 2.0, 3.0]
    assert times.rate_entry("r", "a", 8) == {"r": 4.0, "r.range": [2.0, 8.0]}
    assert times.host_share("b") == 0.25


def test_a_run_launches_often_and_waits_once():
    calls = []
    run = timed(lambda: calls.append("launch"), lambda: time.sleep(0.05) or calls.append("wait"), 5)
    assert calls == ["launch"] * 5 + ["wait"] and run.host < 0.005 < 0.01 <= run.seconds < 0.05
    assert [launches(seconds) for seconds in (0, 1e-3, 0.1, 0.5, 20)] == [200, 200, 5, 1, 1]


def test_percentiles_are_of_single_launches_over_all_rounds():
    waiting = iter([0.03, 0.0, 0.0])
    run = timed(lambda: time.sleep(next(waiting)), lambda: None, 3)
    assert len(run.each) == 3 and run.each[0] >= 0.03 > 0.02 > max(run.each[1:])
    times = Times({"a": [Run(0.5, 0.5, (0.1, 0.9)), Run(0.5, 0.5, (0.2, 0.3, 0.4))]})
    assert times.percentiles("a") == pytest.approx({"requests": 5, "p50": 300, "p95": 800, "p99": 880})


@pytest.mark.parametrize("tasks", [("tia",), ("itc",)])
def test_all_kinds_of_request_give_the_same_scores(tasks):
    """Padded or not, cached or not; so the work that one kind leaves out is not needed."""
    config = replace(config_without_tables(), tasks=make_tasks(*tasks))
    workload = make_workload(config, build_patch_network(config.patches))
    kinds = [Request(2, 3, padded, cached) for padded in (True, False) for cached in (True, False)]
    first, *others = [candidate(workload, kind).launch() for kind in kinds]
    assert first.shape == (3,) and len(set(first.tolist())) == 3
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)
    assert {r.layers for r in requests_of(config)} == {12, 6, 2} and len({*requests_of(config)}) == 18
    linear = replace(config, tasks=make_tasks("itc", itc={"branches": "linear"}))
    assert {r.layers for r in requests_of(linear)} == {2}


def test_a_contestant_answers_refuses_or_fails_in_one_line_and_may_die_alone():
    with contestant(MISBEHAVING, "hello", environment={"FBJAX_TEST_SHARE": "0.45"}) as there:
        assert there.ask("greet", "you") == "hello you, 0.45"
        with pytest.raises(ValueError, match="^give it another setting$"):
            there.ask("refuse")
        with pytest.raises(Failed, match="^RESOURCE_EXHAUSTED: out of memory$"):
            there.ask("run_out_of_memory")
        assert there.ask("greet", "me") == "hello me, 0.45"
        with pytest.raises(Failed, match="SIGKILL, as one that takes too much memory"):
            there.ask("die")
        with pytest.raises(Failed, match="ended"):
            there.ask("greet", "me")


def test_a_contestant_is_stopped_at_the_deadline():
    with contestant(MISBEHAVING, "hello", environment={}, deadline=time.monotonic() + 5) as there:
        begin = time.monotonic()
        with pytest.raises(OutOfTime):
            there.ask("sleep")
        assert time.monotonic() - begin < 6
        with pytest.raises(Failed, match="ended"):  # what is asked after that
            there.ask("greet", "you")


def test_a_failure_is_a_line_and_the_budget_keeps_what_is_measured(monkeypatch):
    monkeypatch.setattr(benching, "OURS", "tests.support.contestants:Pretending")
    said, published = [], []
    figures = bench(config_without_tables(), 3, said.append, budget=10, publish=lambda f: published.append(dict(f)))
    train = figures["train"]
    assert train["pairs_per_second"] == pytest.approx(160_000) and train["host_share"] == pytest.approx(0.5)
    assert train["peak_share"] == pytest.approx(1.0) and train["chip_share"] == pytest.approx(0.5)
    assert train["adaptive"]["gradient"] is None and train["adaptive"]["estimate"] == pytest.approx(1.0)
    assert figures["failed"] == {"adaptive: gradient": "RESOURCE_EXHAUSTED: out of memory"}
    assert figures["stopped"] == "the budget of 10 s ended" and "score" not in figures
    assert [set(f) & {"train", "failed"} for f in published] == [{"train"}, {"train", "failed"}, {"train", "failed"}]
    assert "adaptive: gradient is not measured: RESOURCE_EXHAUSTED: out of memory" in said
    assert any("device-bound: the host launches a step in 50%" in line for line in said)


@pytest.mark.parametrize(
    "only, compare, message",
    [
        (("steps",), "", "--only steps is unknown .stages: step, adaptive, lengths, score, patches"),
        (("torch",), "", "--only torch, which needs --compare torch"),
        ((), "jax", "--compare 'jax' is unknown"),
    ],
)
def test_unknown_stages_are_refused_before_any_process_starts(only, compare, message, monkeypatch):
    monkeypatch.setattr(benching, "contestant", None)
    with pytest.raises(ValueError, match=message):
        bench(config_without_tables(), 1, print, only=only, compare=compare)


def test_time_goes_to_the_scope_that_an_instruction_comes_from():
    def step(x, w):
        def loss(w):
            with jax.named_scope("attention"):
                y = jnp.tanh(x @ w)
            with jax.named_scope("heads"):
                return jnp.sin(y @ w).sum()

        gradient = jax.grad(loss)(w)
        with jax.named_scope("update"):
            return w - 0.1 * jnp.sign(gradient)

    compiled = jax.jit(step).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
    parts = parts_of(compiled.as_text())
    assert {"attention", "heads", "update"} <= set(parts.values())
    of = {part: [name for name, other in parts.items() if other == part] for part in ("attention", "heads")}
    events = [(of["attention"][0], 30.0), (of["heads"][0], 50.0), (of["attention"][0], 20.0), ("elsewhere", 1e9)]
    assert shares(parts, iter(events)) == {"attention": 0.5, "heads": 0.5}
    assert shares(parts, iter([("elsewhere", 1.0)])) == {}


def test_texts_of_a_batch_share_their_padded_length():
    config = config_without_tables(text_tokens=48)
    assert padded_lengths(config, 4) == [16, 32, 48]
    assert padded_lengths(config_without_tables(text_tokens=8 * 16 + 3), 3) == [16, 80, 131]
    workload = make_workload(config, build_patch_network(config.patches))
    batch = synthetic_batch(workload, 32)
    lengths = np.asarray(batch.text_mask.sum(axis=1))
    assert batch.ids.shape[1] == lengths.max() == 32 and lengths.min() > 16
    assert np.array_equal(np.asarray((batch.word_ids >= 0).sum(axis=1)), lengths - 2)


def test_flops_do_not_depend_on_how_the_step_is_computed():
    config = config_without_tables()
    network = build_patch_network(config.patches)
    counts = []
    for remat, parts in (("none", 1), ("layers", 2)):
        model, train = replace(config.model, remat=remat), replace(config.train, micro_batches=parts)
        workload = make_workload(replace(config, model=model, train=train), network)
        counts.append(train_flops(workload, synthetic_batch(workload, config.model.text_tokens)))
    first_layer = 16 * (24 + 16) * 2 * (4 * 32 * 32 + 2 * 32 * 64)  # 16 pairs of 24 pieces and 16 patches
    assert counts[0] == counts[1] and 3 * first_layer < counts[0] < 9 * first_layer


def test_a_torch_model_that_differs_is_not_compared(one_thread, monkeypatch):
    from fbjax.tools.bench import torch_model
    from fbjax.tools.bench.ours import Ours
    from fbjax.tools.bench.theirs import Theirs

    monkeypatch.setattr(torch_model, "NORM_EPSILON", 1e-3)
    config = config_to_json(config_without_tables())
    with pytest.raises(ValueError, match="not compared"):
        Theirs(config, "cpu", 1).check(*Ours(config).for_torch())
