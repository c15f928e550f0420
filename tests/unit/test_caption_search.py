"""Beam search beside brute force and beside a plain loop; words and text of pieces."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.data.text.detokenise import as_text, written_words
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.inference.captions.search import beam_search

V, T, CLS, SEP = 7, 5, 2, 3
WORDS = (1, 4, 5, 6)


def language(seed, sharpness=1.0):
    """Log probabilities [T, V, V] of the piece after a place, by the piece there; [PAD] and [CLS] never follow."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(T, V, V)).astype(np.float32)
    logits[:, :, [0, CLS]] = -np.inf
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def search(tables, beams, power):
    """Of several products, each with a language of its own."""
    tables = jnp.asarray(tables)

    def log_probabilities(ids, place):
        assert ids.shape[1] in (2, 4, T)
        product = jnp.arange(len(ids)) // beams
        return tables[product, place, ids[:, place]]

    found = beam_search(log_probabilities, len(tables), beams, T, CLS, SEP, power, chunk=2)
    return [tuple(int(i) for i in row if i) for row in found.ids], np.asarray(found.scores)


def score(table, sequence, power):
    steps = [table[place, piece, after] for place, (piece, after) in enumerate(itertools.pairwise(sequence))]
    return sum(steps) / len(steps) ** power


def every_sequence():
    for length in range(T - 1):
        for words in itertools.product(WORDS, repeat=length):
            yield (CLS, *words, SEP)


def plain_search(table, beams, power):
    """The same search as a loop over lists."""
    alive, finished = [((CLS,), 0.0)], []
    for place in range(T - 1):
        ways = [
            ((*sequence, piece), log + table[place, sequence[-1], piece])
            for sequence, log in alive
            for piece in (*WORDS, SEP)
            if piece == SEP or place + 1 < T - 1
        ]
        kept = sorted(ways, key=lambda way: -way[1])[:beams]
        finished += [way for way in kept if way[0][-1] == SEP]
        alive = [way for way in kept if way[0][-1] != SEP]
    return max(finished, key=lambda way: score(table, way[0], power))[0]


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_as_many_beams_as_sequences_find_the_best_of_all(power):
    tables = np.stack([language(seed) for seed in range(6)])
    found, scores = search(tables, beams=128, power=power)
    for table, ours, value in zip(tables, found, scores, strict=True):
        best = max(every_sequence(), key=lambda sequence: score(table, sequence, power))
        assert ours == best
        assert value == pytest.approx(score(table, best, power), rel=1e-5)
    assert len({len(sequence) for sequence in found}) > 1  # short and long ones


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_few_beams_find_what_a_plain_loop_finds(beams):
    tables = np.stack([language(seed, sharpness=0.7) for seed in range(30)])
    found, _ = search(tables, beams, power=1.0)
    assert found == [plain_search(table, beams, 1.0) for table in tables]
    best = [max(every_sequence(), key=lambda sequence: score(table, sequence, 1.0)) for table in tables]
    assert sum(map(tuple.__eq__, found, best)) < len(tables)  # so that the two could differ


def test_one_beam_takes_the_likeliest_piece_each_time():
    tables = np.stack([language(seed) for seed in range(10)])
    for table, found in zip(tables, search(tables, 1, 1.0)[0], strict=True):
        greedy = [CLS]
        while greedy[-1] != SEP:
            after = table[len(greedy) - 1, greedy[-1]]
            greedy.append(int(after.argmax()) if len(greedy) < T - 1 else SEP)
        assert found == tuple(greedy)


ENGLISH = "nike men's t-shirt, 100% cotton (black/white) & blue v-neck. size 3.5!"


@pytest.mark.parametrize("text", [ENGLISH, "ผ้าฝ้ายสีแดง", "コットンシャツ赤い綿", "", "bag", "a $5 hat [sale]"])
def test_a_text_comes_back_from_its_pieces(text):
    vocabulary = Vocabulary.train([ENGLISH, "ผ้าฝ้ายสีแดง", "コットンシャツ赤い綿", "bag hat a sale $5 [x]"], 200)
    assert as_text(written_words(vocabulary, vocabulary.encode([text], 60)[0])) == text


def test_words_end_at_sep_and_an_unknown_one_keeps_its_place():
    vocabulary = Vocabulary.train(["red bags"], 60)
    ids = vocabulary.encode(["red ж bags"], 12)[0]
    assert written_words(vocabulary, ids) == ["red", "[UNK]", "bags"]
    assert written_words(vocabulary, [vocabulary.sep_id if row == vocabulary.unk_id else row for row in ids]) == ["red"]
