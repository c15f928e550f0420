"""The tokenizers of CLIP and SigLIP in the form of a `Vocabulary`: [PAD] is row 0, and so each other row is one higher.

CLIP's is a byte-level BPE, SigLIP's a unigram model; a text is cut into the same pieces as by their own. What begins
and ends a text has the names [CLS] and [SEP]. A piece that a tokenizer lacks and a `Vocabulary` needs stands after all
rows: [UNK], [MASK], and SigLIP's [CLS], which its tower does not read.
"""

import json
import string
from pathlib import Path

from tokenizers import Tokenizer

from fbjax.data.text.wordpiece import SPECIAL, Vocabulary

TOKENIZER = "tokenizer.json"
CLIP_PIECES = {"<|startoftext|>": "[CLS]", "<|endoftext|>": "[SEP]"}
SIGLIP_PIECES = {"</s>": "[SEP]", "<unk>": "[UNK]"}
PUNCTUATION = "[" + "".join(f"\\{character}" for character in string.punctuation) + "]"
CANONICAL = [  # as in big_vision and open_clip: lower case, single spaces, no punctuation
    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": PUNCTUATION}, "content": ""},
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]


def read_clip_tokenizer(folder: Path) -> tuple[Vocabulary, int]:
    """CLIP's vocabulary in `folder`, and the number of its pieces without those that are added here.

    Raises FileNotFoundError where there is no tokenizer.json, ValueError where it is not CLIP's.
    """
    content = _read(folder)
    model = content["model"]
    if model.get("type") != "BPE" or any(piece not in model["vocab"] for piece in CLIP_PIECES):
        raise ValueError(
            f"{folder / TOKENIZER} is not CLIP's: it has no {' or '.join(CLIP_PIECES)} (copy CLIP's there)"
        )
    rows = {CLIP_PIECES.get(piece, piece): row + 1 for piece, row in model["vocab"].items()}
    own, lacking = len(rows), [piece for piece in SPECIAL[1:] if piece not in rows]
    rows |= {"[PAD]": 0} | {piece: 1 + own + i for i, piece in enumerate(lacking)}
    content["model"] = model | {"vocab": rows, "unk_token": "[UNK]"}
    return _vocabulary(content, folder), own


def read_siglip_tokenizer(folder: Path) -> tuple[Vocabulary, int]:
    """SigLIP's vocabulary in `folder`, and the number of its pieces without those that are added here.

    Raises FileNotFoundError where there is no tokenizer.json, ValueError where it is not SigLIP's.
    """
    content = _read(folder)
    model = content["model"]
    pieces = [piece for piece, _ in model["vocab"]] if model.get("type") == "Unigram" else []
    if any(piece not in pieces for piece in SIGLIP_PIECES):
        raise ValueError(
            f"{folder / TOKENIZER} is not SigLIP's, a unigram model with {' and '.join(SIGLIP_PIECES)} (copy SigLIP's "
            "there; SigLIP 2 has another tokenizer, which is not read)"
        )
    lowest = min(score for _, score in model["vocab"])  # so that the penalty of unknown pieces stays
    named = [[SIGLIP_PIECES.get(piece, piece), score] for piece, score in model["vocab"]]
    lacking = [[piece, lowest] for piece in SPECIAL[1:] if piece not in dict(named)]
    content["model"] = model | {"vocab": [["[PAD]", lowest], *named, *lacking], "unk_id": 1 + model["unk_id"]}
    own_rules = [content["normalizer"]] if content.get("normalizer") else []
    content["normalizer"] = {"type": "Sequence", "normalizers": [*CANONICAL, *own_rules]}
    return _vocabulary(content, folder), len(named)


def _read(folder: Path) -> dict:
    path = folder / TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {TOKENIZER}: save the model's tokenizer there")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no tokenizer ({error!r}): copy it there again") from None
    return content


def _vocabulary(content: dict, folder: Path) -> Vocabulary:
    """Of a tokenizer without the special pieces and the frame that it would find in texts and put around them."""
    content = content | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{folder / TOKENIZER} is no tokenizer ({error}): copy it there again") from None
    return Vocabulary(tokenizer, str(folder / TOKENIZER))
