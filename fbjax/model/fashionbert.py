"""FashionBERT (section 3): text pieces and image patches through one BERT encoder, and the heads of a run's tasks.

The two modalities share the encoder and nothing before it: position, segment and LayerNorm tables are each its own.
Methods are the parts that callers combine. The same encoder also reads text or image alone: `encode_alone`.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.schema import ModelConfig
from fbjax.core.registry import Registry
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.embeddings import ImageEmbeddings, TextEmbeddings
from fbjax.model.encoder import Encoder
from fbjax.model.grids.pictures import are_there, mean_picture, shown
from fbjax.model.ngrams import Bag
from fbjax.model.patch_features import PatchNetwork

MODELS = Registry("model.architecture", "fbjax.model.rivals")  # name -> `FashionBert`, or what extends it


class InputSpec(NamedTuple):
    """The sizes of what a run reads."""

    vocabulary_size: int  # V
    mask_id: int  # of [MASK]
    text_tokens: int  # T, at most
    num_patches: int  # P, a token of the whole image included
    feature_size: int  # C
    first_patch: int = 0  # 1 where a token of the whole image comes before the patches
    num_ngrams: int = 0  # M, rows of the linear branch's table
    num_classes: tuple[int, ...] = ()  # of each attribute that a task predicts
    scales: tuple[int, ...] = ()  # cells a side of each scale of the image, coarse first; (): one grid
    num_variants: int = 0  # rows of features beside those of the patches, for tasks that show them
    num_images: int = 1  # M, pictures of a product, one after another; P counts the tokens of all

    @property
    def num_rows(self) -> int:
        return self.num_patches + self.num_variants


class Reading(NamedTuple):
    """What becomes of a text, an image or both before it is a vector; None what no task or no part of it needs."""

    mean: jax.Array | None  # [B, D]: over the encoder's hidden states
    apart: jax.Array | None = None  # [B, E]: of the branch that reads text and image apart
    tokens: jax.Array | None = None  # [B, T, E] or [B, P, E]: words of a text or regions of an image, of length 1


@MODELS.register("fashionbert")
class FashionBert(nn.Module):
    """The single-stream model. `tasks` give it heads: see `fbjax.tasks.base.Task.heads`.

    `encode` takes text before patches, padding in between: ``[CLS] w1 .. wn [SEP] [PAD] .. p1 .. pP``.
    """

    spec: InputSpec
    config: ModelConfig
    tasks: tuple[Any, ...]

    if TYPE_CHECKING:  # linen's own also says (output, changed variables), which no method here returns

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def setup(self):
        self.text_embeddings = TextEmbeddings(self.spec.vocabulary_size, self.spec.text_tokens, self.config)
        self.image_embeddings = self.make_image_embeddings()
        self.encoder = self.make_encoder()
        heads = {}
        for task in self.tasks:
            heads |= task.heads(self.config, self.spec)  # tasks may share one: it has a name once
        for name, head in heads.items():
            setattr(self, name, head if isinstance(head, nn.Module) else head(self))

    @nn.nowrap
    def make_image_embeddings(self) -> nn.Module:
        """What `embed_image` runs."""
        return ImageEmbeddings(self.spec.num_patches // self.spec.num_images, self.config, self.spec.num_images)

    @nn.nowrap
    def make_encoder(self) -> nn.Module:
        """What `encode` runs."""
        return Encoder(self.config)

    def __call__(self, ids: jax.Array, text_mask: jax.Array, features: jax.Array) -> jax.Array:
        """Every head once, which initialises all parameters; hidden states ``[B, L, D]``, where a task needs any."""
        hidden = text = image = means = None
        if self.reads_encoder:
            text = self.embed_text(ids)
            image = self.embed_image(features) if any(task.encodes_images for task in self.tasks) else text[:, :0]
            hidden, means = self.encode_pair(text, text_mask, image)
            text, image = hidden[:, : ids.shape[1]], hidden[:, ids.shape[1] :]
        for task in self.tasks:
            task.initialise(self, text, image, means)
        return hidden

    @property
    def reads_encoder(self) -> bool:
        return any(task.reads_encoder for task in self.tasks)

    @property
    def reads_bags(self) -> bool:
        return any(task.reads_bags for task in self.tasks)

    @property
    def most_ngrams(self) -> int:
        """The most n-grams of a bag, whatever the length that its text is padded to."""
        return self.spec.text_tokens

    def embed_text(self, ids: jax.Array, deterministic: bool = True, is_query: bool = False) -> jax.Array:
        """``ids [B, T] -> [B, T, D]``, in the segment of queries or in that of texts."""
        return self.text_embeddings(ids, deterministic, is_query)

    def embed_image(self, features: jax.Array, deterministic: bool = True) -> jax.Array:
        """``features [B, P, C] -> [B, P, D]``; rows of variants that follow the P are left out.

        With several pictures of a product NaN comes out for those that are not there (`fbjax.model.grids.pictures`).
        """
        features = features[:, : self.spec.num_patches] if self.spec.num_variants else features
        return self.image_embeddings(features, deterministic)

    def encode(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        left_to_right: bool = False,
    ) -> jax.Array:
        """``text [B, T, D], text_mask [B, T], image [B, P, D] -> [B, L, D]``, or `positions` [B, R] of it.

        `left_to_right`: under the mask of `_prefix_mask`.
        """
        image, mask = self._image_and_mask(text_mask, image)
        mask = _prefix_mask(mask, image.shape[1]) if left_to_right else mask
        is_image = jax.lax.concatenate([jnp.zeros(text.shape[1], bool), jnp.ones(image.shape[1], bool)], 0)
        kinds = is_image if text.shape[1] and image.shape[1] else None
        return self.encoder(jax.lax.concatenate([text, image], 1), mask, positions, deterministic, kinds)

    def encode_pair(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        image: jax.Array,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`encode`, and the means over text and over image, ``[B, 2, D]``, or the first state of each in their place,
        as a task reads them.

        Else None: of the last layer only `positions` are computed then.
        """
        if not any(task.reads_means or task.reads_firsts for task in self.tasks):
            return self.encode(text, text_mask, image, positions, deterministic), None
        hidden, t = self.encode(text, text_mask, image, deterministic=deterministic), text.shape[1]
        if any(task.reads_firsts for task in self.tasks):
            means = jnp.stack([hidden[:, 0], hidden[:, t:][:, 0]], axis=1)
        else:
            of_image = hidden[:, t:].mean(axis=1)
            if self.spec.num_images > 1:
                of_image = _mean(hidden[:, t:], are_there(image))
            means = jnp.stack([_mean(hidden[:, :t], text_mask), of_image], axis=1)
        return hidden if positions is None else jnp.take_along_axis(hidden, positions[..., None], axis=1), means

    def encode_alone(
        self, text: jax.Array | None, text_mask: jax.Array | None, image: jax.Array | None, deterministic: bool = True
    ) -> jax.Array:
        """Embedded text, image, or both (a product) through the encoder, the mean over all positions: ``[B, D]``.

        MiniLM's sentences are means too; the paper does not say.
        """
        if text is None:
            text, text_mask = image[:, :0], jnp.zeros((image.shape[0], 0), bool)
        if image is None:
            image = text[:, :0]
        hidden = self.encode(text, text_mask, image, deterministic=deterministic)
        return _mean(hidden, self._image_and_mask(text_mask, image)[1])

    def _image_and_mask(self, text_mask: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``text_mask [B, T], image [B, P, D]`` -> the image as the encoder takes it, and ``[B, L]``.

        Every patch takes part, but those of pictures that are not there. By `jax.lax.concatenate`: of jnp's, jax2onnx
        0.13 takes the first part's length for that of the whole.
        """
        there = jnp.ones(image.shape[:2], bool)
        if self.spec.num_images > 1:
            image, there = shown(image)
        return image, jax.lax.concatenate([text_mask, there], 1)

    def read(
        self,
        ids: jax.Array | None,
        bag: Bag | None,
        features: jax.Array | None,
        deterministic: bool = True,
        is_query: bool = False,
    ) -> Reading:
        """A text or query alone, ``ids [B, T]`` and its `bag`, an image alone, ``features [B, P, C]``, or a product of
        text and image."""
        found = Reading(None)
        if any(task.embeds for task in self.tasks):
            found = self._read_for_vectors(ids, bag, features, deterministic, is_query)
        elif any(task.reads_alone for task in self.tasks):
            found = Reading(self.mean_alone(ids, features, deterministic, is_query))
        if not any(task.late_interaction for task in self.tasks) or (ids is not None and features is not None):
            return found
        if ids is None:
            return found._replace(tokens=self.regions(features))
        return found._replace(tokens=self.words(self.embed_text(ids, deterministic), ids != PAD_ID, deterministic))

    def _read_for_vectors(self, ids, bag, features, deterministic: bool, is_query: bool) -> Reading:
        """What `read` reads for the task that makes vectors."""
        task, mean = self._task(lambda task: task.embeds), None
        if task.reads_encoder or any(task.reads_alone for task in self.tasks):
            mean = self.mean_alone(ids, features, deterministic, is_query)
        if not task.reads_apart:
            return Reading(mean)
        branch, text = getattr(self, task.reads_apart), bag if task.reads_bags else ids
        parts = [] if text is None else [branch.text(text)]
        one = lambda: mean_picture(features, self.spec.num_images)  # noqa: E731
        parts += [] if features is None else [branch.image(one(), deterministic)]
        return Reading(mean, branch.product(*parts) if len(parts) > 1 else parts[0])

    def mean_alone(
        self, ids: jax.Array | None, features: jax.Array | None, deterministic: bool = True, is_query: bool = False
    ) -> jax.Array:
        """`encode_alone` of ``ids [B, T]`` and ``features [B, P, C]``, of which one may be None.

        Where a task makes vectors, the encoder reads no more of a text than that says.
        """
        limit = next((task.encoder_tokens for task in self.tasks if task.embeds), 0)
        ids = ids if ids is None or not limit else ids[:, :limit]
        text = None if ids is None else self.embed_text(ids, deterministic, is_query)
        image = None if features is None else self.embed_image(features, deterministic)
        return self.encode_alone(text, None if ids is None else ids != PAD_ID, image, deterministic)

    def read_left_to_right(
        self, ids: jax.Array, image: jax.Array, positions: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """``ids [B, T], image [B, P, D] -> [B, T, D]``, or `positions` [B, R] of the text: no position has seen a later
        one of the text, and each has seen the whole image, which has seen no text."""
        text = self.embed_text(ids, deterministic)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return self.encode(text, ids != PAD_ID, image, positions, deterministic, left_to_right=True)

    def run_head(self, name: str, function: str, *arrays: jax.Array):
        """``task.function(model, *arrays)`` of the task `name`."""
        return getattr(self._task(lambda task: task.name == name), function)(self, *arrays)

    def match_logits(self, cls: jax.Array, means: jax.Array | None = None) -> jax.Array:
        """``cls [B, D]`` and the `means` of `encode_pair` ``-> [B, 2]`` float32; index 1 means match."""
        return self._task(lambda task: task.scores_pairs).match_logits(self, cls, means)

    def words(self, text: jax.Array, text_mask: jax.Array, deterministic: bool = True) -> jax.Array:
        """Of a task of late interaction: ``text [B, T, D], text_mask [B, T] -> [B, T, E]`` of length 1."""
        return self._task(lambda task: task.late_interaction).words(self, text, text_mask, deterministic)

    def regions(self, features: jax.Array) -> jax.Array:
        """Of a task of late interaction: ``features [B, P, C] -> [B, P, E]`` of length 1."""
        return self._task(lambda task: task.late_interaction).regions(self, features)

    def token_scores(self, words: jax.Array, word_mask: jax.Array, regions: jax.Array) -> jax.Array:
        """``words [.., T, E], word_mask [.., T], regions [.., P, E] -> [..]``; the leading axes broadcast."""
        return self._task(lambda task: task.late_interaction).token_scores(self, words, word_mask, regions)

    def vector(self, reading: Reading) -> jax.Array:
        """A `Reading` as vectors of length 1, [..., E] float32."""
        return self._task(lambda task: task.embeds).vector(self, reading)

    def logit_scale(self) -> jax.Array:
        """What turns cosines of vectors into logits."""
        return self._task(lambda task: task.embeds).logit_scale(self)

    def _task(self, wanted: Callable[[Any], bool]) -> Any:
        return next(task for task in self.tasks if wanted(task))


def build_model(
    config: ModelConfig,
    tasks: Iterable[Any],
    patches: PatchNetwork,
    vocabulary_size: int,
    mask_id: int,
    num_ngrams: int = 0,
    num_classes: tuple[int, ...] = (),
) -> FashionBert:
    """The model of these settings for texts of these pieces and n-grams, images of these patches, and attributes of
    these many classes."""
    sizes = (vocabulary_size, mask_id, config.text_tokens, patches.num_patches, patches.feature_size)
    rows = patches.scales, patches.num_variants, patches.num_images
    spec = InputSpec(*sizes, int(patches.whole_image), num_ngrams, num_classes, *rows)
    return MODELS[config.architecture](spec, config, tuple(tasks))


def _prefix_mask(mask: jax.Array, num_patches: int) -> jax.Array:
    """``mask [B, L] -> [B, L, L]``, rows attend to columns: the `num_patches` last positions to themselves, a text
    position to them and to the text up to itself (the sequence-to-sequence mask of UniLM, Dong et al. 2019, arXiv
    1905.03197, with the image in place of the first segment)."""
    place = jnp.arange(mask.shape[1])
    is_image = place >= mask.shape[1] - num_patches
    allowed = is_image | (~is_image[:, None] & (place <= place[:, None]))
    return allowed & mask[:, None]


def _mean(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the positions of `mask`: ``[B, L, D], [B, L] -> [B, D]``."""
    return jnp.where(mask[..., None], hidden, 0.0).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def match_score(match_logits: jax.Array) -> jax.Array:
    """``[B, 2] -> [B]``: the logit difference, monotone in the probability of a match and never saturated."""
    return match_logits[:, 1] - match_logits[:, 0]
