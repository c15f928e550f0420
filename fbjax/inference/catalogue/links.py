"""Which words of a catalogue's texts go to which patches of their images, by a run that aligns them.

Kept in the workdir of the run whose masks they guide: it goes on with the same links, wherever the other run went.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fbjax.core.console import progress, say
from fbjax.core.paths import as_path, atomic_write
from fbjax.data.batches.split import Split
from fbjax.inference.explain.alignment import aligned
from fbjax.inference.explain.pair import NO_WORD, Pair
from fbjax.model.fashionbert import FashionBert
from fbjax.parallel.distributed import barrier, is_first
from fbjax.parallel.mesh import pad_rows
from fbjax.runs.feature_cache import features_of, image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun, newest_step
from fbjax.runs.run import Run, other_data
from fbjax.tasks.alignment.guide import NO_LINK, image_tokens

SETTING, FILE = "train.guided_masks", "links.npz"
BATCH = 64


def check_guide(run: Run, workdir: str | Path, mesh: Mesh) -> LoadedRun | None:
    """The run that guides the masks of `run`; None without one, and where its links are in `workdir` already.

    Raises FileNotFoundError or ValueError, before long work, where it cannot.
    """
    config, named = run.config, run.config.train.guided_masks
    if not named or (as_path(workdir) / FILE).is_file():
        return None
    loaded = LoadedRun.load(named, newest_step(named), mesh)
    theirs, found = loaded.run, []
    if not any(task.aligns_words for task in theirs.model.tasks):
        found.append("has no task that aligns words with patches (name a run that has tpa among its tasks)")
    if theirs.config.patches.scales:
        found.append(f"has patches of several scales, {theirs.config.patches.scales} (name a run of one grid)")
    if theirs.vocabulary.fingerprint != run.vocabulary.fingerprint:
        found.append("has another vocabulary: its words are other pieces (train one with this run's model.vocabulary)")
    if theirs.config.model.text_tokens != config.model.text_tokens:
        found.append(
            f"reads texts of {theirs.config.model.text_tokens} tokens, and this run of {config.model.text_tokens} "
            "(train one with the same model.text_tokens)"
        )
    if theirs.config.patches.fit != config.patches.fit:
        found.append(
            f"reads pictures by patches.fit {theirs.config.patches.fit!r}, and this run by {config.patches.fit!r}: "
            "their patches lie elsewhere (train one with the same fit)"
        )
    if found:
        raise ValueError(f"{SETTING} {named} {', and '.join(found)}")
    return loaded


def mask_links(
    loaded: LoadedRun | None, run: Run, records: Split, rows: np.ndarray, workdir: str | Path
) -> np.ndarray | None:
    """int16 [N, T, K]: the image tokens that each text token of `records` goes to, see `fbjax.tasks.alignment.guide`.

    None without a guide. Of products that are not of `rows` there are no links. `loaded`: from `check_guide`. Raises
    ValueError where these are not the products that the guide was trained on, or that the links were made of.
    """
    named, path = run.config.train.guided_masks, as_path(workdir) / FILE
    if not named:
        return None
    if loaded is not None:
        if {"products", "ids", "texts"} & {*other_data(named, records)}:
            raise ValueError(f"{SETTING} {named} was trained on another table (train one on this one)")
        links = np.full((len(records), run.config.model.text_tokens), NO_LINK, np.int16)
        links[rows] = word_links(loaded, records, rows)
        if is_first():
            _write(path, links=links, side=_side(loaded.run), **_about(run, records))
        pieces = np.minimum(records.num_pieces[rows], links.shape[1] - 2).sum()
        share = (links[rows] != NO_LINK).sum() / pieces
        say(f"masks are guided by {named}, step {loaded.step}: {share:.0%} of the text pieces go to a patch")
        barrier("links made")
    return image_tokens(*_read(path, run, records), run.model.spec)


def word_links(loaded: LoadedRun, records: Split, rows: np.ndarray) -> np.ndarray:
    """int16 [len(rows), T]: the patch that takes most of each text token's word, or `NO_LINK`.

    A word has a link where its mean cosine with what it goes to is at least the mean of its text's words.
    """
    run, given = loaded.run, features_of(loaded.run, records) is not None
    ids, words = text_inputs(run, records, rows), np.full((len(rows), run.config.model.text_tokens), NO_WORD, np.int32)
    for row, (_, numbers) in zip(words, records.pieces(rows), strict=True):
        kept = numbers[: len(row) - 2]
        row[1 : 1 + len(kept)] = kept
    found = np.empty(words.shape, np.int16)
    network = (lambda images: images) if given else jax.jit(partial(run.patches.apply, loaded.variables["patches"]))
    batches = image_inputs(run, records, rows, BATCH)
    for number, images in enumerate(progress(batches, -(-len(rows) // BATCH), f"links, batches of {BATCH}")):
        part = slice(number * BATCH, number * BATCH + len(images))
        texts, numbers = (jnp.asarray(pad_rows(x[part], BATCH)) for x in (ids, words))
        pair = Pair(texts, numbers, network(pad_rows(images, BATCH)))
        found[part] = np.asarray(_links(run.model, loaded.variables["fashionbert"], pair))[: len(images)]
    return found


@partial(jax.jit, static_argnums=0)
def _links(model: FashionBert, params: dict, pair: Pair) -> jax.Array:
    """int32 [N, T] of pairs."""
    cost, plan, _ = aligned(model, params, pair)
    pieces_of = (pair.words[:, None] == jnp.arange(pair.words.shape[1])[:, None]).astype(jnp.float32)  # [N, W, T]
    shares, agreement = (jnp.einsum("nwt,ntp->nwp", pieces_of, x) for x in (plan, (1 - cost) * plan))
    mass = shares.sum(axis=-1)
    cosine, is_word = agreement.sum(axis=-1) / jnp.maximum(mass, 1e-12), mass > 0
    mean = (cosine * is_word).sum(axis=-1) / jnp.maximum(is_word.sum(axis=-1), 1)
    links = jnp.where(is_word & (cosine >= mean[:, None]), shares.argmax(axis=-1), NO_LINK)
    return jnp.where(pair.words == NO_WORD, NO_LINK, jnp.take_along_axis(links, jnp.maximum(pair.words, 0), axis=1))


def _side(run: Run) -> int:
    """Cells a side of the grid that a run aligns words with."""
    return round((run.model.spec.num_patches - run.model.spec.first_patch) ** 0.5)


def _about(run: Run, records: Split) -> dict[str, str]:
    """What links depend on beside the run that made them."""
    ids, texts = (records.digests[name] for name in ("ids", "texts"))
    return {"table": f"{ids}{texts}", "vocabulary": run.vocabulary.fingerprint}


def _write(path: Path, **arrays: Any) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with atomic_write(path) as file:
        file.write_bytes(content.getvalue())


def _read(path: Path, run: Run, records: Split) -> tuple[np.ndarray, int]:
    """The links and the side of their grid. Raises ValueError where they are of other texts than this run reads."""
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        there = dict(arrays)
    differing = [name for name, value in _about(run, records).items() if str(there[name]) != value]
    if there["links"].shape != (shape := (len(records), run.config.model.text_tokens)):
        differing.append(f"shape, {list(there['links'].shape)} in place of {list(shape)}")
    if differing:
        raise ValueError(
            f"{path} holds links of another {' and '.join(differing)} (delete it: it is made anew by {SETTING})"
        )
    return there["links"], int(there["side"])
