"""What the JSON beside the weights of a CLIP or SigLIP says of it that arrays do not: activation, heads, preprocessing.

There are two forms, `config.json` of Hugging Face's `CLIPModel` and `SiglipModel`, and `open_clip_config.json`. What a
file leaves out has the default of its library.
"""

import dataclasses
import json
from pathlib import Path

HUGGING_FACE, OPEN_CLIP, PREPROCESSOR = "config.json", "open_clip_config.json", "preprocessor_config.json"
KINDS = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip"}
KINDS |= {"clip_text_model": "clip", "siglip_text_model": "siglip", "siglip2": ""}
ACTIVATION_NAMES = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
DEFAULTS = {"clip": ("quick_gelu", 1e-5), "siglip": ("gelu_tanh", 1e-6)}  # activation and epsilon, of Hugging Face
NETWORKS = {
    ("clip", "quick_gelu"): "clip_vit",
    ("clip", "gelu"): "clip_vit_gelu",
    ("siglip", "gelu_tanh"): "siglip_vit",
    ("siglip", "gelu"): "siglip_vit_gelu",
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """Of an image or a text tower; None what the file does not say."""

    activation: str | None
    num_heads: int | None
    epsilon: float | None


@dataclasses.dataclass(frozen=True)
class Description:
    """Of both towers. `mean`, `deviation`: of RGB in 0..1; `fit`: as config.patches.fit; None where it is not said.

    `pad_id`: the row of SigLIP's padding.
    """

    path: Path
    kind: str  # "clip" or "siglip"
    image: Tower
    text: Tower
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    fit: str | None = None
    pad_id: int = 1

    @property
    def network(self) -> str:
        """The patch network that computes the image tower; timm's SigLIP has GELU by the error function."""
        return NETWORKS[self.kind, self.image.activation or "gelu"]


def described(folder: Path) -> Description | None:
    """What the JSON in `folder` says of a CLIP or SigLIP there; None where it has none, or of another model.

    Raises ValueError where it is of a kind, or has an activation, that is not known here.
    """
    for name, read in ((OPEN_CLIP, _open_clip), (HUGGING_FACE, _hugging_face)):
        if (folder / name).is_file() and (found := read(folder / name, _read(folder / name))):
            return found
    return None


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error} (copy it there again)") from None
    return content if isinstance(content, dict) else {}


def _hugging_face(path: Path, content: dict) -> Description | None:
    if content.get("model_type") not in KINDS:
        return None
    if not (kind := KINDS[content["model_type"]]):
        raise ValueError(
            f"{path} describes a {content['model_type']}, whose images have varying sizes: it cannot be read"
        )
    towers = [_section(content, part) for part in ("vision", "text")]
    default, epsilon = DEFAULTS[kind]
    image, text = (
        Tower(
            _activation(path, tower["hidden_act"]) if "hidden_act" in tower else default,
            tower.get("num_attention_heads"),
            tower.get("layer_norm_eps", epsilon),
        )
        for tower in towers
    )
    preprocessor = _read(path.parent / PREPROCESSOR) if (path.parent / PREPROCESSOR).is_file() else {}
    mean, deviation = (_triple(preprocessor.get(name)) for name in ("image_mean", "image_std"))
    fit = None
    if preprocessor:
        fit = "crop" if preprocessor.get("do_center_crop", kind == "clip") else "squash"
    return Description(path, kind, image, text, mean, deviation, fit, towers[1].get("pad_token_id", 1))


def _section(content: dict, part: str) -> dict:
    """A tower's settings: of a whole model's file, in which older versions repeat them, or of its own file."""
    if content["model_type"].endswith("_model"):
        return content
    return (content.get(f"{part}_config") or {}) | (content.get(f"{part}_config_dict") or {})


def _open_clip(path: Path, content: dict) -> Description | None:
    model, pictures = content.get("model_cfg"), content.get("preprocess_cfg") or {}
    if not isinstance(model, dict):
        raise ValueError(f"{path} has no model_cfg: copy it there again")
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    timm = str(vision.get("timm_model_name", ""))
    kind = "siglip" if "siglip" in timm else "clip"
    if (timm and kind == "clip") or not isinstance(vision.get("layers", 0), int):
        raise ValueError(
            f"{path} has the image tower {timm or 'of a ResNet'}: only ViT towers of CLIP and SigLIP are read"
        )
    if "hf_model_name" in text:
        raise ValueError(f"{path} has the text tower {text['hf_model_name']}: only those of CLIP and SigLIP are read")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    heads = None if timm else vision.get("width", 768) // vision.get("head_width", 64)
    epsilon = (text.get("norm_kwargs") or {}).get("eps", 1e-5 if kind == "clip" else None)
    return Description(
        path,
        kind,
        Tower(None if timm else activation, heads, None if timm else 1e-5),
        Tower("gelu_tanh" if tanh else activation, text.get("heads", 8), epsilon),
        _triple(pictures.get("mean")),
        _triple(pictures.get("std")),
        {"squash": "squash", "shortest": "crop", "longest": "pad"}.get(pictures.get("resize_mode", "shortest")),
    )


def _activation(path: Path, name: str) -> str:
    if name not in ACTIVATION_NAMES:
        raise ValueError(
            f"{path} has hidden_act {name!r}, which is not known here (known: {', '.join(ACTIVATION_NAMES)})"
        )
    return ACTIVATION_NAMES[name]


def _triple(values) -> tuple[float, ...] | None:
    return tuple(map(float, values)) if values is not None else None
