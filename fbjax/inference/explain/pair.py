"""A text and an image as a model reads them, and their score where only a share of each word and patch is shown.

A word that is not shown is [MASK] to the encoder, and its n-grams leave the bag. A patch that is not shown has features
of 0. These are the masks of pretraining. In between lie embeddings, weights of n-grams and roots of features.

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
from fbjax.model.ngrams import Bag, Ngrams, bag_of_ngrams, words_of_bag

NO_WORD = -1  # of a piece: [CLS], [SEP] or [PAD]


class Pair(NamedTuple):
    """What the model reads."""

    ids: jax.Array  # [1, T] int32
    words: jax.Array  # [1, T] int32: the number of each piece's word, or `NO_WORD`
    features: jax.Array  # [1, P, C]


@dataclasses.dataclass(frozen=True)
class Read:
    """A pair and the names of its parts."""

    pair: Pair
    words: list[str]  # of the pieces that are read, in their order
    whole_image: bool  # whether the first image token is the whole image
    scores_matches: bool  # whether the score is a logit difference, or else a cosine

    def grid(self, by_token: np.ndarray) -> np.ndarray:
        """``[.., P] -> [.., side, side]`` without the token of the whole image."""
        patches = np.asarray(by_token)[..., int(self.whole_image) :]
        side = math.isqrt(patches.shape[-1])
        return patches.reshape(*patches.shape[:-1], side, side)


def read_pair(model: Model, text: str, image) -> Read:
    """`text` and `image` as `model.score` reads them: a text is padded to a multiple of `BUCKET` pieces."""
    run, framed = model.run, model.encode_text(text)
    patches = run.patches
    if patches.scales:
        raise ValueError(
            f"patches.scales {patches.scales}: an explanation is drawn on the patches of one grid, and this "
            "run has several (explain a run without patches.scales)"
        )
    features = jax.jit(patches.apply)(model.variables["patches"], model.read_image(image)[None])
    names = run.vocabulary.words(text := clean_text(text))
    ((_, word_ids),) = run.vocabulary.pieces([text])
    read, places = np.unique(word_ids[: len(framed) - 2], return_inverse=True)
    words = np.full(len(framed), NO_WORD, np.int32)
    words[1 : 1 + len(places)] = places  # piece i is token 1 + i
    length = int(padded_lengths((framed != PAD_ID).sum(), BUCKET, len(framed)))
    pair = Pair(jnp.asarray(framed[None, :length]), jnp.asarray(words[None, :length]), features)
    return Read(pair, [names[word] for word in read], patches.whole_image, run.scores_pairs)


def partial_scores(
    model: FashionBert, variables: dict, pair: Pair, words: jax.Array, patches: jax.Array, *, fixed_length: bool = False
) -> jax.Array:
    """Scores [B] where shares `words` [B, T] of the words and `patches` [B, P] of the image tokens are shown.

    `fixed_length`: the bag's vector is divided by the length of the whole bag's, so that it shrinks with the shares.
    Divided by its own it keeps its direction, and so its cosine, until nothing is left.
    """
    shares = jnp.concatenate([words, jnp.ones_like(words[:, :1])], axis=1)  # `NO_WORD` is the last: always shown
    if any(task.late_interaction for task in model.tasks):
        return _token_scores(model, variables["fashionbert"], pair, shares, patches)
    if not any(task.scores_pairs for task in model.tasks):
        texts = _text_vectors(model, variables, pair, shares, fixed_length)
        return (texts * _image_vectors(model, variables, pair, patches)).sum(axis=-1)
    params = variables["fashionbert"]
    text = _embedded_text(model, params, pair.ids, pair.words, shares)
    image = _embedded_image(model, params, pair.features, patches)
    mask = jnp.broadcast_to(pair.ids != PAD_ID, text.shape[:2])
    return match_score(match_logits_of_embedded(model, params, text, mask, image))


def _token_scores(model: FashionBert, params: dict, pair: Pair, words: jax.Array, patches: jax.Array) -> jax.Array:
    """Scores [B] by late interaction, where a share of the features of each patch is shown."""
    apply = partial(model.apply, {"params": params})
    text = _embedded_text(model, params, pair.ids, pair.words, words)
    mask = jnp.broadcast_to(pair.ids != PAD_ID, text.shape[:2])
    regions = apply(patches[..., None] * pair.features, method="regions")
    return apply(apply(text, mask, method="words"), mask, regions, method="token_scores")


def _embedded_text(model: FashionBert, params: dict, ids: jax.Array, words: jax.Array, shares: jax.Array) -> jax.Array:
    """``[B, T, D]``: between the embeddings of the text with every word masked and those of the text."""
    embed = partial(model.apply, {"params": params}, method="embed_text")
    whole, masked = embed(ids), embed(jnp.where(words == NO_WORD, ids, model.spec.mask_id))
    return masked + shares[:, words[0], None] * (whole - masked)


def _embedded_image(model: FashionBert, params: dict, features: jax.Array, shares: jax.Array) -> jax.Array:
    """``[B, P, D]``: between the embeddings of zeros and those of the features."""
    embed = partial(model.apply, {"params": params}, method="embed_image")
    whole, nothing = embed(features), embed(jnp.zeros_like(features))
    return nothing + shares[..., None] * (whole - nothing)


def _image_vectors(model: FashionBert, variables: dict, pair: Pair, shares: jax.Array) -> jax.Array:
    """Vectors [B, E] of the image, as `FashionBert.read` and `FashionBert.vector` make them."""
    task = next(task for task in model.tasks if task.embeds)
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    mean = linear = None
    if task.reads_encoder:
        image = _embedded_image(model, variables["fashionbert"], pair.features, shares)
        mean = apply(None, None, image, method="encode_alone")
    if task.reads_bags:
        features = pair.features * jnp.square(shares)[..., None]  # the branch takes their roots
        linear = apply(features, method=lambda model, features: model.linear.image(features))
    return apply(Reading(mean, linear), method="vector")


def _text_vectors(model: FashionBert, variables: dict, pair: Pair, shares: jax.Array, fixed_length: bool) -> jax.Array:
    """Vectors [B, E] of the text, as `FashionBert.read` and `FashionBert.vector` make them."""
    task = next(task for task in model.tasks if task.embeds)
    apply = partial(model.apply, {"params": variables["fashionbert"]})
    mean = None
    if task.reads_encoder:
        ids, words = (x[:, : task.encoder_tokens or None] for x in (pair.ids, pair.words))
        text = _embedded_text(model, variables["fashionbert"], ids, words, shares)
        mask = jnp.broadcast_to(ids != PAD_ID, text.shape[:2])
        mean = apply(text, mask, None, method="encode_alone")
    if not task.reads_bags:
        return apply(Reading(mean), method="vector")
    whole, bag = _bags(variables["ngrams"], model.most_ngrams, pair, shares)
    whole, linear = (apply(some, method=lambda model, bag: model.linear.text(bag)) for some in (whole, bag))
    vectors = apply(Reading(mean, linear), method="vector")
    if not fixed_length:
        return vectors
    size = linear.shape[1]  # the numbers of the linear branch come first
    return vectors.at[:, :size].multiply(_length(linear) / _length(whole))


def _bags(ngrams: Ngrams, most: int, pair: Pair, shares: jax.Array) -> tuple[Bag, Bag]:
    """The text's bag [1, T], and it with each weight times the shares of the n-gram's words [B, T]."""
    bag, own = bag_of_ngrams(ngrams, pair.ids, most), words_of_bag(ngrams, pair.ids, most, pair.words)[0]
    weights = bag.weights * shares[:, own].prod(axis=-1)
    return bag, Bag(jnp.broadcast_to(bag.rows, weights.shape), weights)


def _length(x: jax.Array) -> jax.Array:
    """Lengths [.., 1] of vectors, as `fbjax.model.linear.unit` divides by them."""
    return jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
