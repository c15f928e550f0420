"""A text and an image as a model reads them, and their score where only a share of each word and patch is shown.

A word that is not shown is [MASK] to the encoder, and its n-grams leave the bag. A patch that is not shown has features
of 0. These are the masks of pretraining. In between, embeddings, weights of n-grams and features are interpolated.

Axis legend: T pieces, P image tokens, B variants of the pair, W <= T words.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.core.batching import padded_lengths
from fbjax.data.sources.cells import clean_text
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.embedder import BUCKET
from fbjax.inference.model import Model
from fbjax.inference.pair_scorer import match_logits_of_embedded
from fbjax.model.fashionbert import FashionBert, Reading, match_score
from fbjax.model.ngrams import Bag, bag_of_ngrams, words_of_bag

NO_WORD = -1  # of a piece: [CLS], [SEP] or [PAD]


class Pair(NamedTuple):
    """What the model reads."""

    ids: np.ndarray | jax.Array  # [1, T] int32
    words: np.ndarray | jax.Array  # [1, T] int32: the number of each piece's word, or `NO_WORD`
    features: np.ndarray | jax.Array  # [1, P, C]


@dataclasses.dataclass(frozen=True)
class Read:
    """A pair and the names of its parts."""

    pair: Pair
    words: list[str]  # of the pieces that are read, in their order
    whole_image: bool  # whether the first image token is the whole image

    def grid(self, by_token: np.ndarray) -> np.ndarray:
        """``[.., P] -> [.., side, side]`` without the token of the whole image."""
        patches = np.asarray(by_token)[..., int(self.whole_image) :]
        side = math.isqrt(patches.shape[-1])
        return patches.reshape(*patches.shape[:-1], side, side)


def read_pair(model: Model, text: str, image) -> Read:
    """`text` and `image` as `model.score` reads them: a text is padded to a multiple of `BUCKET` pieces."""
    run, framed = model.run, model.encode_text(text)
    patches = run.patches
    features = jax.jit(patches.apply)(model.variables["patches"], model.read_image(image)[None])
    names = run.vocabulary.words(text := clean_text(text))
    ((_, word_ids),) = run.vocabulary.pieces([text])
    read, places = np.unique(word_ids[: len(framed) - 2], return_inverse=True)
    words = np.full(len(framed), NO_WORD, np.int32)
    words[1 : 1 + len(places)] = places  # piece i is token 1 + i
    length = int(padded_lengths((framed != PAD_ID).sum(), BUCKET, len(framed)))
    pair = Pair(framed[None, :length], words[None, :length], features)
    return Read(pair, [names[word] for word in read], patches.whole_image)


def partial_scores(
    model: FashionBert, variables: dict, pair: Pair, words: jax.Array, patches: jax.Array, *, fixed_length: bool = False
) -> jax.Array:
    """Scores [B] where shares `words` [B, T] of the words and `patches` [B, P] of the image tokens are shown.

    `fixed_length`: the bag's vector is divided by the length of the whole bag's, so that it shrinks with the shares.
    Divided by its own it keeps its direction, and so its cosine, until nothing is left.
    """
    shares = jnp.concatenate([words, jnp.ones_like(words[:, :1])], axis=1)  # `NO_WORD` is the last: always shown
    features = pair.features * patches[..., None]
    if any(task.scores_pairs for task in model.tasks):
        return _pair_scores(model, variables, pair, shares, features)
    texts = _text_vectors(model, variables, pair, shares, fixed_length)
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    return (texts * apply(apply(None, None, features, method="read"), method="vector")).sum(axis=-1)


def _pair_scores(model: FashionBert, variables: dict, pair: Pair, shares: jax.Array, features: jax.Array) -> jax.Array:
    params = variables["fashionbert"]
    text = _embedded_text(model, params, pair.ids, pair.words, shares)
    mask = jnp.broadcast_to(pair.ids != PAD_ID, text.shape[:2])
    image = model.apply({"params": params}, features, method="embed_image")
    return match_score(match_logits_of_embedded(model, params, text, mask, image))


def _embedded_text(model: FashionBert, params: dict, ids: jax.Array, words: jax.Array, shares: jax.Array) -> jax.Array:
    """``[B, T, D]``: between the embeddings of the text with every word masked and those of the text."""
    embed = partial(model.apply, {"params": params}, method="embed_text")
    whole, masked = embed(ids), embed(jnp.where(words == NO_WORD, ids, model.spec.mask_id))
    return masked + shares[:, words[0], None] * (whole - masked)


def _text_vectors(model: FashionBert, variables: dict, pair: Pair, shares: jax.Array, fixed_length: bool) -> jax.Array:
    """Vectors [B, E] of the text, as `FashionBert.read` and `FashionBert.vector` make them."""
    task = next(task for task in model.tasks if task.embeds)
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    mean = linear = None
    if task.reads_encoder:
        ids, words = (x[:, : task.encoder_tokens or None] for x in (pair.ids, pair.words))
        text = _embedded_text(model, variables["fashionbert"], ids, words, shares)
        mask = jnp.broadcast_to(ids != PAD_ID, text.shape[:2])
        mean = apply(text, mask, None, method="encode_alone")
    if task.reads_bags:
        bag = bag_of_ngrams(variables["ngrams"], pair.ids)
        own = words_of_bag(variables["ngrams"], pair.ids, pair.words)[0]
        weights = bag.weights * shares[:, own].prod(axis=-1)
        of_bag = lambda model, bag: model.linear.text(bag)  # noqa: E731
        linear = apply(Bag(jnp.broadcast_to(bag.rows, weights.shape), weights), method=of_bag)
        whole = apply(bag, method=of_bag)
    vectors = apply(Reading(mean, linear), method="vector")
    if not (task.reads_bags and fixed_length):
        return vectors
    length = lambda x: jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)  # noqa: E731  # as in `unit`
    size = linear.shape[1]  # the numbers of the linear branch come first
    return vectors.at[:, :size].multiply(length(linear) / length(whole))
