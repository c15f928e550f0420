"""What a task is: one file, one frozen dataclass that holds its settings and knows everything else about it.

A task declares which forward passes it reads and which part of the batch it needs, hides or changes part of each
example, owns the heads that serve it alone, and gives its loss. Nothing else knows a task by name.

Axis legend: B products, n pairs of a product that are read, T text tokens, P image tokens, D width, C feature size,
R positions that a task reads.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax

from fbjax.config.schema import TASKS, Config, ModelConfig
from fbjax.config.settings import setting
from fbjax.data.batches.batch import Batch
from fbjax.model.fashionbert import FashionBert, InputSpec

PAIR, NEGATIVE_PAIR = "pair", "negative_pair"  # forward passes over a text and an image
NEGATIVE_QUERY = "negative_query"  # over a product's own text and image, with another product's query
TEXT, IMAGE, PRODUCT, QUERY = "text", "image", "product", "query"  # over one alone; a product is both, read together
CAPTION = "caption"  # a text and its image, the text read from left to right
PARTNER = "partner"  # the other product of an event, text and image read together
Metrics = dict[str, jax.Array]


class Sides(NamedTuple):
    """What a reading reads: of the product or its partner, the text, the image, or the query in place of the text."""

    text: bool
    image: bool
    of_partner: bool = False
    is_query: bool = False
    left_to_right: bool = False  # `FashionBert.read_left_to_right`


READINGS = {  # in the order of a step
    TEXT: Sides(text=True, image=False),
    IMAGE: Sides(text=False, image=True),
    PRODUCT: Sides(text=True, image=True),
    QUERY: Sides(text=True, image=False, is_query=True),
    CAPTION: Sides(text=True, image=True, left_to_right=True),
    PARTNER: Sides(text=True, image=True, of_partner=True),
}


def register_task(name: str) -> Callable[[type["Task"]], type["Task"]]:
    """A decorator for a task's dataclass. Raises ValueError where another task has the name."""

    def register(cls: type["Task"]) -> type["Task"]:
        cls.name = name
        return TASKS.register(name)(cls)

    return register


class Example(NamedTuple):
    """One product as a task may change it: the input of all forward passes over pairs."""

    ids: jax.Array  # [T] int32
    word_ids: jax.Array  # [T] int32: which word a piece belongs to; -1 on [CLS], [SEP], [PAD]
    images: jax.Array  # [n, ..]: its image and, where a task needs one, a negative's; pixels or cached features
    hidden: jax.Array  # [n, P] bool: image tokens whose features become 0
    source: Any = None  # [n, P] int32: the row shown at each place, of its image's rows and then the other image's
    guide: Any = None  # `fbjax.tasks.alignment.guide.Guide`: what is hidden first; None where all is drawn alike


@flax.struct.dataclass
class MaskedBatch:
    """B products, changed by every task in turn, and each task's targets."""

    batch: Batch
    examples: Example  # leaves [B, ..]
    targets: dict[str, Any]  # task -> leaves [B, ..]
    weight: jax.Array  # [B]: 1 over the number of products in the global batch
    step: jax.Array  # [B] int32: the step of training, for each product the same


class PairView(NamedTuple):
    """What the encoder makes of text and image together, at the positions that a task reads."""

    cls: jax.Array  # [B, n, D]
    hidden: jax.Array  # [B, n, R, D]
    means: jax.Array | None  # [B, n, 2, D]: over text and over image, where a task reads them, or their first states
    features: jax.Array  # [B, n, P, C], without a gradient: patch features before anything was hidden
    student: Any = None  # `fbjax.tasks.teacher.Trace` of the model, leaves [B, n, ..], where a task reads traces
    teacher: Any = None  # the same of the teacher


class Views(NamedTuple):
    """Outputs of the forward passes that a task reads; None for those that it does not."""

    pairs: Any = None  # `PairView`
    text: Any = None  # `fbjax.model.fashionbert.Reading` of a text alone; the following are the same of others
    image: Any = None
    product: Any = None
    query: Any = None
    partner: Any = None
    caption: Any = None  # [B, T, D]: the text's hidden states, none of which has seen a later position
    match: Any = None  # images [B, k] of the batch -> the teacher's scores [B, k]


