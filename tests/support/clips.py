"""Random CLIPs and SigLIPs of transformers, small, and their parameters under the names of open_clip."""

import functools
import json
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

TEXT = {"num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": 12}
IMAGE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE |= {"image_size": 32, "patch_size": 8}
END, START = 98, 97  # of CLIP's texts


def _randomised(model: torch.nn.Module) -> torch.nn.Module:
    """With every array far from its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "logit_" in name:
            continue
        scale = 0.2 if tensor.ndim == 2 else 0.1 if tensor.ndim == 4 else 0.5
        is_scale = "norm" in name and name.endswith("weight")
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + is_scale)
    return model.eval()


@functools.cache
def clip(activation: str, vocabulary: int = 99) -> CLIPModel:
    text = TEXT | {"hidden_size": 64, "num_attention_heads": 2, "hidden_act": activation, "projection_dim": 48}
    text |= {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2}
    text |= {"eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    image = IMAGE | {"hidden_act": activation, "projection_dim": 48}
    return _randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=48)))


@functools.cache
def siglip(activation: str, vocabulary: int = 99) -> SiglipModel:
    text = (
        TEXT
        | {"vocab_size": vocabulary}
        | {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": activation, "projection_size": 128}
    )
    text |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    image = IMAGE | {"hidden_act": activation}
    model = _randomised(SiglipModel(SiglipConfig(text_config=text, vision_config=image)))
    model.logit_scale.data.fill_(3.0)
    model.logit_bias.data.fill_(-9.0)
    return model


BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TIMM = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "self_attn": "attn"}
WHOLE_CLIP = {
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
WHOLE_SIGLIP = {
    "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers": "visual.trunk.blocks",
    "vision_model.post_layernorm": "visual.trunk.norm",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
    "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
    "vision_model.head": "visual.trunk.attn_pool",
    "text_model.embeddings.token_embedding": "text.token_embedding",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers": "text.transformer.resblocks",
    "text_model.final_layer_norm": "text.ln_final",
    "text_model.head": "text.text_projection",
}


def open_clip_names(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Hugging Face's arrays as open_clip has them: other names, q, k and v in one array, its own projections."""
    found, thirds = {}, {}
    for theirs, tensor in state.items():
        name = _renamed(theirs, kind)
        if part := re.search(r"\.([qkv])_proj\.(weight|bias)$", name):
            joined = "qkv." if "trunk" in name else "in_proj_"
            thirds.setdefault(name.replace(part.group(), f".{joined}{part.group(2)}"), {})[part.group(1)] = tensor
        elif ".attn_pool.attention.in_proj_" in name:
            query, *others = tensor.chunk(3)
            home = name.partition("attention.")[0]
            variable = name.rpartition("_")[2]
            found |= {f"{home}q.{variable}": query.clone(), f"{home}kv.{variable}": torch.cat(others)}
        elif name in ("visual.proj", "text_projection"):
            found[name] = tensor.T.contiguous()
        elif name == "visual.trunk.pos_embed":
            found[name] = tensor[None]
        else:
            found[name] = tensor.squeeze() if name.startswith("logit_") else tensor
    return found | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in thirds.items()}


def _renamed(name: str, kind: str) -> str:
    for theirs, new in (WHOLE_CLIP if kind == "clip" else WHOLE_SIGLIP).items():
        name = name.replace(theirs, new) if name.startswith(theirs) else name
    for theirs, new in (TIMM if "trunk" in name else BLOCK).items():
        name = name.replace(theirs, new)
    return name


WORDS = "black navy red cotton t shirt men women dress shoes summer casual long short"


def write_clip_tokenizer(folder: Path) -> int:
    """A small tokenizer of CLIP's form, every byte included, trained on a few words; its number of rows."""
    tokenizer = CLIPTokenizer().backend_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    content = json.loads(tokenizer.to_str())
    rows = content["model"]["vocab"]
    pieces = [*rows, *(f"{letter}</w>" for letter in letters if f"{letter}</w>" not in rows)]
    pieces = [piece for piece in pieces if not piece.startswith("<|")] + ["<|startoftext|>", "<|endoftext|>"]
    rows = {piece: row for row, piece in enumerate(pieces)}
    merges = content["model"]["merges"]
    CLIPTokenizer(vocab=rows, merges=[tuple(merge) for merge in merges]).save_pretrained(folder)
    return len(rows)


def write_siglip_tokenizer(folder: Path) -> int:
    """A small tokenizer as SigLIP's repositories have it, a unigram model of T5's form; its number of rows."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=specials, unk_token="<unk>", show_progress=False, initial_alphabet=list("▁zq1")
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def write_hugging_face_clip(folder: Path) -> None:
    """A folder as `save_pretrained` leaves it: config.json, weights and tokenizer."""
    folder.mkdir()
    clip("quick_gelu", vocabulary=write_clip_tokenizer(folder)).save_pretrained(folder)
