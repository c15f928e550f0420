"""`fbjax bench`: the figures of the design, a PyTorch model that computes what we compute, and no TensorFlow."""

from dataclasses import replace

import numpy as np
import pytest

from fbjax.model.patch_features import build_patch_network
from fbjax.tools.bench.timing import Times, take_turns
from fbjax.tools.bench.workload import make_workload, padded_lengths, synthetic_batch, train_flops
from tests.support.runs import config_without_tables


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    times = Times({"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 4.0]})
    assert times.ratio_entry("x", "theirs", "ours") == {"x": 2.0, "x.range": [1.0, 3.0]}
    assert times.mixed("both", {"ours": 0.5, "theirs": 0.25}).seconds["both"] == [1.25, 2.0, 3.0]


def test_candidates_take_turns_and_the_first_rounds_do_not_count():
    runs = []
    times = take_turns({name: lambda name=name: runs.append(name) for name in "ab"}, 3, lambda turn: None)
    assert "".join(runs) == "ab" * 5 and [len(s) for s in times.seconds.values()] == [3, 3]


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
    from fbjax.tools.bench import torch_comparison, torch_model

    monkeypatch.setattr(torch_model, "NORM_EPSILON", 1e-3)
    config = config_without_tables()
    with pytest.raises(ValueError, match="not compared"):
        torch_comparison.Comparison(make_workload(config, build_patch_network(config.patches)), print)
