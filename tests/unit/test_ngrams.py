"""Bags of n-grams: against scikit-learn's TF-IDF on the same words, and by properties."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from fbjax.data.text.stop_words import STOP_WORDS
from fbjax.data.text.wordpiece import Vocabulary
from fbjax.model.ngrams import FEWEST_TEXTS, bag_of_ngrams, make_ngrams, num_rows, piece_kinds

WORDS = ["red", "dress", "cotton", "longsleeve", "the", "with", "shirt", "blue", "v-neck", "denim"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 3 + i % 5)) + ("." if i % 2 else "") for i in range(40)]
SPELT = sorted({letter for word in [*WORDS, "unseen"] for letter in word})
PIECES = ["the", "with", "dress", "cot", "##ton", "long", "##sleeve", "shirt", *SPELT, *(f"##{x}" for x in SPELT), "."]
T = 64
jitted_bags = jax.jit(bag_of_ngrams, static_argnums=2)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Whole words, words of several pieces, and words spelt letter by letter."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]))
    return Vocabulary.from_file(path)


@pytest.fixture(scope="module")
def ngrams(vocabulary):
    return make_ngrams([vocabulary.encode(TEXTS, T)], piece_kinds(vocabulary.rows, unit="words"))


def test_weights_are_those_of_scikit_learn(vocabulary, ngrams):
    tfidf = TfidfVectorizer(
        ngram_range=(1, 2), min_df=FEWEST_TEXTS, stop_words=sorted(STOP_WORDS), token_pattern=r"[^\W_]+"
    )
    expected = tfidf.fit_transform(TEXTS).toarray()
    bag = jitted_bags(ngrams, vocabulary.encode(TEXTS, T), T)
    found = np.zeros((len(TEXTS), len(ngrams["codes"])))
    for text in range(len(TEXTS)):
        np.add.at(found[text], np.asarray(bag.rows[text]), np.asarray(bag.weights[text]))
    assert found.shape == expected.shape  # as many words and pairs in two texts or more
    # repeated words count each time, and the length is that of the list, not of the counts
    counts = np.count_nonzero(np.asarray(bag.weights), axis=1)
    once = [text for text in range(len(TEXTS)) if counts[text] == np.count_nonzero(found[text])]
    assert len(once) > 5
    np.testing.assert_allclose(np.sort(found[once], axis=1), np.sort(expected[once], axis=1), atol=1e-6)
    assert np.linalg.matrix_rank(found) == np.linalg.matrix_rank(expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(WORDS + ["unseen", "."]), min_size=1, max_size=20), st.sampled_from([6, 12, T]))
def test_padding_changes_nothing_and_unknown_words_weigh_nothing(vocabulary, ngrams, words, most):
    ids = vocabulary.encode([" ".join(words)], T)
    used = -(-int((ids != 0).sum()) // 4) * 4
    long, short = jitted_bags(ngrams, ids, most), jitted_bags(ngrams, ids[:, :used], most)
    all_of_them = jitted_bags(ngrams, ids, 2 * T)
    known = np.count_nonzero(all_of_them.weights)
    filled = np.asarray(long.weights)[0] > 0
    assert filled.sum() == min(known, most) and filled[: min(known, most)].all()
    shared = short.rows.shape[1]
    np.testing.assert_array_equal(long.rows[:, :shared], short.rows)
    np.testing.assert_allclose(long.weights[:, :shared], short.weights, rtol=1e-6)
    np.testing.assert_array_equal(long.rows[0, filled], all_of_them.rows[0, : filled.sum()])
    if filled.any():
        np.testing.assert_allclose(np.square(long.weights).sum(), 1, rtol=1e-5)


def test_pieces_serve_where_words_are_not_spaced():
    spaceless = ["赤いドレス", "青いドレス", "赤いシャツ"]
    vocabulary = Vocabulary.train(spaceless, 40)
    kinds = piece_kinds(vocabulary.rows, unit="pieces")
    ngrams = make_ngrams([vocabulary.encode(spaceless, 16)], kinds)
    bags = jitted_bags(ngrams, vocabulary.encode(spaceless, 16), 16)
    rows = [set(np.asarray(r)[np.asarray(w) > 0].tolist()) for r, w in zip(bags.rows, bags.weights, strict=True)]
    assert rows[0] & rows[1] and rows[0] & rows[2] and len(rows[0] & rows[1]) > len(rows[1] & rows[2])


def test_a_word_that_ends_in_a_vowel_mark_counts():
    vocabulary = Vocabulary.train(["สี ดา"], 100)
    assert "สี" not in vocabulary.rows  # spelt letter by letter
    texts = vocabulary.encode(["สี", "สี", "ดา", "ดา"], 8)
    assert len(make_ngrams([texts], piece_kinds(vocabulary.rows, unit="words"))["codes"]) == 2


def test_a_table_of_ngrams_divides_among_devices(ngrams):
    assert num_rows({}) == 0
    assert num_rows(ngrams) >= len(ngrams["codes"]) and num_rows(ngrams) % 128 == 0
