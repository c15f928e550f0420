"""Two evaluations held against each other, in figures and in words."""

import json

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.evaluation.compare import compare, print_figures
from fbjax.runs.stored_evaluation import EVALUATION, write_gallery

DIRECTIONS = ("image_to_text", "text_to_image")


def write_evaluation(workdir, ranks, digest="abc", step=7, prefix="q"):
    """What an evaluation leaves: `ranks` [Q] in both directions."""
    workdir.mkdir(exist_ok=True)
    rankings = [
        {"direction": direction, "query": f"{prefix}{i}", "positive": f"{prefix}{i}", "rank": int(rank)}
        for direction in DIRECTIONS
        for i, rank in enumerate(ranks)
    ]
    figures = {"num_queries": len(ranks), "candidates_sha256": digest, "checkpoint_step": step}
    content = {"data": None, "candidates": "lists.jsonl", "figures": figures, "rankings": rankings}
    (workdir / EVALUATION).write_text(json.dumps(content))
    return workdir


def with_gallery(workdir, strict, digest="g"):
    """The same over a gallery: `strict` ranks [Q] in both directions, all first where groups are left out."""
    workdir.mkdir(exist_ok=True)
    ranks = {direction: {"apart": [1] * len(strict), "strict": strict} for direction in DIRECTIONS}
    figures = {"gallery": len(strict), "num_queries": len(strict)}
    write_gallery(workdir, {"checkpoint_step": 7, "ids_sha256": digest, "figures": figures, "ranks": ranks})
    return workdir


def words(figures):
    said = []
    print_figures(figures, said.append)
    return said


def test_a_run_that_is_ahead_is_said_to_be(tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", [1] * 400 + [3] * 600)
    b = write_evaluation(tmp_path / "b", [1] * 430 + [3] * 570, step=9)
    figures = compare(a, b)
    rates = figures["text_to_image"]
    assert (rates["a"]["rank@1"], rates["b"]["rank@1"], rates["gain@1"]) == (0.4, 0.43, pytest.approx(0.03))
    low, high = rates["gain@1.ci"]
    deviation = np.sqrt(0.03 * 0.97 / 1000)  # paired: only 30 queries differ, all one way
    assert low == pytest.approx(0.03 - 1.96 * deviation, abs=2e-3) and high == pytest.approx(
        0.03 + 1.96 * deviation, abs=2e-3
    )
    assert any("Rank@1   A  40.0%  B  43.0%  B is ahead of A by 3.0 points [" in line for line in words(figures))
    assert any("A is ahead of B by 3.0 points [" in line for line in words(compare(b, a)))
    out = tmp_path / "comparison.json"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == figures and f"B: {b}, checkpoint 9" in capsys.readouterr().out


def test_runs_that_differ_both_ways_cannot_be_told_apart(tmp_path):
    a = write_evaluation(tmp_path / "a", [1] * 50 + [2] * 50 + [9] * 900)
    b = write_evaluation(tmp_path / "b", [2] * 50 + [1] * 51 + [9] * 899)
    figures = compare(a, b)["image_to_text"]
    assert figures["gain@1"] == pytest.approx(0.001)
    assert figures["detectable@1"] == pytest.approx(1.96 * np.sqrt(101 / 1000 / 1000), rel=0.1)
    assert figures["detectable@10"] == 4 / 1000  # no query differs: three that did would not be enough
    said = "\n".join(words(compare(a, b)))
    assert "cannot be told apart on these 1,000 queries (+0.1 [-" in said
    assert "the smallest difference they could have shown is about 0.4 points" in said


def test_runs_are_compared_over_what_both_were_evaluated_over(tmp_path):
    a = with_gallery(write_evaluation(tmp_path / "a", [1] * 100), [1] * 40 + [2] * 60)
    b = with_gallery(tmp_path / "b", [1] * 60 + [2] * 40)
    figures = compare(a, b)
    assert set(figures) == {"a", "b", "full"}
    strict = figures["full"]["text_to_image"]["strict"]
    assert (strict["a"]["rank@1"], strict["b"]["rank@1"], strict["gain@1"]) == (0.4, 0.6, pytest.approx(0.2))
    assert figures["full"]["image_to_text"]["apart"]["gain@1"] == 0
    ahead = "strict: Rank@1   A  40.0%  B  60.0%  B is ahead of A by 20.0 points ["
    assert any(ahead in line for line in words(figures))
    assert {"image_to_text", "full"} < set(compare(a, with_gallery(write_evaluation(b, [1] * 100), [1] * 100)))
    with pytest.raises(ValueError, match="different galleries or queries .*same --data and --queries"):
        compare(a, with_gallery(tmp_path / "c", [1] * 100, digest="another"))


@pytest.mark.parametrize("differing, told", [(3, False), (6, True)])
def test_as_few_differences_as_are_called_too_few_are_not_told(differing, told, tmp_path):
    a = write_evaluation(tmp_path / "a", [2] * 1000)
    b = write_evaluation(tmp_path / "b", [1] * differing + [2] * (1000 - differing))
    assert any("ahead" in line for line in words(compare(a, b))) == told


def test_what_cannot_be_compared_is_an_error_with_its_remedy(tmp_path, capsys):
    a, bare = write_evaluation(tmp_path / "a", [1, 2]), tmp_path / "bare"
    bare.mkdir()
    cases = {
        tmp_path / "nowhere": "no workdir",
        bare: f"run fbjax evaluate --workdir {bare} --candidates",
        write_evaluation(tmp_path / "b", [1, 2], digest="xyz"): "different lists (abc, xyz): run fbjax evaluate",
        write_evaluation(tmp_path / "c", [1, 2, 3]): "was asked 2 queries a direction",
        write_evaluation(tmp_path / "d", [1, 2], prefix="p"): "different queries of the same lists",
    }
    for b, message in cases.items():
        assert main(["compare", str(a), str(b)]) == 1
        assert message in capsys.readouterr().err
