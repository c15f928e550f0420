"""The objective of a run: K tasks over the forward passes that they read, nothing of their weights.

Forward passes: a product's text with its own image ("pair") and with a negative's ("negative_pair"), and readings of a
text, an image, a product or a query alone (`READINGS`). Each is computed once, however many tasks read it; a pass that
no task reads is not computed. `Losses` is what `fbjax.training.task_weights` sees of it.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbjax.config.schema import Augment
from fbjax.data.batches.batch import Batch
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.model.augment import augment
from fbjax.model.fashionbert import FashionBert, Reading
from fbjax.model.ngrams import bag_of_ngrams
from fbjax.model.patch_features import PatchNetwork
from fbjax.tasks.alignment import guide
from fbjax.tasks.base import (
    IMAGE,
    NEGATIVE_PAIR,
    NEGATIVE_QUERY,
    PAIR,
    READINGS,
    TEXT,
    Example,
    MaskedBatch,
    PairView,
    Task,
    Views,
    task_key,
)
from fbjax.tasks.masking import rearranged
from fbjax.tasks.teacher import TRACED, trace
from fbjax.tasks.towers import contrast


class TaskHead(NamedTuple):
    """A task: ``loss(params, *outputs) -> (scalar, {metric: scalar})`` of the forward passes that it reads.

    Each scalar is the part of a mean over the global batch that these examples make up: over micro-batches they add up.
    Those of a head for the `whole_batch` do not: it reads the outputs of all micro-batches together.
    """

    reads: tuple[int, ...]
    loss: Callable[..., tuple[jax.Array, dict]]
    whole_batch: bool = False


class Losses(NamedTuple):
    """K losses of some examples as functions of the parameters. A task costs a pull-back through its passes alone."""

    passes: tuple[Callable[[Any], Any], ...]  # params -> output
    heads: tuple[TaskHead, ...]  # K

    def values(self, params: Any) -> tuple[jax.Array, dict]:
        """Losses [K] and metrics."""
        outputs = [forward(params) for forward in self.passes]
        pairs = [head.loss(params, *(outputs[i] for i in head.reads)) for head in self.heads]
        return jnp.stack([loss for loss, _ in pairs]), merged(metrics for _, metrics in pairs)


def merged(metrics: Iterable[dict]) -> dict:
    """The metrics of all tasks in one."""
    return {name: value for of_task in metrics for name, value in of_task.items()}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run learns: `tasks`, in the order of their losses."""

    model: FashionBert
    patches: PatchNetwork
    tasks: tuple[Task, ...]
    augment: Augment = Augment()
    teacher: Any = None  # a `Teacher` or none, whose parameters the constants of a step hold

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def random_share(self, step: int) -> float:
        """Share of negatives from any category at `step`, the most that a task asks for which needs them."""
        return max((task.random_share(step) for task in self.tasks if task.needs_negative), default=0.0)

    @property
    def pair_passes(self) -> tuple[tuple[str, ...], ...]:
        """The passes over pairs, ("pair", "negative_pair") as one where the same tasks read positions of both.

        Negative pairs exist where a task needs them; other tasks may read them then.
        """
        there = any(task.needs_negative or task.mines_negatives for task in self.tasks)
        pairs = (PAIR, NEGATIVE_PAIR) if there else (PAIR,)
        read = [view for view in pairs if any(view in task.views for task in self.tasks)]
        others = ((NEGATIVE_QUERY,),) if any(NEGATIVE_QUERY in task.views for task in self.tasks) else ()
        if len(read) == 2 and all({*read} <= {*task.views} for task in self.tasks if self._reads_positions(task)):
            return (tuple(read), *others)
        return tuple((view,) for view in read) + others

    @property
    def aligns_queries(self) -> bool:
        """Whether the query is read in every pair, between text and image."""
        return any(task.aligns_queries for task in self.tasks)

    @property
    def readings(self) -> tuple[str, ...]:
        """The passes over texts, images, products and queries alone."""
        return tuple(view for view in READINGS if any(view in task.views for task in self.tasks))

    @property
    def num_readings(self) -> float:
        """How often a step reads each text and each image: in each pair, and alone; half of them counts half."""
        sides = [READINGS[view] for view in self.readings]
        return sum(map(len, self.pair_passes)) + sum(side.text + side.image for side in sides) / 2

    def _reads_positions(self, task: Task) -> bool:
        return type(task).positions is not Task.positions

    def losses(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        """Losses [K], each a mean over the batch, and metrics."""
        key_masks, key_dropout = jax.random.split(key)
        masked = self.draw_masks(self.with_mined(params, frozen, batch, key_masks), key_masks)
        return self.losses_of(frozen, masked, key_dropout).values(params)

    def with_mined(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """`batch` with a negative's image for each text, where a task has them picked from the batch; else as it is.

        Drawn with the probabilities of a softmax over the towers' logits, as in ALBEF (Li et al. 2021, arXiv
        2107.07651), among images of other groups and other texts, of which each text needs one. Costs one more reading
        of each text and each image alone, without a gradient and without dropout.
        """
        if not any(task.mines_negatives for task in self.tasks):
            return batch
        head = partial(self._head, next(task for task in self.tasks if task.embeds), {**frozen, **params})
        texts, images = (head("vector", self._read(frozen, batch, key, view, params, True)) for view in (TEXT, IMAGE))
        logits = head("logit_scale") * contrast.cosine_matrix(texts, images)
        logits = jnp.where(contrast.valid_negatives(batch.group, batch.ids), logits, -jnp.inf)
        keys = jax.vmap(partial(jax.random.fold_in, task_key(key, NEGATIVE_PAIR)))(batch.index)
        drawn = jax.vmap(jax.random.categorical)(keys, logits)
        return batch._replace(negative=jnp.take(batch.image, drawn, axis=0))

    def draw_masks(self, batch: Batch, key: jax.Array, step: jax.Array | int = 0) -> MaskedBatch:
        """Every task's targets at a `step`, keyed by task and product: order, device count, other tasks do not matter.

        The pictures are augmented first, once for all passes, by keys of the product alone too.
        """
        spec, batch = self.model.spec, self.augmented(batch, key)
        images = [batch.image] if batch.negative is None else [batch.image, batch.negative]

        def draw(index, ids, word_ids, images, links):
            shape, targets = (len(images), spec.num_patches), {}
            own = lambda name: jax.random.fold_in(task_key(key, name), index)  # noqa: E731
            source = jnp.broadcast_to(jnp.arange(spec.num_patches), shape) if self._rearranges else None
            guided = guide.guide(own(guide.NAME), links, word_ids, spec.num_patches)
            example = Example(ids, word_ids, images, jnp.zeros(shape, bool), source, guided)
            for task in self.tasks:
                example, targets[task.name] = task.corrupt(own(task.name), example, spec)
            return example, targets

        stacked = jnp.stack(images, axis=1)  # so that a shard of B stays one
        examples, targets = jax.vmap(draw)(batch.index, batch.ids, batch.word_ids, stacked, batch.links)
        targets = {task.name: task.count(targets[task.name]) for task in self.tasks}
        weight, steps = jnp.full(len(batch.ids), 1.0 / len(batch.ids)), jnp.full(len(batch.ids), step, jnp.int32)
        return MaskedBatch(batch, examples, targets, weight, steps)

    def augmented(self, batch: Batch, key: jax.Array) -> Batch:
        """`batch` with its pictures, a negative's too, as `augment` changes them; `key`: that of `draw_masks`."""
        if not self.augment.is_on:
            return batch

        def change(index, *images):
            own = jax.random.fold_in(task_key(key, "augment"), index)
            return tuple(augment(self.augment, own, jnp.stack(images)))

        if batch.partner is not None:
            batch = batch._replace(partner=self.augmented(batch.partner, key))
        if batch.negative is None:
            return batch._replace(image=jax.vmap(change)(batch.index, batch.image)[0])
        image, negative = jax.vmap(change)(batch.index, batch.image, batch.negative)
        return batch._replace(image=image, negative=negative)

    def losses_of(self, frozen: Any, masked: MaskedBatch, key: jax.Array) -> Losses:
        """The losses of some examples; `frozen` holds what of the parameters is not trained."""
        passes = {views: partial(self._pair, frozen, masked, key, views) for views in self.pair_passes}
        passes |= {(view,): partial(self._read, frozen, masked.batch, key, view) for view in self.readings}
        names = list(passes)

        def head(task: Task) -> TaskHead:
            reads = [i for i, views in enumerate(names) if {*views} & {*task.views}]
            loss = partial(self._loss, task, [names[i] for i in reads], frozen, masked)
            return TaskHead(tuple(reads), loss, task.whole_batch)

        return Losses(tuple(passes.values()), tuple(head(task) for task in self.tasks))

    def shared(self, gradients: Any) -> Any:
        """The part of a gradient that is no task's own: embeddings, encoder, and a patch network that trains."""
        owned = {name for task in self.tasks for name in task.owns}
        model = {name: part for name, part in gradients.get("fashionbert", {}).items() if name not in owned}
        return gradients | {"fashionbert": model}

    def _slots(self, views: tuple[str, ...], masked: MaskedBatch) -> dict[str, jax.Array]:
        """{task: positions [B, n, R]} of those that read positions of a pass over these pairs."""
        num_text, chosen = masked.examples.ids.shape[1], {}
        num_text += masked.batch.query.shape[1] if self.aligns_queries else 0
        for task in self.tasks:
            if not self._reads_positions(task) or views[0] not in task.views:
                continue
            positions = task.positions(masked.targets[task.name], num_text)
            if positions.shape[1] > 1:
                positions = positions[:, _kinds(views)]
            chosen[task.name] = jnp.broadcast_to(positions, (len(positions), len(views), positions.shape[2]))
        return chosen

    def _pair(self, frozen: Any, masked: MaskedBatch, key: jax.Array, views: tuple[str, ...], params: Any) -> tuple:
        """(hidden [B, n, 1 + R, D] at [CLS] and what tasks read, means, features, traces) of text with each image."""
        params, trains = {**frozen, **params}, "patches" in params
        keys = jax.random.split(task_key(key, "+".join(views)), 4)
        read = slice(None) if self._rearranges else _kinds(views)
        images, hide = masked.examples.images[:, read], masked.examples.hidden[:, _kinds(views)]
        b, n = hide.shape[:2]
        apply = partial(self.model.apply, {"params": params["fashionbert"]}, deterministic=False)
        features = self._features(params, images.reshape(-1, *images.shape[2:]), trains, keys[3])
        shown = features
        if self._rearranges:
            features = features.reshape(*images.shape[:2], *features.shape[1:])
            shown = rearranged(features, masked.examples.source)[:, _kinds(views)].reshape(b * n, *hide.shape[2:], -1)
            features = features[:, _kinds(views)].reshape(b * n, *features.shape[2:])
        shown = jnp.where(hide.reshape(b * n, -1, 1), 0.0, shown[:, : hide.shape[2]])
        positions = [jnp.zeros((b, n, 1), jnp.int32), *self._slots(views, masked).values()]
        positions = jnp.concatenate(positions, axis=2).reshape(b * n, -1)
        text, text_mask = self._embedded_text(apply, masked, views, keys[0])
        embedded = (
            jnp.repeat(text, n, axis=0),
            jnp.repeat(text_mask, n, axis=0),
            apply(shown, method="embed_image", rngs={"dropout": keys[1]}),
        )
        encode = partial(apply, *embedded, method="encode_pair", rngs={"dropout": keys[2]})
        traces = None
        if self._reads_traces:
            (hidden, means), left = encode(mutable=[TRACED])
            hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
            num_layers, ids = self.model.config.num_layers, jnp.repeat(masked.examples.ids, n, axis=0)
            theirs = self.teacher.trace(frozen["teacher"], ids, jax.lax.stop_gradient(shown), num_layers)
            traces = trace(left[TRACED], list(range(num_layers))), theirs
        else:
            hidden, means = encode(positions)
        features = jax.lax.stop_gradient(features)
        return jax.tree.map(lambda x: x.reshape(b, n, *x.shape[1:]), (hidden, means, features, traces))

    def _embedded_text(
        self, apply: Callable[..., Any], masked: MaskedBatch, views: tuple[str, ...], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Embedded texts [B, T, D] and their mask [B, T]; where queries are aligned, each with its query behind it."""
        text = apply(masked.examples.ids, method="embed_text", rngs={"dropout": key})
        if not self.aligns_queries:
            return text, masked.batch.text_mask
        ids = masked.batch.negative_query if NEGATIVE_QUERY in views else masked.batch.query
        rngs = {"dropout": jax.random.fold_in(key, 1)}
        query = apply(ids, is_query=True, method="embed_text", rngs=rngs)
        return jnp.concatenate([text, query], 1), jnp.concatenate([masked.batch.text_mask, ids != PAD_ID], 1)

    def _read(
        self, frozen: Any, batch: Batch, key: jax.Array, view: str, params: Any, deterministic: bool = False
    ) -> Reading | jax.Array:
        """What the model makes of a view of `READINGS`, nothing hidden."""
        params, trains, sides = {**frozen, **params}, "patches" in params and not deterministic, READINGS[view]
        key_drop, key_patches = jax.random.split(task_key(key, view))
        batch, ids, bag, features = batch.partner if sides.of_partner else batch, None, None, None
        if sides.text:
            ids = batch.query if sides.is_query else batch.ids
            bag = bag_of_ngrams(params["ngrams"], ids, self.model.most_ngrams) if self.model.reads_bags else None
        if sides.image:
            features = self._features(params, batch.image, trains, key_patches)
        apply = partial(self.model.apply, {"params": params["fashionbert"]}, rngs={"dropout": key_drop})
        if sides.left_to_right:
            image = apply(features, deterministic, method="embed_image")
            return apply(ids, image, None, deterministic, method="read_left_to_right")
        return apply(ids, bag, features, deterministic, sides.is_query, method="read")

    def _features(self, params: Any, images: jax.Array, trains: bool, key: jax.Array) -> jax.Array:
        """Patch features [N, P, C] float32, of a network that trains as it behaves in training."""
        with jax.named_scope("patch_network"):
            found = self.patches.apply(params.get("patches", {}), images, train=trains, key=key)
        return found.astype(jnp.float32)

    def _loss(
        self, task: Task, passes: list[tuple[str, ...]], frozen: Any, masked: MaskedBatch, params: Any, *outputs
    ) -> tuple:
        """The loss of `task` over the outputs of the passes that it reads."""
        head, found, pairs = partial(self._head, task, params), {}, []
        for views, output in zip(passes, outputs, strict=True):
            if views[0] in READINGS:
                found[views[0]] = output
            else:
                pairs.append(self._pair_view(task, views, masked, *output))
        if pairs:
            found["pairs"] = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *pairs)
        if task.asks_teacher:
            found["match"] = partial(self._match, frozen, masked.batch)
        with jax.named_scope("heads"):
            return task.loss(head, Views(**found), masked.targets[task.name], masked)

    @property
    def _rearranges(self) -> bool:
        return any(task.rearranges for task in self.tasks)

    @property
    def _reads_traces(self) -> bool:
        return any(task.reads_traces for task in self.tasks)

    def _match(self, frozen: Any, batch: Batch, images: jax.Array) -> jax.Array:
        """The teacher's scores of each text with the images [B, k] of the batch."""
        features = self._features(frozen, batch.image, False, jax.random.key(0))
        return self.teacher.match(frozen["teacher"], batch.ids, features, images)

    def _head(self, task: Task, params: Any, function: str, *arrays) -> Any:
        """``task.function(model, *arrays)`` with the model's parameters."""
        return self.model.apply({"params": params["fashionbert"]}, task.name, function, *arrays, method="run_head")

    def _pair_view(
        self,
        task: Task,
        views: tuple[str, ...],
        masked: MaskedBatch,
        hidden: Any,
        means: Any,
        features: Any,
        traces: Any,
    ) -> PairView:
        """What `task` reads of a pass over pairs."""
        start, slots = 1, {}
        for name, positions in self._slots(views, masked).items():
            slots[name] = slice(start, start := start + positions.shape[2])
        kept = jnp.array([i for i, view in enumerate(views) if view in task.views])
        if len(kept) < len(views):
            parts = hidden, means, features, traces
            hidden, means, features, traces = jax.tree.map(lambda x: x[:, kept], parts)
        features, chosen = jax.lax.stop_gradient(features), slots.get(task.name, slice(0, 0))
        traces = traces if traces and task.reads_traces else (None, None)
        return PairView(hidden[:, :, 0], hidden[:, :, chosen], means, features, *traces)


def _kinds(views: tuple[str, ...]) -> slice:
    """The places of these pairs among (own image, negative image)."""
    return slice(int(views[0] == NEGATIVE_PAIR), 1 + int(NEGATIVE_PAIR in views))
