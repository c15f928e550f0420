"""FashionBERT in PyTorch, to compare with: Hugging Face's BERT with the same heads and the same parameters.

Two implementations give the same losses. `needed` computes no more than fbjax does: heads at masked positions, the last
layer at the rows that heads read. `as_written` is the plain one: every layer and the MLM head at every position.
"""

from dataclasses import dataclass, replace

import flax.traverse_util
import jax
import numpy as np

from fbjax.config.schema import Config
from fbjax.model import bert_weights
from fbjax.model.encoder import NORM_EPSILON
from fbjax.tasks.masking import KEEP_MASK, KEEP_RANDOM
from fbjax.tasks.objective import MaskedBatch
from fbjax.tools.bench.workload import MASK_ID, VOCABULARY_SIZE

try:
    import torch
except ModuleNotFoundError:
    raise ModuleNotFoundError("--compare torch needs PyTorch: pip install -e '.[parity]'") from None
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertModel, BertPredictionHeadTransform

IGNORED = -100  # the label that cross-entropy skips


class TorchModel(nn.Module):
    """FashionBERT around Hugging Face's `BertModel`."""

    def __init__(self, config: Config, vocabulary_size: int, num_patches: int, feature_size: int):
        super().__init__()
        model = config.model
        bert = BertConfig(**bert_weights.bert_settings(model, vocabulary_size), attn_implementation="sdpa")
        self.bert = BertModel(bert)
        self.projection = nn.Linear(feature_size, model.width, bias=False)
        self.position = nn.Embedding(num_patches, model.width)
        self.segment = nn.Embedding(1, model.width)
        self.norm = nn.LayerNorm(model.width, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(model.hidden_dropout)
        self.mlm_transform = BertPredictionHeadTransform(bert)
        self.mlm_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.mpm = nn.Linear(model.width, feature_size, bias=False)
        self.tia = nn.Linear(model.width, 2)

    def embed_text(self, ids: Tensor) -> Tensor:
        """``ids [B, T] -> [B, T, D]``."""
        return self.bert.embeddings(input_ids=ids)

    def embed_image(self, features: Tensor) -> Tensor:
        """``features [B, P, C] -> [B, P, D]``."""
        projected = self.projection(self.dropout(features))
        return self.dropout(self.norm(projected + self.position.weight + self.segment.weight))

    def encode(self, text: Tensor, text_mask: Tensor | None, image: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[B, L, D]``, or only `rows` [B, R] of it: the last layer then computes no others.

        `text_mask`: None where no text is padded.
        """
        x, mask = torch.cat([text, image], dim=1), None
        if text_mask is not None:
            mask = torch.cat([text_mask, text_mask.new_ones(image.shape[:2])], dim=1)[:, None, None, :]
        layers = list(self.bert.encoder.layer)
        last = layers.pop() if rows is not None else None
        for layer in layers:
            x = layer(x, None if mask is None else mask.expand(-1, 1, x.shape[1], -1))
        return x if last is None else self._last_layer(last, x, mask, rows)

    def _last_layer(self, layer, x: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
        queries = torch.take_along_dim(x, rows[..., None], dim=1)
        own = layer.attention.self

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)

        q, k, v = heads(own.query(queries)), heads(own.key(x)), heads(own.value(x))
        rate = own.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return layer.feed_forward_chunk(layer.attention.output(mixed.transpose(1, 2).flatten(2), queries))

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.mlm_transform(hidden), self.bert.embeddings.word_embeddings.weight, self.mlm_bias)

    def tia_logits(self, cls: Tensor) -> Tensor:
        return self.tia(torch.tanh(self.bert.pooler.dense(cls)))


IMAGE_SIDE = {  # parameter -> (its name in PyTorch, the transform of its array)
    "image_embeddings/projection/kernel": ("projection.weight", np.transpose),
    "image_embeddings/position": ("position.weight", np.asarray),
    "image_embeddings/segment": ("segment.weight", np.asarray),
    "image_embeddings/norm/scale": ("norm.weight", np.asarray),
    "image_embeddings/norm/bias": ("norm.bias", np.asarray),
    "mpm/kernel": ("mpm.weight", np.transpose),
    "tia/kernel": ("tia.weight", np.transpose),
    "tia/bias": ("tia.bias", np.asarray),
}


def copy_parameters(params: dict, model: TorchModel) -> None:
    """Copies FashionBERT's parameters into `model`. Raises ValueError where either has one that the other lacks."""
    ours = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    table = dict(IMAGE_SIDE)
    for target, (source, transform) in bert_weights.parameter_names(len(model.bert.encoder.layer)).items():
        head = source.removeprefix("cls.predictions.")
        table[target] = (f"bert.{source}" if head == source else f"mlm_{head}", transform)  # its own inverse
    theirs = dict(model.named_parameters())
    left = (ours.keys() ^ table.keys()) | (theirs.keys() ^ {name for name, _ in table.values()})
    if left:
        raise ValueError(f"the PyTorch model and FashionBERT differ in parameters: {', '.join(sorted(left))}")
    with torch.no_grad():
        for target, (name, transform) in table.items():
            theirs[name].copy_(torch.from_numpy(np.array(transform(ours[target]))))


@dataclass(frozen=True)
class Masked:
    """2B pairs as a data loader collates them: B positive pairs, then B negative ones."""

    ids: Tensor  # [B, T], pieces masked
    word_ids: Tensor  # [B, T]: the word of each piece, -1 for none
    text_mask: Tensor | None  # [B, T] bool; None where no text is padded
    features: Tensor  # [2B, P, C]
    shown: Tensor  # [2B, P, C]: `features` with 0 where a patch is masked
    rows: Tensor  # [2B, 1 + M + K]: [CLS], the pieces and the patches that heads read
    mlm_rows: Tensor  # [valid]: the masked pieces among the [2B (1 + M + K)] of those, of pairs that MLM reads
    mlm_labels: Tensor  # [valid]
    mpm_pairs: int  # 2B: the pairs that MPM reads
    patches: Tensor  # [2B, K]: masked patches
    labels: Tensor  # [2B, T]: the pieces' ids, `IGNORED` where MLM reads nothing
    hidden: Tensor  # [2B, P] bool: the patches that MPM reads
    matches: Tensor  # [2B]: 1 for positive pairs

    def to(self, device: torch.device) -> "Masked":
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def collate(masked: MaskedBatch) -> Masked:
    """A batch of cached features that the paper's objective has masked, for PyTorch: MLM and MPM read all pairs."""
    masked = jax.device_get(masked)
    batch, pieces = masked.batch, masked.targets["mlm"]
    b, t = masked.examples.ids.shape
    features = np.concatenate([batch.image, batch.negative]).astype(np.float32)
    patches = np.concatenate(masked.targets["mpm"].swapaxes(0, 1))  # [2B, K]
    positions, valid = np.tile(pieces.positions, (2, 1)), np.tile(pieces.weight > 0, (2, 1))
    hidden = np.zeros(features.shape[:2], bool)
    np.put_along_axis(hidden, patches, True, axis=1)
    shown = np.where(hidden[..., None], 0, features)
    rows = np.concatenate([np.zeros((2 * b, 1), int), positions, t + patches], axis=1)
    pair, slot = np.nonzero(valid)
    masked_pieces = pair, positions[pair, slot]
    labels, ids = np.full((2 * b, t), IGNORED), np.tile(batch.ids, (2, 1))
    labels[masked_pieces] = ids[masked_pieces]
    arrays = {
        "ids": masked.examples.ids.astype(np.int64),
        "word_ids": np.asarray(batch.word_ids).astype(np.int64),
        "features": features,
        "shown": shown,
        "rows": rows,
        "mlm_rows": pair * rows.shape[1] + 1 + slot,
        "mlm_labels": ids[masked_pieces].astype(np.int64),
        "patches": patches.astype(np.int64),
        "labels": labels,
        "hidden": hidden,
        "matches": np.repeat([1, 0], b),
    }
    text_mask = np.asarray(batch.text_mask)
    text_mask = None if text_mask.all() else torch.from_numpy(text_mask)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Masked(mpm_pairs=2 * b, text_mask=text_mask, **tensors)


def draw_masks(batch: Masked, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Masked ids [B, T], which pieces are masked [B, T], and masked patches [2B, K], drawn as fbjax draws them.

    Whole words in random order, up to `rate` of the pieces; of the pieces 80 % become [MASK], 10 % a random piece.
    """
    words, is_word = batch.word_ids.clamp(min=0), batch.word_ids >= 0
    by_word = torch.rand(words.shape, device=words.device).gather(1, words)
    places = torch.where(is_word, by_word, torch.inf).argsort(dim=1).argsort(dim=1)
    last = torch.zeros_like(words).scatter_reduce(1, words, torch.where(is_word, places, 0), "amax")
    limit = (rate * is_word.sum(dim=1, keepdim=True)).round().clamp(min=1)
    chosen = is_word & (last.gather(1, words) < limit)
    kind, other = torch.rand(words.shape, device=words.device), torch.randint_like(words, VOCABULARY_SIZE)
    replaced = torch.where(kind < KEEP_MASK, MASK_ID, torch.where(kind < KEEP_RANDOM, other, batch.ids))
    hidden = torch.rand(batch.features.shape[:2], device=words.device).argsort(dim=1)[:, : batch.patches.shape[1]]
    return torch.where(chosen, replaced, batch.ids), chosen, hidden


def needed(model: TorchModel, batch: Masked) -> Tensor:
    """Losses [3]; computes only what heads read."""
    text = model.embed_text(batch.ids).repeat(2, 1, 1)
    mask = None if batch.text_mask is None else batch.text_mask.repeat(2, 1)
    hidden = model.encode(text, mask, model.embed_image(batch.shown), batch.rows)
    mlm = F.cross_entropy(model.mlm_logits(hidden.flatten(0, 1)[batch.mlm_rows]).float(), batch.mlm_labels)
    n, k = batch.mpm_pairs, batch.patches.shape[1]
    target = torch.take_along_dim(batch.features[:n], batch.patches[:n, :, None], dim=1)
    mpm = _divergence(target, model.mpm(hidden[:n, -k:]).float()).mean()
    tia = F.cross_entropy(model.tia_logits(hidden[:, 0]).float(), batch.matches)
    return torch.stack([mlm, mpm, tia])


def as_written(model: TorchModel, batch: Masked) -> Tensor:
    """The same losses [3]; every layer and the MLM and MPM heads compute every position of every pair."""
    mask = None if batch.text_mask is None else batch.text_mask.repeat(2, 1)
    hidden = model.encode(model.embed_text(batch.ids.repeat(2, 1)), mask, model.embed_image(batch.shown))
    t = batch.ids.shape[1]
    logits = model.mlm_logits(hidden[:, :t]).float()
    mlm = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    divergence = _divergence(batch.features, model.mpm(hidden[:, t:]).float())
    mpm = (divergence * batch.hidden).sum() / batch.hidden.sum()
    tia = F.cross_entropy(model.tia_logits(hidden[:, 0]).float(), batch.matches)
    return torch.stack([mlm, mpm, tia])


def _divergence(target: Tensor, prediction: Tensor) -> Tensor:
    log_target, log_prediction = F.log_softmax(target, dim=-1), F.log_softmax(prediction, dim=-1)
    return (log_target.exp() * (log_target - log_prediction)).sum(dim=-1)


def score_needed(model: TorchModel, ids: Tensor, mask: Tensor | None, images: Tensor) -> Tensor:
    """Scores [B] from image embeddings; the last layer computes [CLS] alone."""
    cls = ids.new_zeros(len(ids), 1)
    return _score(model, model.encode(model.embed_text(ids), mask, images, cls))


def score_as_written(model: TorchModel, ids: Tensor, mask: Tensor | None, features: Tensor) -> Tensor:
    """Scores [B] from patch features; every layer computes every position."""
    return _score(model, model.encode(model.embed_text(ids), mask, model.embed_image(features)))


def _score(model: TorchModel, hidden: Tensor) -> Tensor:
    logits = model.tia_logits(hidden[:, 0])
    return logits[:, 1] - logits[:, 0]
