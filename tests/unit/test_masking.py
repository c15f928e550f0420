"""Masks: whole words, about the stated share, distinct patches, and pure functions of their key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbjax.tasks import masking

T, MASK_ID, V = 32, 4, 1000
word_lengths = st.lists(st.integers(1, 5), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) <= T - 2)
mask_text = jax.jit(masking.mask_text, static_argnames=("rate", "mask_id", "vocabulary_size"))
take_in_order = jax.jit(masking.take_in_order)


def text_of(lengths, num_tokens=T):
    """Ids and word numbers of one word of each length, framed and padded to T."""
    words = np.repeat(np.arange(len(lengths)), lengths)
    ids, word_ids = np.zeros(num_tokens, np.int32), np.full(num_tokens, -1, np.int32)
    ids[0], ids[1 : 1 + len(words)], ids[1 + len(words)] = 2, 100 + np.arange(len(words)), 3
    word_ids[1 : 1 + len(words)] = words
    return jnp.array(ids), jnp.array(word_ids)


@given(word_lengths, st.integers(0, 2**31))
def test_words_are_masked_whole_and_special_tokens_never(lengths, seed):
    ids, word_ids = text_of(lengths)
    masked, positions, valid = mask_text(
        jax.random.key(seed), ids, word_ids, rate=0.3, mask_id=MASK_ID, vocabulary_size=V
    )
    chosen = np.asarray(positions)[np.asarray(valid)]
    words = np.asarray(word_ids)[chosen]
    assert (words >= 0).all()
    for word in set(words.tolist()):
        assert (words == word).sum() == lengths[word]
    assert len(chosen) <= max(1, round(0.3 * sum(lengths)))
    untouched = np.setdiff1d(np.arange(T), chosen)
    np.testing.assert_array_equal(np.asarray(masked)[untouched], np.asarray(ids)[untouched])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40).map(np.array), st.integers(1, 30))
def test_each_word_in_turn_is_taken_if_it_still_fits(lengths, limit):
    left, expected = limit, []
    for length in lengths:
        expected.append(0 < length <= left)
        left -= length * expected[-1]
    padded = np.pad(lengths, (0, 40 - len(lengths)))  # of one shape: compiled once
    assert take_in_order(padded, limit).tolist()[: len(lengths)] == expected


@given(word_lengths, st.integers(0, 2**31), st.sampled_from([33, 48, 64]))
def test_padding_does_not_change_masks(lengths, seed, longer):
    texts = [text_of(lengths), text_of(lengths, longer)]
    masked, positions, valid = zip(
        *(mask_text(jax.random.key(seed), *text, rate=0.5, mask_id=MASK_ID, vocabulary_size=V) for text in texts),
        strict=True,
    )
    np.testing.assert_array_equal(masked[0], masked[1][:T])
    np.testing.assert_array_equal(masked[1][T:], 0)
    np.testing.assert_array_equal(positions[0][valid[0]], positions[1][valid[1]])


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.35])
def test_a_text_of_single_pieces_has_its_share_masked_to_the_piece_and_in_the_slots(rate):
    num_pieces = np.arange(1, 191)  # 0.15 * 190 is 28.5, rounded to 28; in float32 it is more
    word_ids = jnp.stack([text_of([1] * n, 192)[1] for n in num_pieces])
    masks = jax.vmap(lambda key, words: masking.choose_words(key, words, rate))(
        jax.random.split(jax.random.key(0), len(num_pieces)), word_ids
    )
    assert masks.sum(axis=1).tolist() == [max(1, round(rate * n)) for n in num_pieces.tolist()]
    assert masks[-1].sum() == masking.num_mlm_slots(192, rate)


def test_rates_and_the_80_10_10_split_hold_on_average():
    ids, word_ids = text_of([1] * 20)
    draw = jax.vmap(lambda key: masking.mask_text(key, ids, word_ids, 0.15, MASK_ID, V))
    masked, positions, valid = draw(jax.random.split(jax.random.key(0), 4000))
    assert bool((valid.sum(axis=1) == 3).all())  # round(.15 * 20)
    now = np.take_along_axis(np.asarray(masked), np.asarray(positions), axis=1)[np.asarray(valid)]
    before = np.asarray(ids)[np.asarray(positions)][np.asarray(valid)]
    share = np.array([(now == MASK_ID).mean(), ((now != MASK_ID) & (now != before)).mean(), (now == before).mean()])
    np.testing.assert_allclose(share, [0.8, 0.1, 0.1], atol=0.015)  # 12,000 pieces: standard error .004
    counts = np.bincount(np.asarray(positions)[np.asarray(valid)], minlength=T)[1:21]
    assert counts.min() > 0.85 * counts.mean() and counts.max() < 1.15 * counts.mean()


@given(st.integers(0, 2**31), st.sampled_from([1, 4, 16, 64]))
def test_masked_patches_are_distinct(seed, num_patches):
    chosen = np.asarray(masking.choose_patches(jax.random.key(seed), num_patches, 0.1))
    assert len(set(chosen.tolist())) == len(chosen) == max(1, round(0.1 * num_patches))
    assert chosen.min() >= 0 and chosen.max() < num_patches


def test_a_text_of_one_long_word_masks_nothing_it_could_only_mask_in_part():
    ids, word_ids = text_of([5])
    _, _, valid = masking.mask_text(jax.random.key(0), ids, word_ids, 0.3, MASK_ID, V)
    assert not bool(valid.any())
