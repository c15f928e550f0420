"""The names of CLIP's and SigLIP's parameters in files of Hugging Face and of open_clip.

Both write image and text tower into one file, beside projections and the temperature. A source of one tower ignores the
other's arrays by their names. Tables: docs of transformers 5 and open_clip 3, checked in tests/unit/test_clip.py.
"""

from collections.abc import Callable

from fbjax.model.weights.name_maps import Source, apart, layered, own_axes, torch_axes

HUGGING_FACE_BLOCKS = {
    "block/attention_norm": "layer_norm1",
    "block/attention/query": "self_attn.q_proj",
    "block/attention/key": "self_attn.k_proj",
    "block/attention/value": "self_attn.v_proj",
    "block/attention/out": "self_attn.out_proj",
    "block/mlp_norm": "layer_norm2",
    "block/mlp_in": "mlp.fc1",
    "block/mlp_out": "mlp.fc2",
}
OPEN_CLIP_BLOCKS = {
    "block/attention_norm": "ln_1",
    "block/attention/query": "attn.q_proj",
    "block/attention/key": "attn.k_proj",
    "block/attention/value": "attn.v_proj",
    "block/attention/out": "attn.out_proj",
    "block/mlp_norm": "ln_2",
    "block/mlp_in": "mlp.c_fc",
    "block/mlp_out": "mlp.c_proj",
}
TIMM_BLOCKS = {
    "block/attention_norm": "norm1",
    "block/attention/query": "attn.q",
    "block/attention/key": "attn.k",
    "block/attention/value": "attn.v",
    "block/attention/out": "attn.proj",
    "block/mlp_norm": "norm2",
    "block/mlp_in": "mlp.fc1",
    "block/mlp_out": "mlp.fc2",
}
HUGGING_FACE_IMAGE = HUGGING_FACE_BLOCKS | {
    "patches": "embeddings.patch_embedding",
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "first_norm": "pre_layrnorm",  # spelt so
    "norm": "post_layernorm",
    "pool/probe": "head.probe",
    "pool/attention/query": "head.attention.q_proj",
    "pool/attention/key": "head.attention.k_proj",
    "pool/attention/value": "head.attention.v_proj",
    "pool/attention/out": "head.attention.out_proj",
    "pool/norm": "head.layernorm",
    "pool/mlp_in": "head.mlp.fc1",
    "pool/mlp_out": "head.mlp.fc2",
}
OPEN_CLIP_IMAGE = OPEN_CLIP_BLOCKS | {
    "patches": "conv1",
    "class_token": "class_embedding",
    "positions": "positional_embedding",
    "first_norm": "ln_pre",
    "norm": "ln_post",
}
TIMM_IMAGE = TIMM_BLOCKS | {
    "patches": "patch_embed.proj",
    "positions": "pos_embed",
    "norm": "norm",
    "pool/probe": "attn_pool.latent",
    "pool/attention/query": "attn_pool.q",
    "pool/attention/key": "attn_pool.k",
    "pool/attention/value": "attn_pool.v",
    "pool/attention/out": "attn_pool.proj",
    "pool/norm": "attn_pool.norm",
    "pool/mlp_in": "attn_pool.mlp.fc1",
    "pool/mlp_out": "attn_pool.mlp.fc2",
}

WRAPPED = ("", "model.")  # before the names of a whole model


def _wrapped(*names: str) -> tuple[str, ...]:
    return tuple(wrapper + name for wrapper in WRAPPED for name in names)


def _flat_positions(arrays: dict) -> dict:
    """timm's arrays with query, key and value on their own, and the position table [1, G^2, D] as [G^2, D]."""
    return {
        name: array[0] if name.endswith("pos_embed") and array.ndim == 3 else array
        for name, array in apart(arrays).items()
    }


