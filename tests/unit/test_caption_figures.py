"""Figures of captions: by hand, beside the libraries as they are commonly called, and of what has no words."""

import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from fbjax.evaluation.captions.captioning import captioning_figures, print_figures
from fbjax.evaluation.captions.figures import NAMES, bleu, bleu_counts, caption_figures, counted_words

OWN = ["a red cotton dress with long sleeves", "blue running shoes for men", "a black bag", "red cotton dress"]
WRITTEN = ["a red dress with long sleeves", "blue running shoes for men", "dress", "a red cotton skirt"]


def split(texts):
    return [text.split() for text in texts]


def test_figures_are_those_of_the_usual_evaluation(capsys):
    ours = caption_figures(split(WRITTEN), split(OWN))
    references, captions = ({i: [text] for i, text in enumerate(texts)} for texts in (OWN, WRITTEN))
    expected = {"bleu4": Bleu(4).compute_score(references, captions)[0][3]}
    expected |= {"rouge_l": Rouge().compute_score(references, captions)[0]}
    expected |= {"cider": Cider().compute_score(references, captions)[0]}
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-6)
        assert ours[f"{name}.ci"][0] <= value <= ours[f"{name}.ci"][1]


def test_bleu_by_hand():
    """One caption of 5 words beside 6: 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, 0 of 2 fours; then one that fits."""
    counts = bleu_counts(split(["a red hat with bows"]), split(["a red hat has two bows"]))
    assert counts[0].tolist() == [5, 6, 5, 4, 3, 2, 4, 2, 1, 0]
    fitting = bleu_counts(split([OWN[0]]), split([OWN[0]]))
    both = np.concatenate([counts, fitting])
    precisions = [(4 + 7) / (5 + 7), (2 + 6) / (4 + 6), (1 + 5) / (3 + 5), (0 + 4) / (2 + 4)]
    assert bleu(both) == pytest.approx(math.prod(precisions) ** 0.25 * math.exp(1 - 13 / 12), rel=1e-6)


def test_meteor_by_hand():
    """Six of seven words, in two runs: F = 10 P R / (R + 9 P) with P 1 and R 6/7, less .5 (2 / 6)^3."""
    ours = caption_figures(split(WRITTEN[:1]), split(OWN[:1]))["meteor"]
    assert ours == pytest.approx((10 * 6 / 7) / (6 / 7 + 9) * (1 - 0.5 * (2 / 6) ** 3))
    stems = caption_figures([["dresses"]], [["dress"]])["meteor"]  # by the stem; one run of one word
    assert stems == pytest.approx(0.5)
    assert caption_figures([["frock"]], [["dress"]])["meteor"] == 0  # no synonyms


def test_captions_without_words_and_products_without_text_have_sound_values():
    own = [*split(OWN), [","], []]
    captions = [[], ["dress"], [",", "!"], *split(OWN[3:]), ["red"], []]
    figures = captioning_figures(captions, own, [OWN[0].split()] * 6)
    assert (figures["products"], figures["without"], figures["empty"], figures["different"]) == (4, 2, 2, 3)
    assert figures["same"] == 0.25 and figures["words"] == {"caption": 1.0, "reference": 4.5}
    assert all(math.isfinite(value) for name in NAMES for value in figures[f"{name}.ci"])
    said = []
    print_figures(figures | {"beams": 3}, said.append)
    assert "an empty caption, which counts 0: 2 products" in said[-2] and "no text: 2 products" in said[-1]
    nothing = caption_figures([[]], [["dress"]])
    assert nothing["bleu4"] < 1e-6 and nothing["meteor"] == nothing["rouge_l"] == nothing["cider"] == 0
    with pytest.raises(ValueError, match="none of the 1 products has a text"):
        captioning_figures([["red"]], [[]], [["red"]])


def test_punctuation_and_letter_case_do_not_count():
    assert counted_words(["A", "t", "-", "Shirt", ",", "[UNK]", "100", "%"]) == ["a", "t", "shirt", "[unk]", "100"]
