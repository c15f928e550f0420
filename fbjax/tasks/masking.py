"""Which pieces and patches of one example are hidden: pure functions of a key (paper, section 3.4).

How far a text is padded does not matter: draws of shape [T] begin with those of any shorter T (JAX's threefry, as it is
partitionable), and nothing else depends on T.
"""

import jax
import jax.numpy as jnp

KEEP_MASK, KEEP_RANDOM = 0.8, 0.9  # BERT's 80 / 10 / 10


def num_mlm_slots(text_tokens: int, rate: float) -> int:
    """The most pieces of a text of T tokens that are ever masked."""
    return max(1, round(rate * (text_tokens - 2)))


def num_masked_patches(num_patches: int, rate: float) -> int:
    return max(1, round(rate * num_patches))


def choose_words(key: jax.Array, word_ids: jax.Array, rate: float, ranks: jax.Array | None = None) -> jax.Array:
    """Whole words worth about `rate` of the pieces: ``word_ids [T] -> mask [T]`` (BERT's whole-word masking).

    Words in random order, those of the lowest of `ranks` [T] first; one is taken where all its pieces still fit into
    ``round(rate * pieces)``, at least 1.
    """
    num_tokens = len(word_ids)
    real = word_ids >= 0
    limits = jnp.array([num_mlm_slots(num_pieces + 2, rate) for num_pieces in range(num_tokens)])
    limit = limits[real.sum()]  # float32 on the device would round 0.15 * 190 up, beyond the slots
    lengths = jnp.zeros(num_tokens, jnp.int32).at[jnp.where(real, word_ids, num_tokens)].add(1, mode="drop")

    order = by_rank(jnp.argsort(jax.random.uniform(key, (num_tokens,))), ranks)
    fits = take_in_order(lengths[order], limit)
    chosen = jnp.zeros(num_tokens, bool).at[order].set(fits)
    return real & chosen[word_ids]


def take_in_order(lengths: jax.Array, limit: jax.Array) -> jax.Array:
    """Which of ``lengths [T]`` are taken, bool [T], where each in turn is taken if it still fits into `limit`; no 0.

    All that fit before the first that does not are taken at once. What is left is then shorter than that one, so the
    number of rounds is at most that of distinct lengths, and mostly two or three where a scan has T steps.
    """

    def open_(state):
        taken, first = state
        left = limit - jnp.where(taken, lengths, 0).sum()
        return (jnp.arange(len(lengths)) >= first) & (lengths > 0) & (lengths <= left), left

    def take(state):
        candidates, left = open_(state)
        enough = jnp.cumsum(jnp.where(candidates, lengths, 0)) <= left
        return state[0] | (candidates & enough), jnp.where(enough.all(), len(lengths), enough.argmin())

    start = jnp.zeros(len(lengths), bool), jnp.int32(0)
    return jax.lax.while_loop(lambda state: open_(state)[0].any(), take, start)[0]


def by_rank(order: jax.Array, ranks: jax.Array | None) -> jax.Array:
    """`order` with what has the lowest of `ranks` first, and else as it was."""
    return order if ranks is None else order[jnp.argsort(ranks[order], stable=True)]


def mask_text(
    key: jax.Array,
    ids: jax.Array,
    word_ids: jax.Array,
    rate: float,
    mask_id: int,
    vocabulary_size: int,
    ranks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masked ids [T], and the masked positions [M] with their validity [M], M = `num_mlm_slots`.

    Of the chosen pieces 80 % become [MASK], 10 % a random piece, 10 % stay.
    """
    key_words, key_kind, key_random = jax.random.split(key, 3)
    mask = choose_words(key_words, word_ids, rate, ranks)
    kind = jax.random.uniform(key_kind, ids.shape)
    random_ids = jax.random.randint(key_random, ids.shape, 0, vocabulary_size)
    replaced = jnp.where(kind < KEEP_MASK, mask_id, jnp.where(kind < KEEP_RANDOM, random_ids, ids))
    num_slots = num_mlm_slots(len(ids), rate)
    (positions,) = jnp.nonzero(mask, size=num_slots, fill_value=0)
    return jnp.where(mask, replaced, ids), positions, jnp.arange(num_slots) < mask.sum()


def choose_patches(key: jax.Array, num_patches: int, rate: float, ranks: jax.Array | None = None) -> jax.Array:
    """Distinct patches to hide, [num_masked_patches] in rising order, those of the lowest of `ranks` [P] first."""
    order = by_rank(jax.random.permutation(key, num_patches), ranks)
    return jnp.sort(order[: num_masked_patches(num_patches, rate)])


def choose_of_there(key: jax.Array, there: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """Distinct patches to hide among those that are ``there [P]``, [`num_masked_patches`], and which slots count.

    As many as `num_masked_patches` of those there are; a slot that does not count holds the first that does.
    """
    order = jnp.argsort(jnp.where(there, jax.random.uniform(key, there.shape), 2.0))
    limits = jnp.array([num_masked_patches(n, rate) for n in range(len(there) + 1)])
    counts = jnp.arange(num_masked_patches(len(there), rate)) < limits[there.sum()]
    return jnp.where(counts, order[: len(counts)], order[0]), counts


def rearranged(features: jax.Array, source: jax.Array) -> jax.Array:
    """``features [B, n, rows, C], source [B, n, P] -> [B, n, P, C]``, n at most 2: see `Example.source`."""
    rows = jnp.concatenate([features, features[:, ::-1]], axis=2)
    return jnp.take_along_axis(rows, source[..., None], axis=2)
