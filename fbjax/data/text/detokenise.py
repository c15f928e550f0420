"""Piece ids back to words, and words to text; letter case and unusual spaces are lost."""

import re
from collections.abc import Iterable

from fbjax.data.text.scripts import UNSPACED
from fbjax.data.text.wordpiece import PAD_ID, Vocabulary

CONTINUES = "##"
_CLOSED_UP = (
    (re.compile(r" ([,.;:!?%)\]}])"), r"\1"),
    (re.compile(r"([(\[{$€£#]) "), r"\1"),
    (re.compile(r"(?<=\w) (['’/-]) (?=\w)"), r"\1"),  # t-shirt, men's; a dash between words is closed up too
    (re.compile(r"(\d)\. (?=\d)"), r"\1."),
    (re.compile(rf"(?<={UNSPACED.pattern}) (?={UNSPACED.pattern})"), ""),
)


def written_words(vocabulary: Vocabulary, ids: Iterable[int]) -> list[str]:
    """The words and punctuation marks of ``[CLS] pieces [SEP] ..``; a word without pieces is "[UNK]".

    What follows [SEP] is left out.
    """
    words = []
    for row in map(int, ids):
        if row in (vocabulary.sep_id, PAD_ID):
            break
        if row == vocabulary.cls_id:
            continue
        piece = vocabulary.piece(row)
        if piece.startswith(CONTINUES) and words:
            words[-1] += piece.removeprefix(CONTINUES)
        else:
            words.append(piece.removeprefix(CONTINUES))
    return words


def as_text(words: Iterable[str]) -> str:
    """`words` with spaces as English has them, and without any in scripts that write none."""
    text = " ".join(words)
    for pattern, replacement in _CLOSED_UP:
        text = pattern.sub(replacement, text)
    return text
