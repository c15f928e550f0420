"""Telemetry: every second has one cause, work done twice counts once, and FLOPs are those that have to be done."""

import dataclasses
import json
import math
import re
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.config.schema import AdaptiveConfig, Config, MeshConfig, ModelConfig, PatchConfig, TrainConfig
from fbjax.evaluation.metrics import auc
from fbjax.model.fashionbert import build_model
from fbjax.model.patch_features import build_patch_network
from fbjax.monitoring import hardware, telemetry
from fbjax.monitoring.doubts import doubts
from fbjax.monitoring.flops import step_work, training_flops
from fbjax.monitoring.goodput import INPUT, LOST, START_UP, STEP, split
from fbjax.monitoring.hardware import CHIPS, chip_of, peak_flops
from fbjax.monitoring.logger import Log
from fbjax.monitoring.telemetry import Telemetry, log_event, read_events, read_figures
from fbjax.parallel.mesh import make_mesh
from fbjax.report.costs import cost
from fbjax.runs.state import abstract_state, batch_shapes, make_optimizer
from fbjax.tasks.objective import Objective
from fbjax.training.step import make_step, with_seed
from tests.support.objectives import make_tasks

OTHER = ("start-up", "records", "compile", "input", "checkpoint", "evaluation")
SAVE_EVERY = 3


@st.composite
def killed_runs(draw):
    """A run by seconds: attempts of [(cause, steps done before, steps done after)], their first steps, and pauses.

    A step takes one to four seconds. An attempt begins at a checkpoint that an earlier one has reached, or at 0.
    """
    attempts, firsts, saved = [], [], {0}
    for _ in range(draw(st.integers(1, 4))):
        step = first = draw(st.sampled_from(sorted(saved)))
        seconds = [("start-up", None, None)] * draw(st.integers(1, 3))
        begun = draw(st.integers(0, 3)) > 0  # else killed before it knew where to begin
        for _ in range(draw(st.integers(0, 12)) if begun else 0):
            seconds += [(draw(st.sampled_from(OTHER)), step, step)] * draw(st.integers(0, 2))
            lasts = draw(st.integers(1, 4))
            unfinished = draw(st.integers(0, 9)) == 0
            seconds += [(STEP, step, step)] * (lasts - 1) + [(STEP, step, step + (not unfinished))]
            if unfinished:
                break
            step += 1
            if step % SAVE_EVERY == 0:
                saved.add(step)
        attempts.append(seconds)
        firsts.append(first if begun else None)
    return attempts, firsts, draw(st.lists(st.integers(0, 50), min_size=len(attempts), max_size=len(attempts)))


def written(run, cuts):
    """The events that such a run writes: a line at each step's end, and here and there a line between."""
    attempts, firsts, pauses = run
    clock = 1000
    for seconds, first, pause in zip(attempts, firsts, pauses, strict=True):
        clock += pause
        yield {"began": clock}
        spent, step = {}, None
        for cause, before, after in seconds:
            if before is not None and step is None:
                yield {"spent": spent, "step": None}
                yield {"from": first, "of": 10_000}
                spent, step = {}, first
            spent[cause] = spent.get(cause, 0) + 1
            clock += 1
            if after != before or next(cuts):
                yield {"spent": spent, "step": after, "figures": {"loss": 1.0}}
                spent, step = {}, after
        if spent:
            yield {"spent": spent, "step": step}
        if step is None and first is not None:
            yield {"from": first, "of": 10_000}


def second_by_second(run):
    """The same by brute force: a second of a step is lost where a later attempt began before that step was done."""
    attempts, firsts, pauses = run
    sums = {}
    for i, seconds in enumerate(attempts):
        for cause, before, _ in seconds:
            if cause == STEP:
                again = any(first is not None and first <= before for first in firsts[i + 1 :])
                cause = LOST if again else STEP
            sums[cause] = sums.get(cause, 0) + 1
    return sums, sum(pauses[1:])


@given(killed_runs(), st.randoms(use_true_random=False))
def test_every_second_of_a_killed_run_has_the_cause_that_a_brute_force_reckoning_gives_it(run, random):
    found = split(written(run, iter(lambda: random.random() < 0.3, None)))
    sums, down = second_by_second(run)
    rounded = {cause: round(seconds, 6) for cause, seconds in found.seconds.items() if round(seconds, 6)}
    assert rounded == sums and found.down == down
    assert abs(found.wall - sum(map(len, run[0]))) < 1e-6
    assert abs(found.goodput - sums.get(STEP, 0) / sum(sums.values())) < 1e-9


