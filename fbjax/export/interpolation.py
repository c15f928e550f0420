"""``fbjax interpolate``: the weights between a run and one that was fine-tuned from it (WiSE-FT, Wortsman et al. 2022,
arXiv 2109.01903).

``theta = (1 - share) before + share tuned``. Of a fine-tuned model this often keeps what it learned and what it had
known before.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.traverse_util
import numpy as np

from fbjax.core.atomic_folder import check_fresh, fresh_folder
from fbjax.export.source_model import one_device
from fbjax.parallel.mesh import on_host
from fbjax.runs.loaded import LoadedRun, newest_step, write_params
from fbjax.runs.run import DATA, Run

READ_ALIKE = ("num_heads", "cross_attention", "text_tokens")  # settings of a model that shapes of arrays do not tell


def interpolate(
    before: str | Path, tuned: str | Path, shares: Sequence[float], out: str | Path, say: Callable[[str], None]
) -> dict[float, Path]:
    """{share of `tuned`: workdir} of runs with the weights in between; several lie in a folder each, under `out`.

    Of `before` the last checkpoint counts, with which a run starts that names it in train.start_from; of `tuned` the
    best. A workdir has the config of `tuned`, whose train.start_from names both, and a checkpoint of step 0. Raises
    ValueError where the runs do not fit together, OSError where `out` is not new or empty.
    """
    check_fresh("--out", out)
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"--share {share:g}: give a share of the fine-tuned run from 0 to 1")
    mesh = one_device()
    end = LoadedRun.load(tuned, mesh=mesh)
    start = LoadedRun.load(before, newest_step(before), mesh, like=end.run)
    # a patch network that only the fine-tuned run trains is in the other one too
    first, last = ({name: loaded.variables[name] for name in end.params} for loaded in (start, end))
    _check_fit(start, end, first, last)
    folders = {share: Path(out) / f"{share}" if len(shares) > 1 else Path(out) for share in shares}
    noted = end.workdir / DATA
    with fresh_folder("--out", out) as partial:
        for share, folder in folders.items():
            inside = partial / folder.relative_to(out)
            write_params(_between(start, end), between(on_host(first), on_host(last), share), inside, mesh)
            if noted.is_file():
                (inside / DATA).write_bytes(noted.read_bytes())
            say(f"{folder}: {1 - share:g} of {before}, step {start.step}, and {share:g} of {tuned}, step {end.step}")
    return folders


def between(before: dict, tuned: dict, share: float) -> dict:
    """``(1 - share) before + share tuned`` of trees of arrays: at 0 and 1 bit for bit one of them, and so is every
    value that both have."""
    if share in (0, 1):
        return tuned if share else before
    flat, other = (flax.traverse_util.flatten_dict(tree) for tree in (before, tuned))
    mixed = {
        path: ((1 - share) * np.asarray(x, np.float64) + share * np.asarray(other[path], np.float64)).astype(x.dtype)
        for path, x in flat.items()
    }
    return flax.traverse_util.unflatten_dict(mixed)


def _between(start: LoadedRun, end: LoadedRun) -> Run:
    """The fine-tuned run, beginning with the weights of both."""
    origin = "+".join(str(loaded.workdir.absolute()) for loaded in (start, end))
    train = dataclasses.replace(end.run.config.train, start_from=origin)
    return dataclasses.replace(end.run, config=dataclasses.replace(end.run.config, train=train))


def _check_fit(start: LoadedRun, end: LoadedRun, first: dict, last: dict) -> None:
    """Raises ValueError, with what differs, where the runs have other parameters or read their inputs differently."""
    ours, theirs = (flax.traverse_util.flatten_dict(params, sep="/") for params in (first | start.params, last))
    differing = [
        f"{name} is {_shape(ours, name)} in {start.workdir}, {_shape(theirs, name)} in {end.workdir}"
        for name in sorted(ours.keys() | theirs.keys())
        if _shape(ours, name) != _shape(theirs, name)
    ]
    for name in READ_ALIKE:
        one, other = (getattr(loaded.run.config.model, name) for loaded in (start, end))
        if one != other:
            differing.append(f"model.{name} is {one!r} in {start.workdir}, {other!r} in {end.workdir}")
    ngrams = start.run.ngrams, end.run.ngrams
    if ngrams[0].keys() != ngrams[1].keys() or any(not np.array_equal(x, ngrams[1][k]) for k, x in ngrams[0].items()):
        differing.append("their n-grams are others")
    if differing:
        more = [f".. and {len(differing) - 5} more"] * (len(differing) > 5)
        raise ValueError("\n  ".join(["these runs have no weights in between:", *differing[:5], *more]))


def _shape(arrays: dict, name: str) -> tuple[int, ...] | str:
    return arrays[name].shape if name in arrays else "not there"