class About(NamedTuple):
    """A task in words, for people: in the report, the model card, the reference."""

    title: str  # of its curve
    predicts: str  # completes "trained for: .."
    reading: str  # how to read its loss; {vocabulary_size} and {batch_size} are filled in
    guide: float | None = None  # the loss of guessing: a line in the curve's chart


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's settings and all that it does. Subclasses are frozen dataclasses too, decorated by `register_task`."""

    name: ClassVar[str]
    about: ClassVar[About]
    owns: ClassVar[tuple[str, ...]] = ()  # parameters that this task alone reaches: its heads
    reads_queries: ClassVar[bool] = False  # whether the batch has to hold a query of each product, from a log
    aligns_queries: ClassVar[bool] = False  # whether every pass over pairs reads the query too
    reads_labels: ClassVar[bool] = False  # whether it learns which queries match, so that those that do not are drawn
    reads_partners: ClassVar[bool] = False  # whether it has to hold another product of the same style for each
    needs_negative: ClassVar[bool] = False  # whether the batch has to hold another product's image
    mines_negatives: ClassVar[bool] = False  # whether that image is picked on the device, from the batch's own
    predicts_attributes: ClassVar[bool] = False  # whether it has to hold the classes of `columns` of the product table
    towers: ClassVar[str] = ""  # a workdir whose vectors of each product the batch has to hold
    teacher: ClassVar[str] = ""  # a workdir whose model teaches this one
    reads_traces: ClassVar[bool] = False  # whether it reads what model and teacher compute on their way
    asks_teacher: ClassVar[bool] = False  # whether it asks the teacher for scores of other pairs
    rearranges: ClassVar[bool] = False  # whether it changes `Example.source`, which is None in runs without such a task
    scores_pairs: ClassVar[bool] = False  # `match_logits` says whether a text and an image belong together
    whole_batch: ClassVar[bool] = False  # the loss compares products: it reads those of all micro-batches together
    late_interaction: ClassVar[bool] = False  # `words`, `regions` and `token_scores` of these score a pair
    aligns_words: ClassVar[bool] = False  # `alignment` says how much of each word of a pair goes to each patch
    embeds: ClassVar[bool] = False  # `vector` of a `Reading` and `logit_scale` make vectors of texts and images
    several_images: ClassVar[bool] = False  # whether a product may have more than one picture (data.max_images)
    augmentable: ClassVar[bool] = True  # targets stay true of a picture that is mirrored, cropped, brighter or darker
    writes_captions: ClassVar[bool] = False  # `caption_logits` says the next piece of a text read from left to right
    guided: ClassVar[str] = ""  # "text" or "image": what it hides of that follows `Example.guide`
    predicts_at: ClassVar[str] = ""  # "text" or "image": `logits` predicts something at each of its positions
    reads_encoder: ClassVar[bool] = True  # whether the encoder's hidden states matter to it
    reads_alone: ClassVar[bool] = False  # whether it reads the encoder's mean over a text or an image alone
    encodes_images: ClassVar[bool] = True  # whether the encoder reads images for it
    reads_bags: ClassVar[bool] = False  # whether it reads n-grams of a text and patch features side by side
    reads_apart: ClassVar[str] = ""  # its head that reads text and image each on its own, beside or without the encoder

    weight: float = setting(1.0, "of the loss under adaptive.method 'fixed', relative to the other tasks'", "[0, inf)")

    @property
    def views(self) -> tuple[str, ...]:
        """The forward passes that the loss reads, of PAIR, NEGATIVE_PAIR, TEXT and IMAGE."""
        raise NotImplementedError

    @property
    def reads_means(self) -> bool:
        """Whether the loss reads the means over text and over image of a pair."""
        return False

    @property
    def reads_firsts(self) -> bool:
        """Whether it reads, in place of the means, the first state of a pair's text and the first of its image."""
        return False

    def check(self, config: Config) -> list[str]:
        """What of `config` does not go with this task, in words that name the values and the remedy."""
        return []

    def check_teacher(self, student: ModelConfig, teacher: ModelConfig) -> list[str]:
        """What keeps a model from learning from a teacher, each completing "the teacher .."."""
        return []

    def heads(self, model: ModelConfig, spec: InputSpec) -> Mapping[str, nn.Module | Callable[[nn.Module], jax.Array]]:
        """{parameter name: module}, the layers that serve this task; a function makes a single parameter."""
        return {}

    def initialise(self, model: FashionBert, text: jax.Array, image: jax.Array, means: jax.Array | None) -> None:
        """Runs each head once, on hidden states ``text [B, T, D], image [B, P, D]``: that makes its parameters."""

    def corrupt(self, key: jax.Array, example: Example, spec: InputSpec) -> tuple[Example, Any]:
        """The example with part of it hidden or changed, and the targets to predict, a tree of arrays.

        `key` depends on seed, step, product and this task's name alone: further tasks leave its draws as they are.
        """
        return example, ()

    def count(self, targets: Any) -> Any:
        """`targets` of the global batch [B, ..], with what depends on all of them, such as their number."""
        return targets

    def positions(self, targets: Any, num_text: int) -> Any:
        """Positions [B, n, R] of ``[text, image]`` whose hidden states the loss reads as well as [CLS]'s, or None.

        Targets may be of both pairs of a product, n = 2: the objective picks those of the pass.
        """
        return None

    def loss(self, head: Callable[..., Any], views: Views, targets: Any, batch: MaskedBatch) -> tuple[Any, Metrics]:
        """(scalar loss, {metric: scalar}): each the share of a mean over the global batch that these examples have.

        With `whole_batch` these are all the examples of the global batch, else perhaps those of a micro-batch.

        ``head("function", *arrays)`` calls ``self.function(model, *arrays)`` with the model's parameters.
        """
        raise NotImplementedError

    def shifted(self, params: dict, score: float) -> dict:
        """The model's parameters with `score` taken off every match score, of a task that scores pairs."""
        raise NotImplementedError

    def random_share(self, step: int) -> float:
        """Share of a step's negatives that come from any category; the others are of the product's own."""
        return 0.0

    def note(self, metrics: Mapping[str, float]) -> str:
        """A sentence for the report on the metrics of the last steps and on the settings, or ""."""
        return ""


def task_key(key: jax.Array, name: str) -> jax.Array:
    """The random stream of a task or of a forward pass, by its name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