OTHERS_OF_HUGGING_FACE = _wrapped("text_model.", "text_projection.", "visual_projection.", "logit_")
OTHERS_OF_OPEN_CLIP = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
OTHERS_OF_OPEN_CLIP += ("text.", "visual.proj", "attn_mask", "logit_")
HUGGING_FACE_IMAGES = Source(
    "Hugging Face's image tower",
    layered(HUGGING_FACE_IMAGE, "encoder.layers."),
    torch_axes,
    (*OTHERS_OF_HUGGING_FACE, "embeddings.position_ids"),
    ("vision_model.", "model.vision_model.", ""),
    arranged=apart,
)
OPEN_CLIP_IMAGES = Source(
    "open_clip's image tower",
    layered(OPEN_CLIP_IMAGE, "transformer.resblocks.", "visual."),
    torch_axes,
    OTHERS_OF_OPEN_CLIP,
    WRAPPED,
    arranged=apart,
)
TIMM_IMAGES = Source(
    "timm's image tower",
    layered(TIMM_IMAGE, "blocks."),
    torch_axes,
    (*_wrapped("text.", "logit_"), "head."),
    ("visual.trunk.", "model.visual.trunk.", ""),
    arranged=_flat_positions,
)


def _heads(name: Callable[[str], str], heads: dict[str, str]) -> Callable[[str], str]:
    """Names of the parameters of `DualEncoder` and of the temperature: of the text tower's by `name`, else `heads`."""
    return lambda ours: heads[ours] if ours in heads else name(ours.removeprefix("text_tower/"))


def _scalars(arrays: dict) -> dict:
    """Arrays with query, key and value on their own, and temperature and bias without an axis."""
    return {name: array.reshape(()) if "logit_" in name else array for name, array in apart(arrays).items()}


def _open_clip_axes(name: str, ndim: int) -> tuple[int, ...]:
    """open_clip's order of axes: PyTorch's, but that of kernels here for CLIP's projections."""
    return own_axes(name, ndim) if name.endswith("projection/kernel") else torch_axes(name, ndim)


SCALARS = {"log_scale": "logit_scale", "logit_bias": "logit_bias"}
CLIP_HEADS = SCALARS | {"text_tower/projection/kernel": "text_projection.weight"}
CLIP_HEADS |= {"image_projection/kernel": "visual_projection.weight"}
SIGLIP_HEADS = SCALARS | {"text_tower/projection/kernel": "text_model.head.weight"}
SIGLIP_HEADS |= {"text_tower/projection/bias": "text_model.head.bias"}
HUGGING_FACE_TEXT = HUGGING_FACE_BLOCKS | {
    "word": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    "norm": "final_layer_norm",
}
OPEN_CLIP_TEXT = OPEN_CLIP_BLOCKS | {
    "word": "token_embedding.weight",
    "positions": "positional_embedding",
    "norm": "ln_final",
}
IMAGES_OF_OPEN_CLIP = tuple(f"visual.{name}" for name in ("conv1", "class_", "positional_", "ln_", "transformer."))


def _open_clip_texts(prefix: str) -> Source:
    """Of CLIP in open_clip, whose text tower's names begin with `prefix`."""
    heads = SCALARS | {"image_projection/kernel": "visual.proj"}
    heads |= {"text_tower/projection/kernel": f"{prefix}text_projection"}
    name = _heads(layered(OPEN_CLIP_TEXT, "transformer.resblocks.", prefix), heads)
    unused = (*IMAGES_OF_OPEN_CLIP, f"{prefix}attn_mask", "logit_bias")
    return Source("open_clip's CLIP", name, _open_clip_axes, unused, WRAPPED, arranged=_scalars)


def _hugging_face_texts(title: str, heads: dict[str, str]) -> Source:
    name = _heads(layered(HUGGING_FACE_TEXT, "encoder.layers.", "text_model."), heads)
    unused = ("vision_model.", "text_model.embeddings.position_ids")
    return Source(title, name, torch_axes, unused, WRAPPED, arranged=_scalars)


CLIP_TEXTS = (
    _hugging_face_texts("Hugging Face's CLIP", CLIP_HEADS),
    _open_clip_texts(""),
    _open_clip_texts("text."),
)
SIGLIP_TEXTS = (
    _hugging_face_texts("Hugging Face's SigLIP", SIGLIP_HEADS),
    Source(
        "open_clip's SigLIP",
        _heads(
            layered(OPEN_CLIP_TEXT, "transformer.resblocks.", "text."),
            SCALARS
            | {
                f"text_tower/projection/{part}": f"text.text_projection.{w}"
                for part, w in (("kernel", "weight"), ("bias", "bias"))
            },
        ),
        torch_axes,
        ("visual.", "text.attn_mask"),
        WRAPPED,
        arranged=_scalars,
    ),
)
