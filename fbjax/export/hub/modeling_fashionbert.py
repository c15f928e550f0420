"""FashionBERT (Gao et al., SIGIR 2020) in PyTorch: text pieces and image patches through one BERT encoder.

Axes: B examples, T text tokens, P patches, L = T + P, D width, V vocabulary, C patch feature size, S image size in
pixels, E vector size. The text backbone under ``bert`` has the names of `transformers.BertModel`, which loads it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_fashionbert import FashionBertConfig
from .linear_fashionbert import LinearBranch, Ngrams
from .patches_fashionbert import PatchExtractor

GATE_UNIT = 10.0  # stored gates are in this unit
MAX_SCALE = 100.0  # of the factor of cosines


@dataclass
class FashionBertOutput(ModelOutput):
    """Outputs of `FashionBertModel.forward`; None for tasks that the model was not trained for.

    match_logits [B, 2]: index 1 means that text and image match. match_score [B]: their difference, > 0 where a match
    is likelier. mlm_logits [B, T, V]: of pieces at text positions. mpm_logits [B, P, C]: of features at patches.
    last_hidden_state [B, L, D]: text before patches.
    """

    loss: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    match_score: torch.Tensor | None = None
    mlm_logits: torch.Tensor | None = None
    mpm_logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class FashionBertModel(PreTrainedModel):
    """FashionBERT: patch network, embeddings of both modalities, encoder and heads.

    Methods take `images`, uint8 [B, S, S, 3] RGB, or `features` [B, P, C] of `patch_features`. `input_ids` [B, T] are
    ``[CLS] .. [SEP] [PAD] ..``; `attention_mask` defaults to all but padding.
    """

    config_class = FashionBertConfig
    base_model_prefix = "fashionbert"

    def __init__(self, config: FashionBertConfig):
        super().__init__(config)
        width, patches = config.hidden_size, config.patches
        if config.branches != "linear" or set(config.tasks) - {"itc", "qpc", "style"}:
            self.bert = TextBackbone(config)
            self.image_embeddings = ImageEmbeddings(config)
        if "mlm" in config.tasks:
            self.cls = nn.ModuleDict({"predictions": MlmHead(config)})
        if "mpm" in config.tasks:
            self.mpm = nn.Linear(width, patches["feature_size"], bias=False)
        if "tia" in config.tasks:
            self.tia = nn.Linear(width, 2)
        if config.embedding_dim:
            self._add_towers(config)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            if config.contrast == "sigmoid":
                self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        if patches.get("twin"):
            self.patches = PatchExtractor(patches)
            self.patches.requires_grad_(patches["mode"] == "trained")
        self.post_init()

    def _add_towers(self, config: FashionBertConfig) -> None:
        if config.branches != "linear":
            self.projection = nn.Linear(config.hidden_size, config.embedding_dim, bias=False)
        if config.branches != "encoder":
            cells = config.patches["num_patches"] * config.patches["feature_size"]
            self.ngrams = Ngrams(config)
            self.linear = LinearBranch(config.ngrams["rows"], cells, config.embedding_dim)
        if config.branches == "both":
            self.log_share = nn.Parameter(torch.tensor(math.log(0.5)))

    def forward(
        self, input_ids, images=None, features=None, attention_mask=None, labels=None, **_
    ) -> FashionBertOutput:
        """Outputs of all trained heads; with `labels` [B], 1 where text and image match, the match head's loss."""
        mask, length, tasks = self._mask(input_ids, attention_mask), input_ids.shape[1], self.config.tasks
        hidden = self._encode_pair(input_ids, mask, self._features(images, features))
        found = FashionBertOutput(last_hidden_state=hidden)
        if "tia" in tasks:
            found.match_logits = self._match_logits(hidden, mask)
            found.match_score = _score(found.match_logits)
            if labels is not None:
                found.loss = F.cross_entropy(found.match_logits, labels)
        if "mlm" in tasks:
            found.mlm_logits = self.cls["predictions"](hidden[:, :length], self.bert.embeddings.word_embeddings.weight)
        if "mpm" in tasks:
            found.mpm_logits = self.mpm(hidden[:, length:])
        return found

    def match(self, input_ids, images=None, features=None, attention_mask=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(match_score [B], match_logits [B, 2]) alone; computes nothing else."""
        mask = self._mask(input_ids, attention_mask)
        hidden = self._encode_pair(input_ids, mask, self._features(images, features), self.config.match_reads == "cls")
        logits = self._match_logits(hidden, mask)
        return _score(logits), logits

    def embed_text(self, input_ids, attention_mask=None) -> torch.Tensor:
        """Vectors [B, E] of texts, of length 1; their cosine with an image's or product's vector measures the match."""
        return self._vector(input_ids, self._mask(input_ids, attention_mask), None)

    def embed_image(self, images=None, features=None) -> torch.Tensor:
        """Vectors [B, E] of images."""
        return self._vector(None, None, self._features(images, features))

    def embed_product(self, input_ids, images=None, features=None, attention_mask=None) -> torch.Tensor:
        """Vectors [B, E] of products, each text read together with its image."""
        return self._vector(input_ids, self._mask(input_ids, attention_mask), self._features(images, features))

    def patch_features(self, images: torch.Tensor) -> torch.Tensor:
        """``images [B, S, S, 3] -> [B, P, C]``."""
        if not hasattr(self, "patches"):
            raise ValueError("this model reads features: it has no patch network")
        return self.patches(images)

    def scale(self) -> torch.Tensor:
        """The factor of cosines in the contrast's softmax over a batch."""
        above = F.relu(self.log_scale - math.log(MAX_SCALE))
        share = torch.exp(self.log_share) if self.config.branches == "both" else 0.0
        return torch.exp(self.log_scale - above.detach()) * (1 + share)

    def _features(self, images, features) -> torch.Tensor:
        if (images is None) == (features is None):
            raise ValueError("give images or features, one of the two")
        return self.patch_features(images) if features is None else features

    def _mask(self, input_ids, attention_mask) -> torch.Tensor:
        longest = self.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ValueError(f"texts of {input_ids.shape[1]} tokens: this model reads {longest} (truncation=True)")
        return input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()

    def _encode_pair(self, input_ids, mask, features, first: bool = False) -> torch.Tensor:
        text, image = self.bert.embeddings(input_ids), self.image_embeddings(features)
        crosses = None
        if self.config.cross_attention == "gated":
            is_image = torch.arange(text.shape[1] + image.shape[1], device=text.device) >= text.shape[1]
            crosses = is_image[:, None] != is_image
        mask = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
        return self.bert.encoder(torch.cat([text, image], dim=1), mask, crosses, first)

    def _match_logits(self, hidden, mask) -> torch.Tensor:
        logits = self.tia(torch.tanh(self.bert.pooler["dense"](hidden[:, 0])))
        if self.config.match_reads == "cls":
            return logits
        length = mask.shape[1]
        means = _mean(hidden[:, :length], mask), hidden[:, length:].mean(dim=1)
        text, image = (_unit(self.projection(mean)) for mean in means)
        return logits + F.pad((self.scale() * (text * image).sum(dim=-1))[:, None], (1, 0))

    def _vector(self, input_ids, mask, features) -> torch.Tensor:
        if not self.config.embedding_dim:
            raise ValueError("this model makes no vectors (embedding_dim 0)")
        parts = []
        if self.config.branches != "encoder":
            found = [] if input_ids is None else [_unit(self.linear.text(*self.ngrams(input_ids)))]
            weight = self.config.image_weight if found else 1.0
            found += [] if features is None else [weight * _unit(self.linear.image(features))]
            parts.append(_unit(sum(found)))
        if self.config.branches != "linear":
            most = self.config.encoder_tokens or None
            cut = (None, None) if input_ids is None else (input_ids[:, :most], mask[:, :most])
            parts.append(_unit(self.projection(self._mean_alone(*cut, features))))
        if self.config.branches != "both":
            return parts[0]
        share = torch.exp(self.log_share)
        return torch.cat([parts[0], torch.sqrt(share) * parts[1]], dim=-1) / torch.sqrt(1 + share)

    def _mean_alone(self, input_ids, mask, features) -> torch.Tensor:
        """The encoder's mean [B, D] over a text, an image or a product."""
        if features is None:
            return _mean(self.bert.encoder(self.bert.embeddings(input_ids), mask, None), mask)
        if input_ids is None:
            image = self.image_embeddings(features)
            everywhere = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
            return self.bert.encoder(image, everywhere, None).mean(dim=1)
        hidden = self._encode_pair(input_ids, mask, features)
        return _mean(hidden, torch.cat([mask, mask.new_ones(features.shape[:2])], dim=1))

    def _init_weights(self, module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()


class TextBackbone(nn.Module):
    """The parts of `transformers.BertModel` under their names; the encoder also reads patches, and may be gated."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        if "tia" in config.tasks:
            self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})


class TextEmbeddings(nn.Module):
    """``input_ids [B, T] -> [B, T, D]``."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids):
        position = self.position_embeddings.weight[: input_ids.shape[1]]
        embedded = self.word_embeddings(input_ids) + position + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(embedded))


class ImageEmbeddings(nn.Module):
    """``features [B, P, C] -> [B, P, D]``: the patch projection, positions, one segment."""

    def __init__(self, config):
        super().__init__()
        width, patches = config.hidden_size, config.patches
        self.projection = nn.Linear(patches["feature_size"], width, bias=False)
        self.position = nn.Parameter(torch.zeros(patches["num_patches"], width))
        self.segment = nn.Parameter(torch.zeros(1, width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features):
        features = self.dropout(features.to(self.projection.weight.dtype))
        return self.dropout(self.norm(self.projection(features) + self.position + self.segment))


class Encoder(nn.Module):
    """``x [B, L, D], mask [B, L] -> [B, L, D]``; `first`: the last layer computes only position 0, [B, 1, D]."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x, mask, crosses, first: bool = False):
        for i, layer in enumerate(self.layer):
            x = layer(x, mask, crosses, first and i == len(self.layer) - 1)
        return x


class Layer(nn.Module):
    """Attention and MLP, each followed by a residual and a LayerNorm."""

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict({"self": Attention(config), "output": Residual(width, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Residual(inner, config)

    def forward(self, x, mask, crosses, first: bool):
        rows = x[:, :1] if first else x
        crosses = crosses[:1] if first and crosses is not None else crosses
        rows = self.attention["output"](self.attention["self"](rows, x, mask, crosses), rows)
        return self.output(F.gelu(self.intermediate["dense"](rows)), rows)


class Residual(nn.Module):
    """``LayerNorm(residual + dropout(dense(x)))``."""

    def __init__(self, inputs: int, config):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, residual):
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class Attention(nn.Module):
    """Multi-head attention of `rows` [B, R, D] over `x` [B, L, D] where `mask` [B, L].

    `crosses` [R, L] is True between the modalities. With it, those positions have a softmax of their own, which each
    head's gate weights.
    """

    def __init__(self, config):
        super().__init__()
        width, self.num_heads, self.dropout = config.hidden_size, config.num_attention_heads, nn.Dropout(0.0)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout.p = config.attention_probs_dropout_prob
        if config.cross_attention == "gated":
            self.gate = nn.Parameter(torch.zeros(self.num_heads))

    def forward(self, rows, x, mask, crosses):
        q, k, v = self._heads(self.query, rows), self._heads(self.key, x), self._heads(self.value, x)
        mask = mask[:, None, None, :]
        if crosses is None:
            rate = self.dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=rate)
        else:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            own, other = (_softmax(logits, mask & kind) for kind in (~crosses, crosses))
            mixed = self.dropout(own + GATE_UNIT * self.gate[:, None, None] * other) @ v
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, project, x):
        return project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MlmHead(nn.Module):
    """``hidden [.., D] -> [.., V]`` through BERT's transform and the word embeddings."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm})
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden, words):
        x = self.transform["LayerNorm"](F.gelu(self.transform["dense"](hidden)))
        return F.linear(x, words, self.bias)


def _softmax(logits, mask):
    return torch.where(mask, logits, torch.finfo(logits.dtype).min).softmax(dim=-1)


def _mean(hidden, mask):
    """The mean over the positions of `mask`: ``[B, L, D], [B, L] -> [B, D]``."""
    return torch.where(mask[..., None], hidden, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _unit(x):
    """``x [.., E]`` of length 1."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-12)


def _score(logits):
    return logits[:, 1] - logits[:, 0]
