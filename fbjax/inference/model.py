"""The trained model for notebooks and services.

Texts are strings; images are paths, encoded bytes, PIL images or arrays of pixels [H, W, 3] (uint8, or fractions up to
1). Lists have any length and are computed in batches. The same call returns the same bits on the same devices, whether
its texts and images were computed before or not, and threads may share a model.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import logit

from fbjax.core.console import say
from fbjax.core.interface import TextImageModel, distinct, listed
from fbjax.data.sources.cells import clean_text
from fbjax.data.sources.images import encoded, is_image, normalise_image, read_pixels
from fbjax.data.text.detokenise import as_text, written_words
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.cache import Cache, CacheInfo, content_key
from fbjax.inference.captions.captioner import BEAMS, Captioner
from fbjax.inference.embedder import Embedder, make_embedder
from fbjax.inference.known_words import unknown_words
from fbjax.inference.pair_scorer import PairScorer, make_scorer, match_probability
from fbjax.inference.token_scorer import TokenScorer
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.stored_evaluation import read_calibration

CACHE_BYTES = 2**28
CPU_ROWS, ACCELERATOR_ROWS = 8, 32  # texts or images at once: a request waits for a whole batch


@dataclasses.dataclass(frozen=True)
class Model(LoadedRun, TextImageModel):
    """``model.score(texts, images)``, ``model.rank(query, candidates)``, and vectors where the run trained them.

    What an image needs before it meets a text, and the vectors of texts and of images, are kept for calls to come.
    """

    cache_bytes: int = CACHE_BYTES  # that are kept at most; 0: nothing
    rows: int = 0  # texts or images at once: 1 for the least time to one answer; 0: the default of the devices
    quiet: bool = False  # says nothing of words that it does not know
    _cache: Cache = dataclasses.field(init=False, repr=False)
    _scorers: dict = dataclasses.field(default_factory=dict, init=False, repr=False)  # by the size of a batch
    _captioners: dict = dataclasses.field(default_factory=dict, init=False, repr=False)  # by beams and size of a batch

    def __post_init__(self):
        object.__setattr__(self, "_cache", Cache(self.cache_bytes))

    def rank(self, query, candidates: Sequence) -> list[tuple[int, float]]:
        """(index in `candidates`, score), best first: one text against images, or one image against texts."""
        candidates = listed(candidates, "candidates")
        queries = [query] * len(candidates)
        if is_image(query):
            scores = self._scores(candidates, queries)
        elif candidates and not any(map(is_image, candidates)):
            raise ValueError("neither the query nor a candidate is an image: is a path wrong?")
        else:
            scores = self._scores(queries, candidates)
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    def embed_query(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of queries, for an index of products; of texts, where the run has learned from no queries."""
        return self._text_vectors(listed(queries, "queries"), self._embedder.embed_queries)

    def cache_info(self) -> CacheInfo:
        """Hits and misses of texts and of images since the model was loaded, and what is kept now."""
        return self._cache.info()

    def cache_clear(self) -> None:
        """Forgets what was computed, and the hits and misses."""
        self._cache.clear()

    def match_probability(self, texts: Sequence[str], images: Sequence, prior: float = 0.5) -> np.ndarray:
        """The probabilities [N] that text i belongs to image i, by the temperature and bias of the last evaluation.

        `prior`: the share of matches among the pairs that are asked about. Raises ValueError where `fbjax evaluate` has
        not calibrated this checkpoint.
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior {prior} is no share of matches: give a number between 0 and 1")
        temperature, bias = read_calibration(self.workdir, self.step)
        return match_probability(self.score(texts, images), temperature, bias + logit(prior))

    def explain(self, text: str, image, method: str = "gradient"):
        """What each word and each patch contributes to the score of `text` with `image`: `fbjax.inference.explain`."""
        from fbjax.inference.explain import explain

        return explain(self, text, image, method)

    def caption(self, images: Sequence, beams: int = BEAMS) -> list[str]:
        """A text for each image, by beam search with so many `beams`; 1: greedy. Needs a run with the task caption."""
        images = listed(images, "images")
        if not images:
            return []
        kind = beams, min(len(images), self._rows)
        if kind not in self._captioners:
            self._captioners[kind] = Captioner(self.run, self.mesh, beams, self.run.patches, kind[1])
        captioner = self._captioners[kind]
        batches = self._read_batches(images, np.arange(len(images)), captioner.batch_size)
        ids, _ = captioner.write(self.variables, batches)
        return [as_text(written_words(self.run.vocabulary, row)) for row in ids]

    @cached_property
    def _rows(self) -> int:
        return self.rows or (CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS)

    @cached_property
    def _embedder(self) -> Embedder:
        return make_embedder(self.run, self.mesh, self.run.patches, self._rows)

    def _scorer(self, size: int | None) -> PairScorer | TokenScorer | Embedder:
        """A scorer of batches of `size`, None for the largest."""
        if size not in self._scorers:
            self._scorers[size] = make_scorer(self.run, self.mesh, self.run.patches, size)
        return self._scorers[size]

    def _scores(self, texts: list[str], images: list) -> np.ndarray:
        if not texts:
            return np.empty(0, np.float32)
        (texts, text_places), (images, image_places) = distinct(texts), distinct(images)
        if not self.run.reranks:
            of_texts, of_images = self._text_vectors(texts, self._embedder.embed_texts), self._image_vectors(images)
            return np.einsum("ne,ne->n", of_texts[text_places], of_images[image_places])
        ids, pairs = self._encode_texts(texts), np.stack([text_places, image_places], axis=1)
        embedded = self._of_images(images, self._scorer(self._rows))
        scorer, fitting = self._scorer(None), 1 << (len(pairs) - 1).bit_length()
        scorer = scorer if fitting >= scorer.batch_size else self._scorer(fitting)
        return scorer.score(self.variables, ids, embedded, pairs)

    def _vectors(self, texts: Any, images: Any) -> np.ndarray:
        if texts is None:
            return self._image_vectors(images)
        if images is None:
            return self._text_vectors(texts, self._embedder.embed_texts)
        read = partial(self._read_batches, images, batch_size=self._embedder.batch_size)
        return self._embedder.embed_products(self.variables, self._encode_texts(texts), read)

    def _text_vectors(self, texts: list[str], embed: Callable[[dict, np.ndarray], np.ndarray]) -> np.ndarray:
        """What `embed`, a method of the embedder, makes of texts or of queries, from the cache where it is there."""
        ids, maker = self._encode_texts(texts), embed.__name__.encode()
        keys = [content_key(maker + row.tobytes()) for row in ids]
        found = self._cache.look_up("text", keys, lambda rows: embed(self.variables, ids[rows]))
        return np.reshape(found, (len(ids), self._embedder.size))

    def _image_vectors(self, images: list) -> np.ndarray:
        return np.reshape(self._of_images(images, self._embedder), (len(images), self._embedder.size))

    def _of_images(self, images: list, by: PairScorer | TokenScorer | Embedder) -> np.ndarray:
        """What `by` makes of images, from the cache where it is there: [N, ..]."""
        maker = type(by).__name__.encode()  # a run may have both: vectors, and what is scored with a text
        keys = []
        for image in images:
            with _named(image):
                keys.append(content_key(maker + encoded(image)))

        def compute(rows: np.ndarray) -> np.ndarray:
            return np.asarray(by.embed_images(self.variables, self._read_batches(images, rows, by.batch_size)))

        return np.array(self._cache.look_up("image", keys, compute), np.float32)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        """Framed piece ids [N, T]. Says which words the model does not know."""
        for line in () if self.quiet else unknown_words(self.run, texts):
            say(line)
        tokens = self.run.config.model.text_tokens
        return np.array([self.encode_text(text) for text in texts], np.int32).reshape(len(texts), tokens)

    def _read_batches(self, images: list, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`images` of `rows` in batches, uint8 [batch_size, S, S, 3]; a batch reads a repeated image once."""
        for start in range(0, len(rows), batch_size):
            distinct, places = np.unique(rows[start : start + batch_size], return_inverse=True)
            yield np.stack([self.read_image(images[row]) for row in distinct])[places]

    def encode_text(self, text: str) -> np.ndarray:
        """Framed piece ids [T], computed as in prepared records."""
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}")
        ids = self.run.vocabulary.encode([clean_text(text)], self.run.config.model.text_tokens)[0]
        if (ids != PAD_ID).sum() <= 2:  # [CLS] and [SEP]
            raise ValueError(f"text {text[:100]!r} has no words")
        return ids

    def read_image(self, image) -> np.ndarray:
        """uint8 [S, S, 3], computed as in prepared records.

        A run that reads data.arrays needs no TensorFlow here either: its pictures are decoded by `read_pixels`.
        """
        size, fit = self.run.config.patches.image_size, self.run.config.patches.fit
        if self.run.config.data.feature_size:
            raise ValueError("this run reads ready-made features (data.feature_size), not pictures")
        if self.run.config.data.arrays:
            return read_pixels(image, size, fit)
        from fbjax.data.records.pipeline import decode_image

        with _named(image):
            return decode_image(normalise_image(encoded(image), size), size, fit)


@contextlib.contextmanager
def _named(image) -> Iterator[None]:
    """Names the image in what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{image if isinstance(image, str | Path) else 'image'}: {error}") from None
