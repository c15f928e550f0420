"""A folder of ``fbjax export --format stablehlo``, loaded and run with jax and numpy alone.

What the folder's manifest says is all that is known here: no model, no framework, no data. Strings want the package
tokenizers besides, and pictures Pillow; who has piece ids, and pixels or features, needs neither.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np

from fbjax.exported import manifest

FORMAT = "stablehlo"
WEIGHTS, PROGRAMS, SUFFIX = "weights.npz", "programs.json", ".stablehlo"
ROWS, BUCKET = 32, 16  # strings and pictures go in batches of so many, texts padded to a multiple: few programs compile
AT_ONCE = 512  # pairs whose features are held


class Exported:
    """``call(name, **arrays)`` runs one of `functions`, which say what each takes and gives, on JAX's default device.

    Any batch size and text length; a new combination is compiled once. What else there is takes lists of strings and
    pictures (paths, encoded bytes, PIL images or pixels [H, W, 3]) of any length, in batches, each row's result the
    same whatever stands beside it. Deterministic, and safe to use from threads.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, where `folder` is no whole export of this format."""
        self._folder = Path(folder)
        self.manifest = manifest.read(folder, FORMAT)
        self.functions: dict[str, dict] = self.manifest["functions"]
        with np.load(self._folder / WEIGHTS) as weights:
            self._params = {name: jax.device_put(weights[name]) for name in weights.files}
        self._programs = {name: self._read_program(name) for name in self.functions}
        self._compiled = {name: jax.jit(program.call) for name, program in self._programs.items()}
        self._encode, self._read = None, None

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """{output: array} of the function `name`. Raises ValueError where `arrays` are not what it takes."""
        function = self._function(name)
        wanted = [given["name"] for given in function["inputs"]]
        if arrays.keys() != set(wanted):
            raise ValueError(f"{name} takes {', '.join(wanted)}; got {', '.join(arrays) or 'nothing'}")
        sizes = {}
        placed = [self._checked(name, given, arrays[given["name"]], sizes) for given in function["inputs"]]
        found = self._compiled[name](self._params, *placed)
        return dict(zip(function["outputs"], map(np.asarray, found), strict=True))

    def score(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Match scores [N] of each text with the image beside it: what ``fbjax.load(workdir).score`` gives."""
        if "match_features" in self.functions:
            return self._of_pairs("match_features", texts, images)
        vectors = self.embed_text(texts), self.embed_image(images)
        if len(vectors[0]) != len(vectors[1]):
            raise ValueError(f"as many texts as images are wanted; got {len(vectors[0])} and {len(vectors[1])}")
        return np.einsum("ne,ne->n", *vectors)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of texts, float32 of length 1; the cosine with an image's or product's is their match."""
        return self._of_texts("embed_text", self.encode_texts(texts))

    def embed_image(self, images: Sequence) -> np.ndarray:
        """Vectors [N, E] of images."""
        name, images = "embed_image_features", _listed(images, "images")
        found = [self._batch(name, features=self.extract(images[part])) for part in _parts(len(images), ROWS)]
        return np.concatenate([self._nothing(name), *found])

    def embed_product(self, texts: Sequence[str], images: Sequence) -> np.ndarray:
        """Vectors [N, E] of products, each text read together with the image beside it."""
        return self._of_pairs("embed_product_features", texts, images)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Framed piece ids, int32 [N, T]."""
        if self._encode is None:
            self._encode = _text_encoder(self._folder / self.manifest["tokenizer"], self.manifest["text_tokens"])
        texts = _listed(texts, "texts")
        return np.array([self._encode(text) for text in texts], np.int32).reshape(-1, self.manifest["text_tokens"])

    def extract(self, images: Sequence) -> np.ndarray:
        """Patch features [N, P, C] of images; one that stands there more than once is read once."""
        if self._read is None:
            self._read = _image_reader(self.manifest["image_size"])
        images = _listed(images, "images")
        keys = [image if isinstance(image, str | Path | bytes) else id(image) for image in images]
        distinct = dict(zip(keys, images, strict=True))
        place, images = {key: i for i, key in enumerate(distinct)}, list(distinct.values())
        found = [
            self._batch("features", images=np.stack([self._read(image) for image in images[part]]))
            for part in _parts(len(images), ROWS)
        ]
        return np.concatenate([self._nothing("features"), *found])[[place[key] for key in keys]]

    def _of_pairs(self, name: str, texts: Sequence[str], images: Sequence) -> np.ndarray:
        ids, images = self.encode_texts(texts), _listed(images, "images")
        if len(ids) != len(images):
            raise ValueError(f"as many texts as images are wanted; got {len(ids)} and {len(images)}")
        parts = _parts(len(ids), AT_ONCE)
        found = [self._of_texts(name, ids[part], features=self.extract(images[part])) for part in parts]
        return np.concatenate([self._nothing(name), *found])

    def _of_texts(self, name: str, ids: np.ndarray, **beside: np.ndarray) -> np.ndarray:
        """First outputs for `ids` [N, T] and what stands `beside` them, in batches of texts padded to one length."""
        found = np.resize(self._nothing(name), (len(ids), *self._nothing(name).shape[1:]))
        lengths = np.minimum(-(-(ids != 0).sum(axis=1) // BUCKET) * BUCKET, ids.shape[1])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            for part in (rows[some] for some in _parts(len(rows), ROWS)):
                others = {given: array[part] for given, array in beside.items()}
                found[part] = self._batch(name, ids=ids[part, :length], **others)
        return found

    def _batch(self, name: str, **arrays: np.ndarray) -> np.ndarray:
        """First outputs for at most `ROWS` rows, computed among as many."""
        count = len(next(iter(arrays.values())))
        whole = np.resize(np.arange(count), ROWS)
        found = self.call(name, **{given: array[whole] for given, array in arrays.items()})
        return next(iter(found.values()))[:count]

    def _nothing(self, name: str) -> np.ndarray:
        """First outputs for no rows."""
        self._function(name)
        return np.empty((0, *self._programs[name].out_avals[0].shape[1:]), np.float32)

    def _function(self, name: str) -> dict:
        if name not in self.functions:
            raise ValueError(f"this export has no function {name} (there are {', '.join(self.functions)})")
        return self.functions[name]

    def _read_program(self, name: str) -> jax.export.Exported:
        path = self._folder / f"{name}{SUFFIX}"
        artifact = path.read_bytes()
        try:
            if _has_flatbuffers():
                return jax.export.deserialize(bytearray(artifact))
            return self._rebuilt(name, artifact)
        except Exception as error:  # whatever an older or newer serialization makes of it
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} was exported by jax {self.manifest['jax']}, which jax {jax.__version__} cannot read: use that "
                f"version, export again, or install flatbuffers ({reason})"
            ) from None

    def _rebuilt(self, name: str, artifact: bytes) -> jax.export.Exported:
        """What `jax.export.deserialize` gives, for which JAX wants flatbuffers without requiring it."""
        program = json.loads((self._folder / PROGRAMS).read_text(encoding="utf-8"))[name]
        function, scope = self.functions[name], jax.export.SymbolicScope()

        def described(shape, dtype):
            shape = jax.export.symbolic_shape(",".join(map(str, shape)) + ",", scope=scope)
            return jax.core.ShapedArray(shape, np.dtype(dtype))

        params = {name: jax.core.ShapedArray(array.shape, array.dtype) for name, array in self._params.items()}
        inputs = (params, *(described(given["shape"], given["dtype"]) for given in function["inputs"]))
        outputs = tuple(described(shape, "float32") for shape in program["outputs"])
        (in_avals, in_tree), (out_avals, out_tree) = map(jax.tree.flatten, ((inputs, {}), outputs))
        start, length = program["module"]
        known = {
            "fun_name": name,
            **{"in_tree": in_tree, "in_avals": tuple(in_avals), "in_shardings_hlo": (None,) * len(in_avals)},
            **{"out_tree": out_tree, "out_avals": tuple(out_avals), "out_shardings_hlo": (None,) * len(out_avals)},
            **{"_in_named_shardings": (None,) * len(in_avals), "_out_named_shardings": (None,) * len(out_avals)},
            **{"_has_named_shardings": True, "nr_devices": 1, "platforms": tuple(program["platforms"])},
            **{"ordered_effects": (), "unordered_effects": (), "disabled_safety_checks": ()},
            "mlir_module_serialized": artifact[start : start + length],
            "calling_convention_version": program["calling_convention"],
            "module_kept_var_idx": tuple(program["kept"]),
            **{"uses_global_constants": True, "_get_vjp": None},
        }
        return jax.export.Exported(**known)

    def _checked(self, name: str, given: dict, array: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """`array` as the input `given` of `name`; `sizes` are those that batch and length have in inputs before it."""
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


def _has_flatbuffers() -> bool:
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _listed(values, name: str) -> list:
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} is one {type(values).__name__}: put it into a list")
    return list(values)


def _text_encoder(file: Path, num_tokens: int) -> Callable[[str], np.ndarray]:
    """``text -> [CLS] pieces [SEP] [PAD] ..``, int32 [T], by the tokenizer in `file`."""
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
        row = np.zeros(num_tokens, np.int32)
        framed = [cls_id, *pieces[: num_tokens - 2], sep_id]
        row[: len(framed)] = framed
        return row

    return encode


def _image_reader(size: int | None) -> Callable[..., np.ndarray]:
    """``image -> pixels [S, S, 3]`` uint8."""
    if size is None:
        raise ValueError("this export reads ready-made features: it takes no picture (pass features to call)")
    try:
        from fbjax.data.sources.images import read_pixels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"pictures need {error.name}: install Pillow, or pass pixels to call") from None
    return lambda image: read_pixels(image, size)
