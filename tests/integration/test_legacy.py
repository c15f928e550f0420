"""The release's miscount: what it did to figures, by hand and on the figures that the release published."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.cli.main import main
from fbjax.evaluation.released.legacy import legacy_figures, list_rows, read_scores


def published_rows():
    """1,000 queries x 101 candidates whose true hits within the top 1, 5, 10, 101 are 444, 845, 942, 1000."""
    rng = np.random.default_rng(0)
    ranks = np.concatenate(
        [np.full(444, 1), rng.integers(2, 6, 401), rng.integers(6, 11, 97), rng.integers(11, 102, 58)]
    )
    scores = np.tile(np.arange(101, 0, -1, dtype=float), (1000, 1))  # the k-th best of each query in place k - 1
    positive = np.arange(101) == ranks[:, None] - 1
    queries = np.repeat([f"q{i}" for i in range(1000)], 101)
    return queries, positive.reshape(-1), scores.reshape(-1)


def test_the_figures_that_the_release_published_are_right_hits_over_too_many_queries():
    figures = legacy_figures(*published_rows(), seed=0)
    assert [figures["correct"][f"rank@{k}"] for k in (1, 5, 10)] == [0.444, 0.845, 0.942]
    assert figures["correct"]["queries"] == 1000
    assert figures["keys"] == pytest.approx(1790, abs=40)  # 1000 + 1000 (1 - exp(-1579 / 1000))
    assert figures["rank@1"] == pytest.approx(0.25, abs=0.01)
    assert figures["rank@5"] == pytest.approx(0.47, abs=0.01)
    assert figures["rank@10"] == pytest.approx(0.526, abs=0.01)


def test_the_miscount_by_hand():
    # batches of 2: rows 0 and 2 come first, so that "a" is the key of rows 0 and 2, " a" that of row 1
    queries, positive, scores = ["a", "a", "a", "b"], [False, True, False, True], [9.0, 1.0, 5.0, 0.0]
    figures = legacy_figures(queries, positive, scores, batch_size=2)
    assert figures["keys"] == 3 and figures["rank@1"] == pytest.approx(2 / 3)
    assert figures["correct"]["rank@1"] == 0.5 and figures["correct"]["rank@5"] == 1.0
    whole = legacy_figures(queries, positive, scores, batch_size=100)
    assert whole["keys"] == 3  # "a" of row 0, " a" of rows 1 and 2, " b"
    assert legacy_figures(["a"], [False], [0.0])["correct"] == {"queries": 1, "without_positive": 1} | {
        name: value for k in (1, 5, 10) for name, value in ((f"rank@{k}", 0.0), (f"rank@{k}.ci", [0.0, 0.0]))
    }


rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.booleans(), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), min_size=1, max_size=30
)


@given(rows, st.integers(1, 5))
def test_both_readings_are_those_of_the_printed_lists(rows, batch_size):
    """The release's way: print each batch's ids as a list, cut the line at its commas, rank each key's rows."""
    for cut, get in ((True, lambda f: f), (False, lambda f: f["correct"])):
        kept = {}
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids = str([query for query, _, _ in batch])[1:-1].split(",") if cut else [query for query, _, _ in batch]
            for identity, (_, positive, score) in zip(ids, batch, strict=True):
                kept.setdefault(identity, []).append((positive, score))
        hits = {k: 0 for k in (1, 5, 10)}
        for members in kept.values():
            ordered = sorted(members, key=lambda row: (-row[1], row[0]))  # ties against the positive
            for k in hits:
                hits[k] += any(positive for positive, _ in _best(ordered, k))
        figures = get(legacy_figures(*zip(*rows, strict=True), batch_size=batch_size))
        assert figures["keys" if cut else "queries"] == len(kept)
        assert [figures[f"rank@{k}"] for k in hits] == pytest.approx([hits[k] / len(kept) for k in hits])


def _best(ordered, k):
    """The first k of a ranking in which only the best positive counts: further ones push nothing down."""
    first = next((i for i, (positive, _) in enumerate(ordered) if positive), len(ordered))
    return [row for i, row in enumerate(ordered) if i <= first][:k]


def test_lists_become_rows_without_what_fills_them_up():
    queries, positive, scores = list_rows(np.array([1.0, 2.0]), np.array([[0.5, 0.25], [3.0, -np.inf]]))
    assert queries.tolist() == [0, 0, 0, 1, 1] and scores.tolist() == [1.0, 0.5, 0.25, 2.0, 3.0]
    assert positive.tolist() == [True, False, False, True, False]


def test_the_command_reads_a_score_file(tmp_path, capsys):
    path, out = tmp_path / "scores.tsv", tmp_path / "legacy.json"
    lines = [f"{q}\t{int(p)}\t{s}" for q, p, s in zip(*published_rows(), strict=True)][: 101 * 64]
    path.write_text("query\tlabel\tscore\n" + "\n".join(lines) + "\n\n")
    assert [len(x) for x in read_scores(path)] == [101 * 64] * 3
    assert main(["legacy", str(path), "--shuffle", "0", "--out", str(out)]) == 0, capsys.readouterr().err
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["correct"]["rank@1"] == 1.0 > figures["rank@1"]  # the first 444 queries are all hits
    assert "miscounted on purpose" in printed and "(correct)" in printed and f"{figures['keys']} keys of 64" in printed


@pytest.mark.parametrize(
    "line, says",
    [
        ("a\t1", "line 2 is no row of query, label, score"),
        ("a\tyes\t0.5", "line 2: label 'yes'"),
        ("a\t1\tnan", "line 2: score 'nan'"),
        ("a\t1\tmuch", "line 2: score 'much'"),
        ("a\t0\t0.5", "holds no row with label 1, of 2"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_file(line, says, tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text(f"a\t0\t0.25\n{line}\n")
    with pytest.raises(ValueError, match=f"scores.tsv.*{says}"):
        read_scores(path)
    with pytest.raises(FileNotFoundError, match="nowhere.tsv"):
        read_scores(tmp_path / "nowhere.tsv")
