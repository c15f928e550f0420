"""BLEU-4, METEOR, ROUGE-L and CIDEr of captions, each beside one reference, from lists of words.

BLEU, ROUGE-L and CIDEr (in fact CIDEr-D) are COCO's own code, from the package `pycocoevalcap`. METEOR is that of
`nltk`, whose constants are those of Lavie and Agarwal 2007, without synonyms: words match as they are or by Porter's
stem. COCO's METEOR (1.5) needs Java, WordNet and a table of paraphrases, and is another number.
"""

import numpy as np

from fbjax.evaluation import metrics

ORDER = 4  # of n-grams
NAMES = {"bleu4": "BLEU-4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's, which keep a BLEU without any n-gram just above 0


def check_installed() -> None:
    """Raises ModuleNotFoundError, with the remedy, where a library is missing."""
    try:
        import nltk  # noqa: F401
        import pycocoevalcap  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"protocol captioning needs {error.name}: pip install 'fbjax[caption]'") from None


def counted_words(words: list[str]) -> list[str]:
    """The words that figures count: in small letters, without punctuation, as in COCO's evaluation."""
    return [word.lower() for word in words if any(map(str.isalnum, word))]


def caption_figures(captions: list[list[str]], references: list[list[str]]) -> dict:
    """``{"bleu4": .., "bleu4.ci": [lo, hi], ..}`` of N captions and their references, lists of `counted_words`.

    BLEU is of the corpus, the others are means over products; CIDEr weighs n-grams by how many of these references have
    them, in the intervals too. An empty caption counts 0 in all. Raises ValueError where a reference is empty.
    """
    if not all(references):
        raise ValueError("a reference has no word: leave its product out")
    counts = bleu_counts(captions, references)
    pairs = list(zip(captions, references, strict=True))
    of_products = {
        "meteor": np.array([_meteor(*pair) for pair in pairs]),
        "rouge_l": np.array([_rouge_l(*pair) for pair in pairs]),
        "cider": _cider(captions, references),
    }
    figures = {"bleu4": bleu(counts), "bleu4.ci": list(metrics.interval(bleu, counts))}
    for name, values in of_products.items():
        figures |= metrics.mean_of(name, values)
    return figures


def bleu_counts(captions: list[list[str]], references: list[list[str]]) -> np.ndarray:
    """[N, 2 + 2 ORDER]: words of caption and of reference, then by n the caption's n-grams and those that match."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDER)
    for caption, reference in zip(captions, references, strict=True):
        scorer += (" ".join(caption), [" ".join(reference)])
    rows = [(x["testlen"], *x["reflen"], *x["guess"], *x["correct"]) for x in scorer.ctest]
    return np.array(rows, float)


def bleu(counts: np.ndarray) -> float:
    """Corpus BLEU-4 of `bleu_counts`, as `BleuScorer.compute_score` has it."""
    written, wanted, *counted = counts.sum(axis=0)
    guesses, right = np.array(counted[:ORDER]), np.array(counted[ORDER:])
    precision = np.exp(np.log((right + TINY) / (guesses + SMALL)).mean())
    ratio = (written + TINY) / (wanted + SMALL)
    return float(precision * np.exp(min(0.0, 1 - 1 / ratio)))


class _NoSynonyms:
    """In place of WordNet, which is no package."""

    @staticmethod
    def synsets(word: str) -> tuple:
        return ()


def _meteor(caption: list[str], reference: list[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return single_meteor_score(reference, caption, wordnet=_NoSynonyms) if caption else 0.0


def _rouge_l(caption: list[str], reference: list[str]) -> float:
    from pycocoevalcap.rouge.rouge import Rouge

    return Rouge().calc_score([" ".join(caption)], [" ".join(reference)]) if caption else 0.0


def _cider(captions: list[list[str]], references: list[list[str]]) -> np.ndarray:
    """[N]. 0 for a single product: an n-gram that all references have weighs nothing."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=ORDER)
    for caption, reference in zip(captions, references, strict=True):
        scorer += (" ".join(caption), [" ".join(reference)])
    return np.array(scorer.compute_score()[1])
