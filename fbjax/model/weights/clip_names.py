"""The names of CLIP's and SigLIP's parameters in files of Hugging Face and of open_clip.

Both write image and text tower into one file, beside projections and the temperature. A source of one tower ignores the
other's arrays by their names. Tables: docs of transformers 5 and open_clip 3, checked in tests/unit/test_clip.py.
"""

from fbjax.model.weights.name_maps import Source, apart, layered, torch_axes

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