def test_a_killed_process_leaves_all_but_its_last_seconds_and_a_cut_line_harms_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "HEARTBEAT_SECONDS", 0.1)
    killed = Telemetry(tmp_path, begun=time.time() - 5)
    killed.enter_loop(0, 10)
    killed.stepping()
    with killed.spent(lambda: INPUT):
        time.sleep(0.5)  # nobody asks it for anything, and it is never left
        found = split(read_events(tmp_path))
    assert found.seconds[START_UP] == pytest.approx(5, abs=0.2) and 0.2 < found.seconds[INPUT] < 0.6
    killed.checkpoint_figures(4, {"utilisation": 0.5})
    monkeypatch.setattr(killed, "_path", None)  # as good as dead
    with open(tmp_path / telemetry.FILE, "a") as stream:
        stream.write('{"at": 17')
    log_event(tmp_path, "evaluation", 3)  # the cut line takes this one along

    with Telemetry(tmp_path) as again:
        again.enter_loop(4, 10)
        again.stepping()
        again.checkpoint_figures(10, {"utilisation": 0.25})
    events = read_events(tmp_path)
    found = split(events)
    assert [(a.first, a.last, a.ended) for a in found.attempts] == [(0, 4, ""), (4, 10, "done")]
    assert again.goodput() == pytest.approx(found.goodput, abs=1e-3)
    assert [values.tolist() for values in read_figures(events)["utilisation"]] == [[4, 10], [0.5, 0.25]]
    with Telemetry(tmp_path) as idle:  # finds the run finished: no part of it
        idle.enter_loop(10, 10)
    assert split(read_events(tmp_path)) == found


def test_a_full_disk_costs_lines_but_no_seconds(tmp_path, monkeypatch):
    with Telemetry(tmp_path, begun=time.time() - 1) as clock:
        monkeypatch.setattr(clock, "_path", tmp_path / "none" / "file")
        clock.checkpoint_figures(1, {})
        monkeypatch.undo()
        clock.checkpoint_figures(2, {})
    assert split(read_events(tmp_path)).wall == pytest.approx(1, abs=0.2)
    assert all(json.loads(line) for line in (tmp_path / telemetry.FILE).read_text().splitlines() if line)


def objective_of(config: Config) -> Objective:
    network, tasks = build_patch_network(config.patches), tuple(config.tasks.values())
    return Objective(build_model(config.model, tasks, network, 500, mask_id=4), network, tasks)


def work_of(config: Config, text_tokens: int):
    """What a step on texts of that many tokens takes, and its pieces."""
    objective, optimizer, mesh = objective_of(config), make_optimizer(config.train), make_mesh(config.mesh)
    state = abstract_state(objective, optimizer, config, mesh)
    batch = batch_shapes(config, objective.patches, text_tokens)
    frozen = {"patches": objective.patches.params}
    return step_work(objective, state.params, frozen, [batch]), (objective, optimizer, state, frozen, batch, mesh)


SMALL = Config(
    patches=PatchConfig(image_size=16, patch_size=4, patch_input_size=4),
    model=ModelConfig(num_layers=2, width=24, num_heads=4, mlp_dim=48, text_tokens=16),
    tasks=make_tasks("tia"),
    train=TrainConfig(batch_size=16),
    adaptive=AdaptiveConfig(method="fixed"),
)


def test_model_flops_are_those_counted_by_hand():
    work, _ = work_of(SMALL, 16)
    pairs, p, c, d, f, length = 32, 16, 48, 24, 48, 16 + 16
    whole = length * (4 * d * d + 2 * length * d + 2 * d * f)  # of a layer at all positions, in multiply-adds
    last = 2 * length * d * d + 2 * d * d + 2 * length * d + 2 * d * f  # keys and values at all, the rest at [CLS]
    heads = d * d + 2 * d  # pooler, answer
    by_hand = 2 * pairs * (3 * (whole + last + heads) + 2 * p * c * d)  # no gradient with respect to pixels
    by_hand += 2 * 16 * (2 + 1)  # means over the batch, of the loss and of the accuracy, which teaches nothing
    assert work.flops == {16: by_hand}
    assert work.tokens(200) == 2 * (200 + 16 * 16)


@pytest.mark.parametrize("remat, dtype", [("none", "float32"), ("layers", "bfloat16")])
def test_model_flops_are_what_xla_counts_less_what_is_no_matrix_product(remat, dtype):
    model = dataclasses.replace(SMALL.model, width=256, mlp_dim=1024)
    config = dataclasses.replace(SMALL, model=model, tasks=make_tasks(), mesh=MeshConfig(data=8))
    _, (objective, optimizer, state, frozen, batch, mesh) = work_of(config, 16)
    step = make_step(objective, optimizer, config, mesh, state)
    counted = step.lower(state, with_seed(frozen, config), batch).cost_analysis()["flops"]

    computed = dataclasses.replace(config, model=dataclasses.replace(model, remat=remat, dtype=dtype))
    work, _ = work_of(computed, 16)
    assert 0.94 < work.flops[16] / counted < 1


def test_flops_follow_loops_branches_and_what_depends_on_a_parameter():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 4))

    def function(params, x):
        looped, _ = jax.lax.scan(lambda carry, _: (carry @ params, None), x, None, length=5)
        chosen = jax.lax.cond(x.sum() > 0, lambda y: y @ b @ b, lambda y: y @ b, looped)
        return chosen.sum() + (x @ b).sum() + (jax.lax.stop_gradient(params) @ b).sum()

    loop, branch, fixed, stopped = 5 * 3 * 48, 2 * 2 * 48, 48, 64
    assert training_flops(function, b, a) == 2 * (loop + branch + fixed + stopped)


