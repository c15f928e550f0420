"""Protocol ``captioning``: how close captions come to the products' own texts.

Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110) reports BLEU-4, METEOR, ROUGE-L and CIDEr. A product's reference is
its own text as the model reads it: cut at model.text_tokens, in the vocabulary's letters, a word without pieces as
"[UNK]", which no caption has. Products that share a picture or a group each keep their own.
"""

from collections.abc import Callable

import numpy as np

from fbjax.evaluation import metrics
from fbjax.evaluation.captions.figures import NAMES, caption_figures, counted_words

Words = list[list[str]]


def captioning_figures(captions: Words, references: Words, others: Words) -> dict:
    """The figures of N captions, and of `others`: the text of another product for each.

    Products whose own text has no word are left out ("without"). Raises ValueError where none has any.
    """
    there = [row for row, words in enumerate(references) if counted_words(words)]
    if not there:
        raise ValueError(f"none of the {len(references):,} products has a text to compare a caption with")
    written, own, drawn = ([counted_words(of[row]) for row in there] for of in (captions, references, others))
    figures = {"products": len(there), "without": len(references) - len(there)} | caption_figures(written, own)
    figures["same"] = float(np.mean([a == b for a, b in zip(written, own, strict=True)]))
    figures["different"], figures["empty"] = len(set(map(tuple, written))), written.count([])
    figures["words"] = {"caption": _mean_length(written), "reference": _mean_length(own)}
    return figures | {"another": caption_figures(drawn, own)}


def _mean_length(texts: Words) -> float:
    return float(np.mean([len(words) for words in texts]))


def print_figures(figures: dict, say: Callable[[str], None]) -> None:
    """Prints the figures of the protocol, times 100 as papers have them."""
    metrics.print_row("captions", f"{spoken(figures)}  ({figures['products']:,} products)", say)
    metrics.print_row("another's text", spoken(figures["another"]), say)
    words = figures["words"]
    say(
        f"  {figures['different']:,} different captions, {words['caption']:.1f} words each (the texts: "
        f"{words['reference']:.1f}), {figures['same']:.1%} exactly the text; {figures['beams']} beams"
    )
    for kind, said in (("empty", "an empty caption, which counts 0"), ("without", "left out, as they have no text")):
        if figures[kind]:
            say(f"  NOTE: {said}: {figures[kind]:,} products")


def spoken(figures: dict) -> str:
    """``BLEU-4 5.7 [5.2, 6.1]  METEOR ..``."""
    return "  ".join(f"{title} {with_interval(figures, name)}" for name, title in NAMES.items())


def with_interval(figures: dict, name: str) -> str:
    low, high = figures[f"{name}.ci"]
    return f"{100 * figures[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
