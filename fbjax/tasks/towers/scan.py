"""Stacked cross attention (SCAN, Lee et al. 2018, arXiv 1803.08024), and PFAN's positions (Wang et al. 2019, arXiv
1907.09748): the words of a text against the regions of an image, by the hardest negatives of the batch.

Late interaction: texts and images are read apart, once each, and a pair is scored by all of their tokens. There is no
vector for an index. Departs from the papers: image tokens stand in for the regions of a detector, the encoder over the
text alone for a bidirectional GRU, [CLS] and [SEP] are words as well, and the loss is a mean over the batch.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fbjax.config.settings import setting
from fbjax.model.encoder import dense
from fbjax.model.linear import unit
from fbjax.model.towers.block_positions import BlockPositions
from fbjax.model.towers.stacked_attention import Direction, Pooling, StackedAttention
from fbjax.tasks.base import IMAGE, TEXT, About, Task, register_task
from fbjax.tasks.towers import contrast


@register_task("scan")
@dataclasses.dataclass(frozen=True)
class Scan(Task):
    """A hinge of margin .2 over scores of tokens; a product's own group and equal texts are no negatives.

    The best figures of the papers add the scores of two models, one of each direction, trained apart.
    """

    embedding_dim: int = setting(256, "E, of the vectors of words and of regions; the papers': 1024", "[1, inf)")
    direction: Direction = setting(
        "text_to_image",
        "who attends: each word to the regions (text_to_image), or each region to the words (image_to_text)",
    )
    pooling: Pooling = setting(
        "average",
        "what becomes of the cosines of a pair: their mean (average), or log sum exp(pooling_scale x) / pooling_scale "
        "(logsumexp), which grows with the number of words or regions",
    )
    attention_scale: float = setting(
        9.0, "of attention, lambda 1; the paper's: 9 from text to image, 4 from image to text", "(0, inf)"
    )
    pooling_scale: float = setting(
        6.0, "of logsumexp, lambda 2; the paper's: 6 from text to image, 5 from image to text (Flickr30K)", "(0, inf)"
    )
    hardest_from: int = setting(
        0,
        "the step from which the hardest negative of the batch counts alone; before it all do, without which the "
        "scores may become equal from the start",
        "[0, inf)",
    )
    positions: bool = setting(
        False,
        "whether a region knows where it lies, by attention to the blocks of a 16 x 16 grid that it covers (PFAN)",
    )

    owns = ("scan_words", "scan_regions", "scan_positions")
    whole_batch = True
    late_interaction = True
    encodes_images = False
    about = About(
        "Stacked cross attention (scan)",
        "which words and which image regions go together",
        "A hinge between each own pair and its negatives, all of them before step hardest_from and the hardest from "
        "then on, in both directions. Where it stays at .4, twice the margin, all scores have become equal.",
        guide=2 * contrast.MARGIN,
    )

    @property
    def views(self):
        return (TEXT, IMAGE)

    @property
    def attention(self) -> StackedAttention:
        return StackedAttention(self.direction, self.pooling, self.attention_scale, self.pooling_scale)

    def check(self, config):
        found = []
        if others := [name for name, task in config.tasks.items() if task.scores_pairs]:
            found.append(f"tasks {self.name} and {', '.join(others)} each score the run's pairs: take one of them")
        if self.positions and config.data.feature_size:
            found.append(
                "tasks.scan.positions asks where a region lies, which ready-made features (data.feature_size "
                f"{config.data.feature_size}) do not say (set it to false)"
            )
        if self.positions and config.patches.scales:
            found.append(
                f"tasks.scan.positions reads the cells of one grid, and patches.scales {config.patches.scales} are "
                "several (set it to false)"
            )
        return found

    def heads(self, model, spec):
        found: dict[str, nn.Module] = {
            "scan_words": dense(model, self.embedding_dim, ("embed", None), name="scan_words"),
            "scan_regions": dense(model, self.embedding_dim, ("feature", None), name="scan_regions"),
        }
        if self.positions:
            found["scan_positions"] = BlockPositions(model, spec.num_patches, spec.first_patch)
        return found

    def initialise(self, model, text, image, means):
        model.scan_words(text)
        self.regions(model, jnp.zeros((1, model.spec.num_patches, model.spec.feature_size)))

    def words(self, model, text: jax.Array, text_mask: jax.Array, deterministic: bool = True) -> jax.Array:
        """Embedded ``text [B, T, D], text_mask [B, T] -> [B, T, E]`` of length 1; those at [PAD] mean nothing."""
        hidden = model.encode(text, text_mask, text[:, :0], deterministic=deterministic)
        return unit(model.scan_words(hidden).astype(jnp.float32))

    def regions(self, model, features: jax.Array) -> jax.Array:
        """Patch features ``[B, P, C] -> [B, P, E]`` of length 1."""
        if self.positions:
            features = jnp.concatenate([features, model.scan_positions(features)], axis=-1)
        return unit(model.scan_regions(features).astype(jnp.float32))

    def token_scores(self, model, words: jax.Array, word_mask: jax.Array, regions: jax.Array) -> jax.Array:
        """``words [.., T, E], word_mask [.., T], regions [.., P, E] -> [..]``; the leading axes broadcast."""
        return self.attention.scores(words, word_mask, regions)

    def loss(self, head, views, targets, batch):
        words, regions = views.text.tokens, views.image.tokens
        mask = batch.batch.text_mask
        scores = head("token_scores", words[:, None], mask[:, None], regions[None])
        negatives = contrast.valid_negatives(batch.batch.group, batch.batch.ids)
        losses = contrast.hardest_from(scores, negatives, batch.step, self.hardest_from)
        return batch.weight @ losses, {"scan_accuracy": batch.weight @ contrast.hits(scores, negatives)}
