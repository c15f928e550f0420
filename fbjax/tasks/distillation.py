"""Distillation: a model learns what a trained cross-encoder, its teacher, makes of the same products.

A shorter cross-encoder learns hidden states and attention (TinyBERT, Jiao et al. 2020, arXiv 1909.10351) and match
logits (Hinton et al. 2015, arXiv 1503.02531). Two towers learn its ranking of what they find.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.tasks.base import IMAGE, NEGATIVE_PAIR, PAIR, TEXT, About, Task, register_task
from fbjax.tasks.towers.contrast import cosine_matrix, valid_negatives

ONE_STREAM = "reads the layers of one stream, and model.architecture 'vilbert' has two (use another)"
TEACHER = "the workdir of a trained cross-encoder, of the same vocabulary and image tokens; its best checkpoint teaches"


@dataclasses.dataclass(frozen=True)
class Taught(Task):
    """A task with a teacher."""

    teacher: str = setting("", TEACHER, is_path=True)
    temperature: float = setting(2.0, "by which logits are divided before their softmax", "(0, inf)")

    def check(self, config):
        prefix = f"tasks.{self.name}"
        found = [] if self.teacher else [f"{prefix}.teacher names no teacher: set it to a workdir of a trained run"]
        if config.patches.mode == "trained":
            found.append(
                f"{prefix} gives teacher and student the same patch features: patches.mode 'trained' would change the "
                "student's (use 'frozen' or 'cached')"
            )
        return found


@register_task("distillation")
@dataclasses.dataclass(frozen=True)
class Distillation(Taught):
    """The teacher's hidden states, attention and match logits of each pair, from evenly spaced layers of it.

    The masks of other tasks hide the same from both.
    """

    hidden: float = setting(1.0, "weight of the mean squared error of hidden states, embeddings included", "[0, inf)")
    attention: float = setting(
        1.0, "weight of the squared error of attention weights, summed over keys, a mean over queries", "[0, inf)"
    )
    logits: float = setting(1.0, "weight of the divergence of match probabilities, times temperature^2", "[0, inf)")

    reads_traces = True
    about = About(
        "Distillation (distillation)",
        "what a deeper model makes of text and image",
        "Distance from the teacher's hidden states, attention and match logits, weighted; 0 is the teacher itself.",
    )

    @property
    def views(self):
        return (PAIR, NEGATIVE_PAIR)

    def check(self, config):
        found = super().check(config)
        if not self.hidden + self.attention + self.logits:
            found.append("tasks.distillation has weights hidden, attention and logits of 0: raise one of them")
        if self.attention and config.model.attention != "xla":
            found.append(
                f"tasks.distillation.attention {self.attention:g} reads attention weights, which model.attention "
                f"{config.model.attention!r} never forms (use 'xla', or set tasks.distillation.attention to 0)"
            )
        if config.model.architecture == "vilbert":
            found.append(f"tasks.distillation {ONE_STREAM}")
        if self.logits and not any(task.scores_pairs for task in config.tasks.values()):
            found.append(
                f"tasks.distillation.logits {self.logits:g} reads match logits, which no task here has: add tia (or "
                "set it to 0)"
            )
        return found

    def check_teacher(self, student, teacher):
        if teacher.architecture == "vilbert":
            return [ONE_STREAM]
        found = []
        if self.hidden and teacher.width != student.width:
            found.append(f"has width {teacher.width}, this run {student.width} (or set tasks.distillation.hidden to 0)")
        if self.attention and teacher.num_heads != student.num_heads:
            heads = f"{teacher.num_heads} attention heads, this run {student.num_heads}"
            found.append(f"has {heads} (or set tasks.distillation.attention to 0)")
        if (self.hidden or self.attention) and teacher.num_layers < student.num_layers:
            found.append(f"has {teacher.num_layers} layers, this run {student.num_layers}")
        return found

    def student_logits(self, model, cls: jax.Array, means: jax.Array | None) -> jax.Array:
        return model.match_logits(cls, means)

    def loss(self, head, views, targets, batch):
        ours, theirs = views.pairs.student, views.pairs.teacher
        takes_part = _takes_part(batch.batch.text_mask, ours.hidden.shape[3])
        terms = {}
        if self.hidden:
            errors = jnp.square(ours.hidden - theirs.hidden).mean(axis=(2, 4))  # over layers and width
            terms["hidden"] = self.hidden * _mean(errors, takes_part)
        if self.attention:
            errors = jnp.square(ours.attention - theirs.attention).sum(axis=5).mean(axis=(2, 3))
            terms["attention"] = self.attention * _mean(errors, takes_part)
        if self.logits:
            cls, means = views.pairs.cls, views.pairs.means
            means = None if means is None else means.reshape(-1, 2, cls.shape[-1])
            logits = head("student_logits", cls.reshape(-1, cls.shape[-1]), means).reshape(theirs.logits.shape)
            terms["logits"] = self.logits * divergence(theirs.logits, logits, self.temperature).mean(axis=1)
        shares = {name: batch.weight @ term for name, term in terms.items()}
        return jnp.asarray(sum(shares.values())), {f"distillation_{name}": share for name, share in shares.items()}


@register_task("tower_distillation")
@dataclasses.dataclass(frozen=True)
class TowerDistillation(Taught):
    """The teacher's order of images for each text: its own, and those of the batch that the towers put nearest.

    Another product of the text's group, or one with the same text, is no candidate.
    """

    candidates: int = setting(7, "images of other products for each text; the teacher reads each pair", "[1, inf)")

    whole_batch = True
    asks_teacher = True
    about = About(
        "Distillation of towers (tower_distillation)",
        "how a cross-encoder would order what the vectors find",
        "Divergence of the towers' order of images for a text from the teacher's; 0 is the teacher's own.",
    )

    @property
    def views(self):
        return (TEXT, IMAGE)

    def check(self, config):
        found = super().check(config)
        if not any(task.embeds for task in config.tasks.values()):
            found.append("tasks.tower_distillation teaches towers, which no task here trains: add itc")
        if self.candidates >= config.train.batch_size:
            found.append(
                f"tasks.tower_distillation.candidates {self.candidates} must be below train.batch_size "
                f"{config.train.batch_size}, where they come from"
            )
        return found

    def tower_logits(self, model, text: Any, image: Any) -> jax.Array:
        return model.logit_scale() * cosine_matrix(model.vector(text), model.vector(image))

    def loss(self, head, views, targets, batch):
        logits = head("tower_logits", views.text, views.image)
        own = jnp.arange(len(logits))[:, None]
        negatives = valid_negatives(batch.batch.group, batch.batch.ids)
        nearest, rows = jax.lax.top_k(jnp.where(negatives, jax.lax.stop_gradient(logits), -jnp.inf), self.candidates)
        rows = jnp.concatenate([own, rows], axis=1)
        there = jnp.concatenate([jnp.ones_like(own, bool), nearest > -jnp.inf], axis=1)
        ours = jnp.take_along_axis(logits, rows, axis=1)
        loss = batch.weight @ divergence(views.match(rows), ours, self.temperature, there)
        return loss, {}


def divergence(teacher: jax.Array, student: jax.Array, temperature: float, there: jax.Array | None = None) -> jax.Array:
    """``temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature))`` [.., n] -> [..].

    Only where `there`, default: everywhere. The square keeps the gradient's size (Hinton et al. 2015).
    """
    there = jnp.ones(student.shape, bool) if there is None else there
    logs = [
        jax.nn.log_softmax(jnp.where(there, x / temperature, jnp.finfo(jnp.float32).min)) for x in (teacher, student)
    ]
    difference = jnp.where(there, logs[0] - logs[1], 0.0)
    return temperature**2 * (jnp.exp(logs[0]) * difference).sum(axis=-1)


def _takes_part(text_mask: jax.Array, length: int) -> jax.Array:
    """[B, T] -> [B, L]: which positions hold a piece or a patch."""
    patches = jnp.ones((len(text_mask), length - text_mask.shape[1]), bool)
    return jnp.concatenate([text_mask, patches], axis=1)


def _mean(errors: jax.Array, takes_part: jax.Array) -> jax.Array:
    """``[B, n, L], [B, L] -> [B]``: over pairs and over positions that take part."""
    return (errors.mean(axis=1) * takes_part).sum(axis=1) / takes_part.sum(axis=1)
