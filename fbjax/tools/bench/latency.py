"""Requests as a search service sees them: one query text against some products, one after another, each waited for."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from fbjax.config.schema import Config
from fbjax.inference.embedder import Embedder
from fbjax.inference.pair_scorer import PairScorer
from fbjax.parallel.mesh import replicated
from fbjax.tools.bench import workload as workloads
from fbjax.tools.bench.workload import Candidate, Workload

DEPTHS = (12, 6, 2)  # layers
MANY = 32  # products
QUERY_PIECES = (6, 7, 8, 9, 10, 10, 11, 12, 14, 18)  # deciles of the titles of the catalogue in docs/lab/winning.md


class Request(NamedTuple):
    """A kind of request: how deep the encoder is, and what of the work is left out."""

    layers: int
    products: int  # that the query is scored against
    padded: bool  # texts to model.text_tokens, else to the next bucket
    cached: bool  # what the products alone need is there already, else it starts from their pixels

    def about(self) -> dict:
        """Itself in plain values, with its name and the names of those that it is compared with."""
        padded, deepest = self._replace(padded=True), self._replace(layers=max(self.layers, *DEPTHS))
        return self._asdict() | {"name": str(self), "padded_like": str(padded), "deepest_like": str(deepest)}

    def __str__(self) -> str:
        several = "products" if self.products > 1 else "product"
        how = f"{'padded' if self.padded else 'unpadded'}, {'cached' if self.cached else 'not cached'}"
        return f"{self.layers} layers, {self.products} {several}, {how}"


def requests_of(config: Config) -> Iterator[Request]:
    """The kinds of request that are timed; a model without an encoder has one depth."""
    depths = DEPTHS if config.reads_encoder else (config.model.num_layers,)
    for layers, (products, cached) in itertools.product(depths, ((1, False), (1, True), (MANY, True))):
        yield from (Request(layers, products, padded, cached) for padded in (True, False))


def candidate(workload: Workload, request: Request) -> Candidate:
    """Answers one request a launch, which gives its scores. The programs of all lengths are compiled here."""
    config, network = workload.config, workload.network
    workload = workload.with_model(num_layers=request.layers)
    bucket = {"bucket": config.model.text_tokens} if request.padded else {}
    if any(task.scores_pairs for task in config.tasks.values()):
        scorer = PairScorer(workload.objective.model, network, workload.mesh, request.products, **bucket)
    else:
        scorer = Embedder(workload.objective.model, network, workload.mesh, 1, **bucket)
    params = workloads.random_parameters(workloads.parameter_shapes(workload), 0.02)
    variables = {"fashionbert": params, "patches": network.params, "ngrams": workload.ngrams}
    variables = jax.device_put(variables, replicated(workload.mesh))
    rng = np.random.default_rng(0)
    queries = workloads.texts(rng, *_lengths(config), workloads.vocabulary_size(config))
    images = _images(rng, request.products, config, workload)
    batches = np.split(images, range(scorer.batch_size, len(images), scorer.batch_size))
    embedded = scorer.embed_images(variables, batches) if request.cached else None
    pairs = np.stack([np.zeros(request.products, int), np.arange(request.products)], axis=1)

    def answer(query: int) -> np.ndarray:
        found = scorer.embed_images(variables, batches) if embedded is None else embedded
        return scorer.score(variables, queries[query : query + 1], found, pairs)

    for query in range(len(queries)):
        answer(query)
    turns = itertools.cycle(range(len(queries)))
    return Candidate(lambda: answer(next(turns)), lambda: None)


def _lengths(config: Config) -> tuple[np.ndarray, int]:
    """Pieces of each query, and the columns that hold them."""
    return np.minimum(QUERY_PIECES, config.model.text_tokens), config.model.text_tokens


def _images(rng, count: int, config: Config, workload: Workload) -> np.ndarray:
    if config.data.feature_size:
        return workloads.features(rng, (count,), workload.network)
    size = config.patches.image_size
    return rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8)
