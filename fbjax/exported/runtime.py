"""Loads a folder of ``fbjax export --format stablehlo`` and runs it with jax and numpy.

JAX needs the package flatbuffers to read a program. Strings need the package tokenizers, pictures need Pillow; piece
ids, pixels and features need neither.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from fbjax.core.batching import uniform_batches
from fbjax.core.interface import TextImageModel, distinct, listed
from fbjax.exported import manifest

FORMAT = "stablehlo"
WEIGHTS, SUFFIX = "weights.npz", ".stablehlo"
ROWS, BUCKET = 32, 16  # rows of a batch; texts are padded to a multiple, so that few programs are compiled
AT_ONCE = 512  # pairs whose features are in memory


class Exported(TextImageModel):
    """``call(name, **arrays)`` runs one of `functions`, which list inputs and outputs, on JAX's default device.

    It takes any batch size and text length, and compiles a new combination once. The other methods take lists of
    strings and pictures (paths, encoded bytes, PIL images or pixels [H, W, 3]) of any length, in batches; a row's
    result does not depend on the others. Deterministic, and safe to use from threads.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, where `folder` is no complete export of this format."""
        self._folder = Path(folder)
        self.manifest = manifest.read(folder, FORMAT)
        self.functions: dict[str, dict] = self.manifest["functions"]
        with np.load(self._folder / WEIGHTS) as weights:
            self._params = {name: jax.device_put(weights[name]) for name in weights.files}
        self._programs = {name: self._read_program(name) for name in self.functions}
        self._compiled = {name: jax.jit(program.call) for name, program in self._programs.items()}
        self._encode, self._read = None, None

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """{output: array} of the function `name`. Raises ValueError where `arrays` do not fit its inputs."""
        function = self._function(name)
        wanted = [given["name"] for given in function["inputs"]]
        if arrays.keys() != set(wanted):
            raise ValueError(f"{name} takes {', '.join(wanted)}; got {', '.join(arrays) or 'nothing'}")
        sizes = {}
        placed = [self._checked(name, given, arrays[given["name"]], sizes) for given in function["inputs"]]
        found = self._compiled[name](self._params, *placed)
        return dict(zip(function["outputs"], map(np.asarray, found), strict=True))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Framed piece ids, int32 [N, T]."""
        if self._encode is None:
            self._encode = _text_encoder(self._folder / self.manifest["tokenizer"], self.manifest["text_tokens"])
        texts = listed(texts, "texts")
        return np.array([self._encode(text) for text in texts], np.int32).reshape(-1, self.manifest["text_tokens"])

    def extract(self, images: Sequence) -> np.ndarray:
        """Patch features [N, P, C] of images; a repeated image is read once."""
        if self._read is None:
            self._read = _image_reader(self.manifest["image_size"], self.manifest.get("image_fit") or "squash")
        images, places = distinct(listed(images, "images"))
        batches = (np.stack([self._read(image) for image in images[part]]) for part in _parts(len(images), ROWS))
        found = [self._batch("features", images=pixels) for pixels in batches]
        return np.concatenate([self._empty("features"), *found])[places]

    def _scores(self, texts: list[str], images: list) -> np.ndarray:
        if "match_features" in self.functions:
            return self._of_pairs("match_features", texts, images)
        return np.einsum("ne,ne->n", self._vectors(texts, None), self._vectors(None, images))

    def _vectors(self, texts: Any, images: Any) -> np.ndarray:
        if images is None:
            return self._of_texts("embed_text", self.encode_texts(texts))
        if texts is not None:
            return self._of_pairs("embed_product_features", texts, images)
        name = "embed_image_features"
        found = [self._batch(name, features=self.extract(images[part])) for part in _parts(len(images), ROWS)]
        return np.concatenate([self._empty(name), *found])

    def _of_pairs(self, name: str, texts: list[str], images: list) -> np.ndarray:
        ids = self.encode_texts(texts)
        parts = _parts(len(ids), AT_ONCE)
        found = [self._of_texts(name, ids[part], features=self.extract(images[part])) for part in parts]
        return np.concatenate([self._empty(name), *found])

    def _of_texts(self, name: str, ids: np.ndarray, **others: np.ndarray) -> np.ndarray:
        """First outputs for `ids` [N, T] and `others` of the same rows, in batches of texts padded to one length."""
        found = np.empty((len(ids), *self._empty(name).shape[1:]), np.float32)
        for length, rows in uniform_batches((ids != 0).sum(axis=1), ROWS, BUCKET, ids.shape[1]):
            part = {given: array[rows] for given, array in others.items()}
            found[rows] = self._batch(name, ids=ids[rows, :length], **part)
        return found

    def _batch(self, name: str, **arrays: np.ndarray) -> np.ndarray:
        """First outputs for at most `ROWS` rows, repeated to `ROWS` for the computation."""
        count = len(next(iter(arrays.values())))
        whole = np.resize(np.arange(count), ROWS)
        found = self.call(name, **{given: array[whole] for given, array in arrays.items()})
        return next(iter(found.values()))[:count]

    def _empty(self, name: str) -> np.ndarray:
        """First outputs for no rows."""
        self._function(name)
        return np.empty((0, *self._programs[name].out_avals[0].shape[1:]), np.float32)

    def _function(self, name: str) -> dict:
        if name not in self.functions:
            raise ValueError(f"this export has no function {name} (there are {', '.join(self.functions)})")
        return self.functions[name]

    def _read_program(self, name: str) -> jax.export.Exported:
        path = self._folder / f"{name}{SUFFIX}"
        try:
            return jax.export.deserialize(bytearray(path.read_bytes()))
        except ImportError:
            raise ModuleNotFoundError(f"JAX needs flatbuffers to read {path}: pip install flatbuffers") from None
        except Exception as error:  # another version of the serialization raises many types
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} was exported by jax {self.manifest['jax']}, which jax {jax.__version__} cannot read: use that "
                f"version, or export again ({reason})"
            ) from None

    def _checked(self, name: str, given: dict, array: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """`array` as the input `given` of `name`; `sizes` collects batch and length of its inputs."""
        array, shape = np.asarray(array), given["shape"]
        if not np.can_cast(array.dtype, given["dtype"], "same_kind"):
            raise ValueError(f"{name}: {given['name']} has type {array.dtype}, expected {given['dtype']}")
        fits = array.ndim == len(shape) and all(
            (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted) == size
            for wanted, size in zip(shape, array.shape, strict=True)
        )
        if not fits or sizes.get("length", 1) > self.manifest["text_tokens"]:
            raise ValueError(
                f"{name}: {given['name']} has shape {list(array.shape)}, expected [{', '.join(map(str, shape))}] "
                f"with one batch for all and length at most {self.manifest['text_tokens']}"
            )
        return array.astype(given["dtype"], copy=False)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _text_encoder(file: Path, num_tokens: int) -> Callable[[str], np.ndarray]:
    """``text -> [CLS] pieces [SEP] [PAD] ..``, int32 [T], with the tokenizer in `file`."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "strings need the package tokenizers: install it, or pass piece ids to call"
        ) from None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    cls_id, sep_id = (tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))

    def encode(text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}")
        whole = " ".join(text.encode("utf-8", "replace").decode().split())
        pieces = [piece for piece in tokenizer.encode(whole, add_special_tokens=False).ids if piece]  # [PAD] is 0
        if not pieces:
            raise ValueError(f"text {text[:100]!r} has no words")
        framed = [cls_id, *pieces[: num_tokens - 2], sep_id]
        return np.pad(np.array(framed, np.int32), (0, num_tokens - len(framed)))

    return encode


def _image_reader(size: int | None, fit: str) -> Callable[..., np.ndarray]:
    """``image -> pixels [S, S, 3]`` uint8; "squash" was the only fit of older exports."""
    if size is None:
        raise ValueError("this export reads ready-made features, not pictures (pass features to call)")
    try:
        from fbjax.data.sources.images import read_pixels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"pictures need {error.name}: install Pillow, or pass pixels to call") from None
    return lambda image: read_pixels(image, size, fit)
