"""Which words of a query a run's model can read: a word without pieces, or that no bag holds, says nothing to it."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fbjax.data.text.stop_words import STOP_WORDS
from fbjax.model.ngrams import Ngrams, bag_of_ngrams, ngram_codes
from fbjax.runs.run import Run

MOST_WORDS = 64  # of a query that are looked at, and queries of one call
SHOWN = 3  # queries that are named


def known_words(run: Run, text: str) -> dict[str, bool]:
    """{word: whether the model knows it}; without punctuation, and words that a bag leaves out, such as "the"."""
    found = [(word, known) for word, known in run.vocabulary.known_words(text) if any(map(str.isalnum, word))]
    words = dict(found[:MOST_WORDS])
    if run.config.reads_encoder or not run.ngrams:
        return words
    framed = run.vocabulary.encode([*words, *[""] * (MOST_WORDS - len(words))], run.config.model.text_tokens)
    counted, in_bag = map(np.asarray, _in_bag(run.ngrams, framed))
    read = {word: bool(known and in_bag[i]) for i, (word, known) in enumerate(words.items()) if counted[i] or not known}
    return {word: known for word, known in read.items() if known or word.lower() not in STOP_WORDS}


def unknown_words(run: Run, queries: Sequence[str]) -> Iterator[str]:
    """A line for each of the first queries with words that the model does not know."""
    said = 0
    for query in queries[:MOST_WORDS]:
        words = known_words(run, query)
        unknown = [word for word, known in words.items() if not known]
        if not unknown:
            continue
        if said == SHOWN:
            yield "other queries have words that are not known to this model"
            return
        said += 1
        named = ", ".join(unknown[:10]) + ", .." * (len(unknown) > 10)
        if len(unknown) < len(words):
            yield f"not known to this model, so not searched for: {named}"
        else:
            yield f"no word of the query is known to this model: {named}; its scores mean nothing"


@jax.jit
def _in_bag(ngrams: Ngrams, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each text, one word, counts in a bag, and whether the bag's vocabulary has it, bool [B] each."""
    counted = (ngram_codes(ngrams, ids) != 0).any(axis=1)
    return counted, (bag_of_ngrams(ngrams, ids, ids.shape[1]).weights > 0).any(axis=1)
