"""`fbjax plan` of whole runs: what compiles long."""

import json
from dataclasses import replace

from fbjax.config.schema import MeshConfig
from fbjax.tools.plan.plan import plan
from fbjax.tools.plan.report import format_table, plot
from tests.support.runs import config_without_tables


def test_a_plan_for_the_devices_at_hand_counts_parameters_as_they_are_sharded():
    config = replace(config_without_tables(num_layers=1), mesh=MeshConfig(2, 2, 2))
    figures = plan(config, ["local"], None, print)
    (local,) = figures["topologies"]
    v, t, p, c, d, f = 200, 24, 16, 3 * 4 * 4, 32, 64
    quarter, half, whole = 0, 0, 0
    quarter += v * d + 4 * d * d + 2 * d * f  # tensor and fsdp: words; query, key, value, out; MLP
    half += (t + 2 + p + 1 + c) * d + 5 * d + f  # fsdp or tensor: positions, segments, projection; biases of a layer
    half += 2 * d * d + v + d * c + 2 * d  # pooler, transform; decoder's bias; mpm, tia
    whole += (3 + 2) * 2 * d + d + d + 2  # norms; biases of pooler, transform and tia
    parameters = 4 * (quarter // 4 + half // 2 + whole)
    assert local["memory"]["parameters"] == parameters
    assert local["memory"]["optimiser"] == 2 * parameters + 2 * 4  # Adam's moments; its counter and the schedule's
    batch = 2 * (4 + 2 * t * 4 + 2 * 32 * 32 * 3)  # 8 products over 4 shards; nobody reads their groups
    assert local["memory"]["batch"] == batch + 4  # and the state's step
    assert local["memory"]["task_gradients"] <= 3 * parameters
    assert (
        sum(local["memory"][k] for k in local["memory"] if k not in ("total", "capacity")) <= local["memory"]["total"]
    )
    assert {tuple(c["axes"]) for c in local["collectives"]} >= {("tensor",), ("data",)}
    assert local["seconds"] is None and local["fits"] is None and figures["scaling"] == []
    assert local["flops"] > 3 * 2 * 2 * 8 * (t + p) * (4 * d * d + 2 * d * f) / 8
    assert json.loads(json.dumps(figures)) == figures or format_table(figures)


def test_a_plan_for_a_tpu_that_is_not_there(tmp_path):
    config = config_without_tables(num_layers=1, dtype="bfloat16")
    config = replace(config, adaptive=replace(config.adaptive, method="fixed"))
    figures = plan(config, ["v5e:2x4"], 2, print)
    (tpu,) = figures["topologies"]
    assert tpu["chips"] == 8 and tpu["batch_size"] == 16 and tpu["device"] == "TPU v5 lite" and tpu["fits"]
    params = tpu["memory"]["parameters"]
    found = [c for c in tpu["collectives"] if c["kind"] == "all-reduce"]
    assert all(c["axes"] == ("data",) and c["chips"] == 8 for c in found)
    assert params / 2 < sum(c["bytes"] for c in found) < 3 * params  # the gradient, some of it in bfloat16
    assert 0 < tpu["seconds"]["step_overlapped"] < tpu["seconds"]["step"] < 0.1
    plot(figures, tmp_path / "p.svg")
    assert "TPU v5 lite" in (tmp_path / "p.svg").read_text() and "| v5e:2x4 | 8 | 16 |" in "\n".join(
        format_table(figures)
    )
