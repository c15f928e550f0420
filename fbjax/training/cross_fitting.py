"""Towers that have not seen a run's products, whose logits the run builds on (`tasks.itc.towers`)."""

import numpy as np
from jax.sharding import Mesh

from fbjax.core.console import say
from fbjax.data.batches.split import Split
from fbjax.inference.catalogue.embed_catalogue import embed_records
from fbjax.inference.embedder import make_embedder
from fbjax.runs.halves import check_table, trained_half
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run

SETTING = "tasks.itc.towers"


def check_towers(run: Run, mesh: Mesh) -> LoadedRun | None:
    """The run whose towers the config names, None where it names none.

    Raises ValueError, before long work, unless these make vectors and have seen the other half of the groups alone.
    """
    config = run.config
    if not config.towers:
        return None
    towers = LoadedRun.newest(config.towers, run, mesh)
    if not towers.run.has_embedder:
        raise ValueError(f"{SETTING} {config.towers} makes no vectors: name a run that has itc among its tasks")
    if trained_half(towers.run.config, config.towers, SETTING) == config.train.half:
        raise ValueError(
            f"{SETTING} {config.towers} was trained on the {config.train.half} half of the groups, as this run would "
            "be: set train.half to the other one"
        )
    return towers


def tower_vectors(towers: LoadedRun | None, records: Split, rows: np.ndarray) -> np.ndarray | None:
    """float32 [N, 2, E]: text and image of the products `rows` of `records`, 0 elsewhere; a text times an image is a
    logit of these towers. None without towers.
    """
    if towers is None:
        return None
    check_table(towers.workdir, records, SETTING)
    embedder = make_embedder(towers.run, towers.mesh)
    texts, images = (embed_records(towers, embedder, records, what, rows) for what in ("text", "image"))
    vectors = np.zeros((len(records), 2, texts.shape[1]), np.float32)
    vectors[rows] = np.stack([embedder.scale(towers.variables) * texts, images], axis=1)
    say(f"built on the towers of {towers.workdir}, step {towers.step}: vectors of {len(rows):,} products")
    return vectors
