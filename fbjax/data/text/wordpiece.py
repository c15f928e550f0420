"""WordPiece vocabularies: text becomes piece ids, each with the number of its word.

Sources are a vocab.txt, such as a pretrained BERT's, the part of it that a catalogue uses, or training on a catalogue's
text. A vocabulary is stored as one tokenizer.json.

A vocab.txt's words are those of BERT. A trained vocabulary departs from BERT where that would lose the text: scripts of
South East Asia, which write no spaces, are cut into syllables; katakana is cut from other kana; and a mark goes only
where it is an accent, since BERT's uncased rules also drop Thai and Hindi vowels.
"""

import collections
import hashlib
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Encoding, Regex, Tokenizer, normalizers, pre_tokenizers

from fbjax.core.paths import as_path
from fbjax.data.text import scripts

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID = 0
MAX_LETTERS = 1000  # of a trained vocabulary, or half of its pieces if that is more: the most frequent ones
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
        rows = tokenizer.get_vocab()
        self.unk_id, self.cls_id, self.sep_id, self.mask_id = (rows[piece] for piece in SPECIAL[1:])

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """From a vocab.txt with one piece per line, or from what `save` wrote to a .json.

        A vocab.txt lowercases text unless a piece has an uppercase letter.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no vocabulary file {path}")
        if path.suffix == ".json":
            return cls.load(path)
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

        The trainer orders letters randomly, so they are given to it as special tokens in sorted order. A letter that
        begins no word of `texts` may still begin a word of a query, so it has a row for that too.
        """
        wordpiece = _for_training()
        counts = _count_words(wordpiece, texts)
        letters = collections.Counter()
        for word, count in counts.items():
            for letter in word:
                letters[letter] += count
        frequent = sorted(letters, key=lambda letter: (-letters[letter], letter))
        kept = set(frequent[: max(MAX_LETTERS, size // 2)])
        words = [word for word in sorted(counts) if kept.issuperset(word)]
        alone = {word for word in words if len(word) == 1}
        joined = {letter for word in words if len(word) > 1 for letter in word}
        alphabet = sorted(alone | joined) + sorted(f"##{letter}" for letter in joined)
        wordpiece.train_from_iterator(
            (" ".join([word] * counts[word]) for word in words),
            vocab_size=size,
            special_tokens=[*SPECIAL, *alphabet],
            show_progress=False,
        )
        wordpiece = _for_training(wordpiece.get_vocab(with_added_tokens=True))
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
        """The vocabulary that `save` wrote to `path`. Raises ValueError where the file is no tokenizer, or OSError."""
        try:
            tokenizer = Tokenizer.from_str(as_path(path).read_bytes().decode())
        except OSError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is no tokenizer, {error}: put a copy of the file there") from None
        return cls(tokenizer, str(path))

    def save(self, path: str | Path) -> None:
        as_path(path).write_text(self._tokenizer.to_str(pretty=False), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:12]

    @property
    def rows(self) -> list[str]:
        """The piece of every row."""
        return [self.piece(row) for row in range(self.size)]

    def piece(self, row: int) -> str:
        """The piece of one row."""
        return self._tokenizer.id_to_token(row)

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
        return [word for word, _ in self.known_words(text)]

    def known_words(self, text: str) -> list[tuple[str, bool]]:
        """The words that `pieces` numbers, as in `text`, each with whether it has pieces other than [UNK]."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [(text[start:end].strip(), known) for start, end, known in _spans(encoding, self.unk_id)]

    def unknown_shares(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        """The share of all pieces that are [UNK], and for each text the share of its letters in such words, [N]."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        unknown, letters = np.zeros(len(encodings)), np.zeros(len(encodings))
        for row, encoding in enumerate(encodings):
            for start, end, known in _spans(encoding, self.unk_id):
                letters[row] += end - start
                unknown[row] += 0 if known else end - start
        num_unknown = sum(encoding.ids.count(self.unk_id) for encoding in encodings)
        num_pieces = sum(len(encoding.ids) for encoding in encodings)
        return num_unknown / max(num_pieces, 1), unknown / np.maximum(letters, 1)

    def frame(self, pieces: Sequence[int], num_tokens: int) -> np.ndarray:
        """``[CLS] pieces [SEP] [PAD] ..`` as int32 [num_tokens]; cuts off pieces after the limit."""
        kept = list(pieces[: num_tokens - 2])
        row = np.full(num_tokens, PAD_ID, np.int32)
        row[: len(kept) + 2] = [self.cls_id, *kept, self.sep_id]
        return row

    def encode(self, texts: Sequence[str], num_tokens: int) -> np.ndarray:
        """Framed ids, int32 [len(texts), num_tokens]."""
        return np.stack([self.frame(ids, num_tokens) for ids, _ in self.pieces(texts)])


def _for_training(vocabulary: dict[str, int] | None = None) -> BertWordPieceTokenizer:
    """BERT's uncased rules, less what loses text in scripts without spaces or with vowel marks."""
    wordpiece = BertWordPieceTokenizer(vocabulary, lowercase=True)
    wordpiece.normalizer = normalizers.Sequence(
        [
            normalizers.BertNormalizer(lowercase=False, strip_accents=False),
            normalizers.NFD(),
            normalizers.Replace(Regex(scripts.ACCENTS), ""),
            normalizers.Lowercase(),
        ]
    )
    cut = pre_tokenizers.Split(Regex(f"{scripts.SYLLABLE}|{scripts.KATAKANA_RUN}"), "isolated")
    wordpiece.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
    return wordpiece


def _spans(encoding: Encoding, unk_id: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it has pieces) of each word of a text."""
    unknown = {word for word, piece in zip(encoding.word_ids, encoding.ids, strict=True) if piece == unk_id}
    for word in range(max(encoding.word_ids, default=-1) + 1):
        yield *encoding.word_to_chars(word), word not in unknown


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
