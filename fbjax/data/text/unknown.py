"""How much of some texts a vocabulary does not know: what becomes [UNK] says nothing to a model."""

import collections
import dataclasses
from collections.abc import Sequence

from fbjax.data.text.wordpiece import Vocabulary

MOSTLY = 0.5  # share of a text's letters
TOO_MANY = 0.5  # share of the texts: most are mostly unknown
SHOWN = 3  # examples


@dataclasses.dataclass(frozen=True)
class Unknown:
    """What a vocabulary does not know of N texts. Prints as part of a sentence."""

    num_texts: int
    pieces: float  # share of all pieces that are [UNK]
    texts: float  # share of the texts more than half of whose letters are in unknown words
    words: tuple[str, ...]  # the most frequent unknown words of a sample

    @property
    def too_many(self) -> bool:
        return self.texts > TOO_MANY

    def __str__(self) -> str:
        such = f", such as {', '.join(self.words)}" if self.words else ""
        mostly = f"{_percent(self.texts)} of the texts are mostly unknown to the vocabulary"
        return f"{_percent(self.pieces)} of the word pieces are unknown{such}; {mostly}"


def measure_unknown(vocabulary: Vocabulary, texts: Sequence[str]) -> Unknown:
    """Measures all of `texts`; without texts, nothing is unknown."""
    pieces, letters = vocabulary.unknown_shares(texts)
    words = collections.Counter()
    for text in [text for text, share in zip(texts, letters, strict=True) if share][:1000]:
        words.update(word for word, known in vocabulary.known_words(text) if not known)
    shown = tuple(word if len(word) <= 20 else word[:18] + ".." for word, _ in words.most_common(SHOWN))
    return Unknown(len(texts), pieces, float((letters > MOSTLY).mean()) if len(texts) else 0.0, shown)


def _percent(share: float) -> str:
    """Never 0 % of something, and never 100 % of less than all."""
    return f"{share:.1%}" if 0.0005 <= share < 0.9995 or share in (0, 1) else "under 0.1%" if share < 0.5 else "99.9%"
