"""WordPiece vocabularies: text becomes piece ids, each with the number of its word.

Sources are a vocab.txt, such as a pretrained BERT's, the part of it that a catalogue uses, or training on a catalogue's
text. A vocabulary is stored as one tokenizer.json.
"""

import collections
import hashlib
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from fbjax.core.paths import as_path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID = 0
MAX_LETTERS = 1000  # of a trained vocabulary: the most frequent ones
NO_WORD = -1  # the word number of [CLS], [SEP] and [PAD]


class Vocabulary:
    """A WordPiece tokenizer whose [PAD] is id 0."""

    def __init__(self, tokenizer: Tokenizer, source: str):
        missing = [piece for piece in SPECIAL if tokenizer.token_to_id(piece) is None]
        if missing:
            raise ValueError(f"vocabulary {source} lacks {', '.join(missing)}")
        if (row := tokenizer.token_to_id("[PAD]")) != PAD_ID:
            raise ValueError(f"vocabulary {source} has [PAD] at row {row}, expected {PAD_ID}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.cls_id, self.sep_id, self.mask_id = (tokenizer.token_to_id(piece) for piece in SPECIAL[2:])

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """From a vocab.txt with one piece per line. Lowercases text unless a piece has an uppercase letter."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no vocabulary file {path}")
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines also splits at U+2028
        missing = [piece for piece in SPECIAL if piece not in pieces]
        if missing:
            raise ValueError(f"vocabulary {path} lacks {', '.join(missing)}")
        if len(set(pieces)) != len(pieces):
            raise ValueError(f"vocabulary {path} lists a piece twice")
        lowercase = not any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
        wordpiece = BertWordPieceTokenizer({piece: i for i, piece in enumerate(pieces)}, lowercase=lowercase)
        return cls(wordpiece._tokenizer, str(path))

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """At most `size` pieces (or the alphabet, if larger) trained on `texts`; deterministic.

        The trainer orders letters randomly, so they are given to it as special tokens in sorted order.
        """
        wordpiece = BertWordPieceTokenizer(lowercase=True)
        counts = _count_words(wordpiece, texts)
        letters = collections.Counter()
        for word, count in counts.items():
            for letter in word:
                letters[letter] += count
        kept = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_LETTERS])
        words = [word for word in sorted(counts) if kept.issuperset(word)]
        alphabet = sorted({word[0] for word in words}) + sorted({f"##{x}" for word in words for x in word[1:]})
        wordpiece.train_from_iterator(
            (" ".join([word] * counts[word]) for word in words),
            vocab_size=size,
            special_tokens=[*SPECIAL, *alphabet],
            show_progress=False,
        )
        wordpiece = BertWordPieceTokenizer(wordpiece.get_vocab(with_added_tokens=True), lowercase=True)
        return cls(wordpiece._tokenizer, f"of {size} pieces trained on the catalogue")

    def restricted_to(self, texts: Iterable[str]) -> "Vocabulary":
        """The pieces that `texts` use, and single letters (ASCII and those of `texts`) for new words.

        Special pieces come first, the others keep their order. A text of the same words has the same pieces, since each
        longest fitting piece is kept.
        """
        known = set(self.rows)
        words = _count_words(self._tokenizer, texts)
        longest = self._tokenizer.model.max_input_chars_per_word
        used = {piece for word in words if len(word) <= longest for piece in _longest_first(word, known)}
        letters = {*string.ascii_letters, *string.digits, *string.punctuation}.union(*used)
        kept = [piece for piece in self.rows if piece in used or piece.removeprefix("##") in letters]
        rows = {piece: i for i, piece in enumerate([*SPECIAL, *kept])}
        wordpiece = BertWordPieceTokenizer(rows, lowercase=self._tokenizer.normalizer.lowercase)
        return Vocabulary(wordpiece._tokenizer, f"of {len(rows)} pieces in use")

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        return cls(Tokenizer.from_str(as_path(path).read_text(encoding="utf-8")), str(path))

    def save(self, path: str | Path) -> None:
        as_path(path).write_text(self._tokenizer.to_str(pretty=False), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:12]

    @property
    def rows(self) -> list[str]:
        """The piece of every row."""
        return [self._tokenizer.id_to_token(row) for row in range(self.size)]

    def pieces(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """For each text its piece ids and their word numbers, without [CLS] and [SEP], of any length."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_without_padding(encoding.ids, encoding.word_ids) for encoding in encodings]

    def pieces_of_columns(
        self, texts: Sequence[str], ends: Sequence[Sequence[int]]
    ) -> list[tuple[list[int], list[int], list[int]]]:
        """`pieces`, and for each text the number of pieces up to the end of each of its columns.

        `ends`: the characters of each text up to the end of each column; of no end, the text is one column.
        """
        found = []
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for encoding, characters in zip(encodings, ends, strict=True):
            ids, word_ids = _without_padding(encoding.ids, encoding.word_ids)
            up_to = [len(ids)]
            if len(characters) > 1:
                kept = zip(encoding.offsets, encoding.ids, strict=True)
                starts = [start for (start, _), piece in kept if piece != PAD_ID]
                up_to = [sum(start < end for start in starts) for end in characters]
            found.append((ids, word_ids, up_to))
        return found

    def words(self, text: str) -> list[str]:
        """The words that `pieces` numbers, as in `text`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = (encoding.word_to_chars(word) for word in range(max(encoding.word_ids, default=-1) + 1))
        return [text[start:end] for start, end in spans]

    def frame(self, pieces: Sequence[int], num_tokens: int) -> np.ndarray:
        """``[CLS] pieces [SEP] [PAD] ..`` as int32 [num_tokens]; cuts off pieces after the limit."""
        kept = list(pieces[: num_tokens - 2])
        row = np.full(num_tokens, PAD_ID, np.int32)
        row[: len(kept) + 2] = [self.cls_id, *kept, self.sep_id]
        return row

    def encode(self, texts: Sequence[str], num_tokens: int) -> np.ndarray:
        """Framed ids, int32 [len(texts), num_tokens]."""
        return np.stack([self.frame(ids, num_tokens) for ids, _ in self.pieces(texts)])


def _count_words(tokenizer: Tokenizer | BertWordPieceTokenizer, texts: Iterable[str]) -> collections.Counter:
    counts = collections.Counter()
    for text in texts:
        text = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return counts


def _longest_first(word: str, known: set[str]) -> Iterator[str]:
    """WordPiece's pieces of a word, up to the place where none fits."""
    start = 0
    while start < len(word):
        fitting = ("##" * (start > 0) + word[start:end] for end in range(len(word), start, -1))
        piece = next((piece for piece in fitting if piece in known), None)
        if piece is None:
            return
        yield piece
        start += len(piece) - 2 * (start > 0)


def _without_padding(ids: list[int], word_ids: list[int]) -> tuple[list[int], list[int]]:
    """Removes [PAD], which a text may contain literally: id 0 always means padding."""
    if PAD_ID not in ids:
        return ids, word_ids
    kept = [i for i, piece in enumerate(ids) if piece != PAD_ID]
    return [ids[i] for i in kept], [word_ids[i] for i in kept]
