"""Figures against brute force and by hand, and the candidate lists that they are computed over."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fbjax.evaluation import metrics
from fbjax.evaluation.candidates import DIRECTIONS, CandidateList, any_category_negatives, draw_lists, read_lists
from fbjax.evaluation.matching.calibration import brier_score, calibration, expected_error, fit
from fbjax.inference.pair_scorer import match_probability

few_values = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])  # so that ties abound


@given(st.data(), st.integers(1, 6), st.integers(1, 9))
def test_ranks_are_those_of_a_double_loop_with_ties_lost(data, num_queries, num_others):
    positive = data.draw(arrays(np.float32, num_queries, elements=few_values))
    others = data.draw(arrays(np.float32, (num_queries, num_others), elements=few_values))
    expected = []
    for query in range(num_queries):
        rank = 1
        for other in others[query]:
            rank += bool(other >= positive[query])
        expected.append(rank)
    assert metrics.rank_of_positive(positive, others).tolist() == expected


def test_a_shorter_list_filled_up_with_minus_infinity_keeps_its_rank():
    others = np.array([[1.0, -np.inf, -np.inf], [-1.0, -np.inf, -np.inf]])
    assert metrics.rank_of_positive(np.zeros(2), others).tolist() == [2, 1]


def test_retrieval_by_hand():
    # 20 queries, one each of the ranks 1 to 20
    positive = np.zeros(20)
    others = np.where(np.arange(100) < np.arange(20)[:, None], 1.0, -1.0)
    figures = metrics.retrieval(positive, others)
    assert [figures[f"rank@{k}"] for k in (1, 5, 10)] == [0.05, 0.25, 0.5]


@given(arrays(np.float32, (5, 101), elements=few_values))
def test_rank_at_101_of_101_candidates_is_one(scores):
    assert metrics.retrieval(scores[:, 0], scores[:, 1:])["rank@101"] == 1.0


def test_a_constant_scorer_is_ranked_last_and_has_no_auc():
    positive, others = np.full(4, 0.7), np.full((4, 100), 0.7)
    assert metrics.rank_of_positive(positive, others).tolist() == [101] * 4
    assert metrics.retrieval(positive, others)["rank@10"] == 0.0
    assert metrics.auc(positive, others[:, 0]) == 0.0


@given(st.lists(few_values, min_size=1, max_size=8), st.lists(few_values, min_size=1, max_size=8))
def test_auc_is_that_of_a_double_loop_with_ties_lost(positive, negative):
    won = sum(p > n for p in positive for n in negative)
    expected = won / (len(positive) * len(negative))
    assert metrics.auc(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_balanced_accuracy_by_hand():
    # three of four positives above 0, one of four negatives below; 0 itself is wrong on either side
    figures = metrics.matching(np.array([1.0, 2.0, 0.5, 0.0]), np.array([-1.0, 0.0, 3.0, 4.0]))
    assert figures["accuracy"] == (3 / 4 + 1 / 4) / 2
    assert figures["auc"] == (2 + 2 + 2 + 1) / 16


def test_an_interval_holds_its_estimate_and_shrinks_as_one_over_the_root_of_the_queries():
    widths = []
    for num in (100, 1600):
        hits = np.arange(num) % 4 == 0
        low, high = metrics.interval(lambda hit: hit.mean(), hits)
        assert low < 0.25 < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 100), rel=0.1)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.1)


def test_within_strata_a_mean_over_labels_lies_in_its_interval_however_rare_the_labels():
    # one label of 200 half told right, and 20 labels of one product each, all told wrong
    labels = np.concatenate([np.zeros(200, int), np.arange(1, 21)])
    right = np.concatenate([np.arange(200) % 2, np.zeros(20)])

    def mean_recall(labels, right):
        return np.mean([right[labels == label].mean() for label in np.unique(labels)])

    estimate = mean_recall(labels, right)
    low, high = metrics.interval(mean_recall, labels, right, strata=labels)
    assert low < estimate < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 200) / 21, rel=0.1)
    assert metrics.interval(mean_recall, labels, right)[0] > estimate  # labels that are missing count as nothing


def test_the_interval_of_nothing_but_hits_is_a_point():
    figures = metrics.retrieval(np.ones(30), np.zeros((30, 100)))
    assert figures["rank@1"] == 1.0
    assert figures["rank@1.ci"] == [1.0, 1.0]


def test_intervals_of_matching_hold_their_estimates():
    rng = np.random.default_rng(0)
    figures = metrics.matching(rng.normal(0.5, 1, 200), rng.normal(-0.5, 1, 200))
    for name in ("accuracy", "auc"):
        low, high = figures[f"{name}.ci"]
        assert low < figures[name] < high
    assert metrics.interval(metrics.auc, np.ones(9), np.zeros(9)) == (1.0, 1.0)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("figures", [metrics.retrieval, lambda p, o: metrics.matching(p, o[:, 0])])
def test_scores_that_are_not_finite_raise(figures, broken):
    sound = np.zeros(3), np.zeros((3, 2))
    figures(*sound)
    for place in (0, 1):
        scores = [part.copy() for part in sound]
        scores[place].flat[0] = broken
        with pytest.raises(ValueError, match="not finite"):
            figures(*scores)


def brute_force_error(pairs):
    """15 bins in a loop over the sorted pairs; equal probabilities share their matches."""
    pairs, total = sorted(pairs), 0.0
    for b in range(bins := min(15, len(pairs))):
        gap = 0.0
        for said, _ in pairs[b * len(pairs) // bins : (b + 1) * len(pairs) // bins]:
            equal = [label for other, label in pairs if other == said]
            gap += sum(equal) / len(equal) - said
        total += abs(gap) / len(pairs)
    return total


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1))
def test_the_calibration_error_is_that_of_a_loop_in_any_order(pairs):
    probabilities, labels = np.array(pairs, float).T
    found = expected_error(probabilities, labels)
    assert found == pytest.approx(brute_force_error(pairs), abs=1e-9)
    order = np.random.default_rng(len(pairs)).permutation(len(pairs))
    assert expected_error(probabilities[order], labels[order]) == pytest.approx(found, abs=1e-9)
    assert brier_score(probabilities, labels) == pytest.approx(np.mean([(p - y) ** 2 for p, y in pairs]), abs=1e-12)


def test_calibration_errors_by_hand():
    """Of a constant guess, of certainties, and of a sample that is as often right as it says."""
    labels = np.repeat([1.0, 0.0], [28, 32])  # bins of 4
    assert expected_error(np.full(60, 0.8), labels) == pytest.approx(0.8 - 28 / 60)
    assert expected_error(labels, labels) == 0 and brier_score(labels, labels) == 0
    assert expected_error(1 - labels, labels) == 1 == brier_score(1 - labels, labels)
    rng = np.random.default_rng(0)
    probabilities = rng.random(40_000)
    assert expected_error(probabilities, rng.random(40_000) < probabilities) < 0.01


def matched(rng, queries):
    """Scores of matches and of others, normal with variance 2 around 1 and -1: sigmoid(score) is the probability."""
    return rng.normal(1, np.sqrt(2), queries), rng.normal(-1, np.sqrt(2), queries)


@pytest.mark.parametrize("factor, shift", [(3.0, 0.0), (0.2, 0.0), (3.0, 1.5), (1.0, -2.0)])
def test_scores_times_three_give_back_the_temperature_three(factor, shift, monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 40)
    positive, negative = (factor * scores + shift for scores in matched(np.random.default_rng(0), 8000))
    fitted = np.arange(8000) % 2 == 0
    found = calibration(positive, negative, fitted)
    assert found["temperature"] == pytest.approx(factor, rel=0.06)
    assert found["bias"] == pytest.approx(-shift / factor, abs=0.06)
    assert (found["num_fitted"], found["num_queries"]) == (4000, 4000)
    before, after = found["raw"], found["calibrated"]
    assert after["ece"] < 0.02 < 0.05 < before["ece"] and after["brier"] < before["brier"]
    assert after["ece"] < 2 * after["ece_if_exact"] and before["ece"] > 5 * before["ece_if_exact"]
    for errors in (before, after):
        assert len(errors["bins"]) == 15 and sum(count for *_, count in errors["bins"]) == 8000
        low, high = errors["brier.ci"]
        assert low < errors["brier"] < high and errors["ece.ci"][0] < errors["ece.ci"][1]
    # the queries that were fitted on do not enter the errors
    positive[fitted], negative[fitted] = positive[fitted] / 2, negative[fitted] - 1
    assert calibration(positive, negative, fitted)["raw"] == before


def test_scores_that_tell_all_or_nothing_have_finite_temperatures():
    everything = fit(np.full(20, 4.0), np.full(20, -4.0))
    assert 0 < everything[0] < 2 and everything[1] == pytest.approx(0, abs=1e-3)
    probability = match_probability(np.array([4.0]), *everything)[0]
    assert probability == pytest.approx(21 / 22, abs=1e-3)  # Platt's rule
    for positive, negative in ((np.zeros(20), np.zeros(20)), (np.full(20, -4.0), np.full(20, 4.0))):
        temperature, bias = fit(positive, negative)
        assert np.isfinite(temperature) and match_probability(positive, temperature, bias) == pytest.approx(
            0.5, abs=1e-2
        )
    assert calibration(np.ones(19), np.zeros(19), np.arange(19) < 10) is None


LINE = {"direction": "image_to_text", "query": "a", "positive": "a", "candidates": ["a", "b", "c"]}


def write_lists(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lists_are_read_as_they_were_written(tmp_path):
    other = {"direction": "text_to_image", "query": 7, "positive": 8, "candidates": [9, 8]}
    lists, digest = read_lists(write_lists(tmp_path / "lists.jsonl", LINE, "", other))
    assert lists == [
        CandidateList("image_to_text", "a", "a", ("a", "b", "c")),
        CandidateList("text_to_image", "7", "8", ("9", "8")),
    ]
    assert [x.others for x in lists] == [("b", "c"), ("9",)]
    assert digest == hashlib.sha256((tmp_path / "lists.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "line, says",
    [
        ("{not json", "JSONDecodeError"),
        ('["image_to_text"]', "TypeError"),
        ({name: LINE[name] for name in ("direction", "query", "candidates")}, "positive"),
        (LINE | {"candidates": None}, "candidates"),
        (LINE | {"candidates": "abc"}, "candidates"),
        (LINE | {"direction": "sideways"}, "sideways.*image_to_text, text_to_image"),
        (LINE | {"candidates": ["a", "b", "b"]}, "distinct"),
        (LINE | {"candidates": ["a", "a", "b"]}, "distinct"),
        (LINE | {"candidates": ["b", "c"]}, "hold the positive 'a' once"),
        (LINE | {"candidates": ["a"]}, "at least one other"),
    ],
)
def test_a_line_that_is_no_list_is_named_with_its_file(tmp_path, line, says):
    path = write_lists(tmp_path / "lists.jsonl", LINE, line)
    with pytest.raises(ValueError, match=f"lists.jsonl line 2.*{says}"):
        read_lists(path)


def test_a_missing_or_empty_file_of_lists_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        read_lists(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="empty.jsonl holds no candidate list"):
        read_lists(write_lists(tmp_path / "empty.jsonl", "", " "))


def test_the_first_queries_of_each_direction_are_taken(tmp_path):
    order = ("image_to_text", "text_to_image", "text_to_image", "image_to_text", "image_to_text")
    lines = [LINE | {"direction": direction, "query": str(i)} for i, direction in enumerate(order)]
    path = write_lists(tmp_path / "lists.jsonl", *lines)
    taken = {(x.direction, x.query) for x in read_lists(path, 2)[0]}
    assert taken == {("image_to_text", "0"), ("image_to_text", "3"), ("text_to_image", "1"), ("text_to_image", "2")}
    assert read_lists(path, 2)[1] == read_lists(path)[1]


catalogues = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=2, max_size=24)


def make_records(products):
    """What `draw_lists` reads of prepared records: product i is "pi"."""
    categories, groups = np.array(products).T
    ids = np.array([f"p{i}" for i in range(len(products))])

    class Records(SimpleNamespace):
        def __len__(self):
            return len(ids)

        def rows(self, wanted):
            return np.array([int(i[1:]) for i in wanted])

    return Records(ids=ids, categories=categories, groups=groups)


@given(catalogues, st.integers(1, 6), st.integers(1, 8), st.integers(0, 3))
def test_drawn_others_are_of_the_query_s_category_and_never_of_its_group(products, num_others, num_queries, seed):
    pools = [[j for j, (c, g) in enumerate(products) if c == category and g != group] for category, group in products]
    num_drawable = sum(bool(pool) for pool in pools)
    if not num_drawable:
        with pytest.raises(ValueError, match="no category holds two groups"):
            draw_lists(make_records(products), num_others, num_queries, seed)
        return
    lists, _ = draw_lists(make_records(products), num_others, num_queries, seed)
    for direction in DIRECTIONS:
        queries = [x.query for x in lists if x.direction == direction]
        assert len(queries) == len(set(queries)) == min(num_queries, num_drawable)
    for x in lists:
        pool = pools[int(x.query[1:])]
        others = [int(i[1:]) for i in x.others]
        assert x.candidates.count(x.positive) == 1 and x.positive == x.query
        assert len(others) == len(x.candidates) - 1 == min(num_others, len(pool))
        assert len(set(others)) == len(others) and set(others) <= set(pool)


def test_drawn_lists_and_their_hash_are_those_of_the_seed():
    records = make_records([(i % 3, i) for i in range(30)])
    lists, digest = draw_lists(records, 5, 10, seed=1)
    assert draw_lists(records, 5, 10, seed=1) == (lists, digest)
    others, other_digest = draw_lists(records, 5, 10, seed=2)
    assert lists != others and digest != other_digest


@given(catalogues.filter(lambda products: len({group for _, group in products}) > 1), st.integers(0, 5))
def test_any_category_negatives_are_never_of_the_query_s_group(products, seed):
    lists = [CandidateList("image_to_text", f"p{i}", f"p{i}", (f"p{i}",)) for i in range(len(products))]
    negatives = any_category_negatives(lists, make_records(products), seed)
    assert len(negatives) == len(lists)
    for x, negative in zip(lists, negatives, strict=True):
        assert products[int(x.query[1:])][1] != products[int(negative[1:])][1]


def test_any_category_negatives_reach_every_product_of_other_groups():
    records = make_records([(0, 0), (0, 0), (0, 1), (1, 2)])
    lists = [CandidateList("image_to_text", "p0", "p0", ("p0",))] * 60
    assert set(any_category_negatives(lists, records)) == {"p2", "p3"}