def test_the_peak_of_a_known_chip_is_looked_up_and_another_s_measured(monkeypatch):
    measured = peak_flops("float32")
    assert measured["flops"] > 1e8 and "float32" in measured["of"]
    monkeypatch.setattr(hardware, "_measured", lambda dtype: 1.0)
    assert peak_flops("float32", [{"flops": 2e20, "of": "4 x v5e in bfloat16"}, measured]) == measured
    monkeypatch.setattr(hardware, "_measured", None)
    device = SimpleNamespace(device_kind="TPU v5 lite", platform="tpu")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert peak_flops("float32") == {"flops": 4 * 197e12, "of": "4 x v5e in bfloat16"}
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds)) and all(chip_of(kind) for kind in kinds)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.integers(0, 20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["step", "flops", "of"]), inner),
    max_leaves=3,
)
NAMES = ("began", "from", "of", "at", "spent", "step", "figures", "ended", "machine", "peak", "noted", "seconds")
GOOD = st.sampled_from(
    [
        {"began": 1000.0},
        {"from": 3, "of": 10, "machine": "cpu", "peak": {"flops": 1e9, "of": "a product"}},
        {"at": 1001.0, "spent": {"step": 1.0}, "step": 5, "figures": {"model_flops_per_second": 1e6}},
        {"at": 1001.0, "spent": {"step": 1.0, "input": 0.5}, "step": None},
        {"noted": "evaluation", "seconds": 2.0},
        {"ended": "done"},
    ]
)


@given(st.lists(GOOD | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), max_size=12), st.binary(max_size=9))
def test_a_diary_of_any_content_can_be_read(tmp_path_factory, lines, cut):
    """Two processes at once, a cut line, another program: none of it may stop a run or a report."""
    folder = tmp_path_factory.mktemp("run")
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "telemetry.jsonl").write_bytes(content + cut)
    events = read_events(folder)
    found = cost(8, 10, events, None)
    assert found["training"] >= 0 and (found["goodput"] is None or 0 <= found["goodput"] <= 1 + 1e-9)
    with Telemetry(folder) as account:
        account.enter_loop(4, 10)
    assert read_events(folder)[-1] == {"ended": "done"}


GUESSING_8 = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 8  # the mean of 1 / rank over ranks 1 .. 8


@pytest.mark.parametrize(
    "last, size, said",
    [
        ({}, 8, ""),  # a run that was finished before
        ({"tia/loss": 0.7, "validation/auc": 0.9, "validation/mrr": 0.9}, 8, ""),
        ({"tia/loss": 0.7, "validation/auc": 0.461}, 256, r"AUC 0.461 on 256 .* guessing, 0.500: raise .*\(100000\)"),
        ({"tia/loss": 0.7, "validation/auc": 0.0}, 8, "AUC 0.000"),
        ({"tia/loss": 0.7, "validation/auc": 0.54}, 256, "AUC 0.540"),  # 1.6 standard deviations of .0256
        ({"tia/loss": 0.7, "validation/auc": 0.56}, 256, ""),  # 2.3
        ({"itc/loss": 2.0, "validation/auc": 0.9, "validation/mrr": GUESSING_8}, 8, "MRR 0.340 .* guessing, 0.340"),
        ({"itc/loss": 2.0, "validation/auc": 0.9, "validation/mrr": 0.03}, 256, "MRR 0.030 .* guessing, 0.024"),
        ({"itc/loss": 2.0, "validation/auc": 0.9, "validation/mrr": 0.04}, 256, ""),
        ({"itc/loss": 12.0, "tia/loss": 1e8}, 8, r"^tia/loss ended at 1e\+08: .* Lower train.learning_rate \(2e-05\)"),
        ({"tia/loss": 1e8, "validation/auc": 0.1}, 8, "^tia/loss ended at"),
        ({"mlm/loss": 15.0, "learning_rate": 1e9}, 8, ""),
    ],
)
def test_a_training_that_learned_nothing_is_told_from_one_that_did(last, size, said):
    found = doubts(last, size, TrainConfig())
    assert re.search(said, found) and bool(found) == bool(said)


def test_a_loss_that_is_not_finite_names_the_rate_to_lower():
    log = SimpleNamespace(_config=TrainConfig(learning_rate=1e4))
    Log._check_finite(log, 2, 2, {"tia/loss": 1e8, "tia/gradient_norm": math.nan})  # of a method without norms
    with pytest.raises(FloatingPointError, match=r"steps 0 and 2: tia/loss nan; .* train.learning_rate \(10000\)"):
        Log._check_finite(log, 2, 2, {"tia/loss": math.nan, "tia_accuracy": 0.5})


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_random_scores_are_seldom_taken_for_learning(size, seed):
    """Scores that know nothing: about one figure in thirty lies two deviations above guessing."""
    rng = np.random.default_rng(seed)
    figures = [{"validation/auc": auc(*rng.random((2, size)))} for _ in range(100)]
    figures += [{"validation/mrr": np.mean(1 / rng.integers(1, size + 1, size))} for _ in range(100)]
    assert sum(not doubts(found, size, TrainConfig()) for found in figures) <= 24
