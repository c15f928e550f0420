"""Linear baselines without a run, on the same records, image features and lists: CCA and VSE of the paper.

A text is the TF-IDF of its words and word pairs, reduced to the leading singular directions. An image is one feature
vector of the patch network: the whole-image token, or the mean over patches. Each family learns linear maps of both
into one space. The score of a pair is the cosine.
"""

import numpy as np

from fbjax.config.load import absolute
from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.core.paths import as_path
from fbjax.data.sources.cells import clean_text
from fbjax.evaluation.baselines.cca import fit_cca
from fbjax.evaluation.baselines.features import text_features, whole_images
from fbjax.evaluation.baselines.vse import fit_vse
from fbjax.evaluation.galleries import queries
from fbjax.evaluation.galleries.gallery import full_figures
from fbjax.evaluation.protocols import list_figures, read_request
from fbjax.runs.run import CONFIG, Run
from fbjax.runs.stored_evaluation import write_evaluation, write_gallery
from fbjax.runs.vocabulary import make_vocabulary

RIDGE, NUM_DIRECTIONS = 0.03, 1000  # shares of the mean variance; of the SVD of texts


def baseline(
    family: str,
    config: Config,
    *,
    candidates: str | None,
    relevant: str | None = None,
    protocols: tuple[str, ...],
    num_queries: int | None,
    seed: int,
    dims: int,
    ridge: float | None,
    num_directions: int | None,
    hardest: bool,
    workdir: str | None = None,
) -> dict:
    """The figures of "cca" or "vse" on a config's validation split, fitted on its training split.

    `dims` and `num_directions` (of the SVD) are upper bounds: a small catalogue has fewer. `workdir`: folder that keeps
    the evaluation, for `fbjax compare`; the model is not kept.
    """
    if workdir and (as_path(workdir) / CONFIG).exists():
        raise ValueError(f"--workdir {workdir} holds a run: choose another folder for the evaluation of {family}")
    if ridge is not None and family != "cca":
        raise ValueError(f"--ridge is for cca, not for {family}")
    ridge = RIDGE if ridge is None else ridge
    num_directions = NUM_DIRECTIONS if num_directions is None else num_directions
    wrong = {"--dims": dims < 1, "--svd": num_directions < 1, "--ridge": ridge <= 0, "--seed": seed < 0}
    if any(wrong.values()):
        raise ValueError(f"{', '.join(flag for flag in wrong if wrong[flag])}: give a number above 0 (a seed from 0)")
    if hardest and family != "vse":
        raise ValueError(f"--hardest is for vse, not for {family}")
    if "mixed" in protocols or config.train.half:
        raise ValueError(
            "protocol mixed and config.train.half are for runs, and a baseline is fitted on the whole training split: "
            "use fbjax train and fbjax evaluate --workdir W --protocol mixed"
        )
    lists = read_request(protocols, candidates, num_queries)
    query_file = queries.read_request(protocols, relevant, num_queries)
    run = Run.build(config, make_vocabulary(config, say), None)
    splits = run.splits()
    train, validation = splits["train"], splits["validation"]
    asked = query_file and queries.choose(query_file, validation.ids, lambda text: bool(clean_text(text)))
    images, own_images = whole_images(run, train), whole_images(run, validation)
    say(f"texts: TF-IDF and its {num_directions} leading directions")
    strings, own_strings = (records.strings(np.arange(len(records))) for records in (train, validation))
    own_strings += [clean_text(text) for text in asked.texts] if asked else []
    texts, own_texts = text_features(strings, own_strings, num_directions, seed)
    say(f"fitting {family} on {len(train):,} products, text {texts.shape[1]}, image {images.shape[1]} dimensions")
    if family == "cca":
        text_map, image_map = fit_cca(texts, images, dims, ridge)
    else:
        text_map, image_map = fit_vse(texts, images, train.groups, dims, hardest, seed)
    image_vectors = image_map(own_images)
    text_vectors, query_vectors = np.split(text_map(own_texts), [len(validation)])

    def cosines(pairs: np.ndarray) -> np.ndarray:
        parts = np.array_split(pairs, -(-len(pairs) // 4096))
        return np.concatenate([np.einsum("ne,ne->n", text_vectors[p[:, 0]], image_vectors[p[:, 1]]) for p in parts])

    if workdir:
        as_path(workdir).mkdir(parents=True, exist_ok=True)
    figures, rankings = list_figures(validation, protocols, lists, num_queries, cosines, scores_matches=False)
    if workdir and rankings:
        sources = {"data": None, "candidates": candidates and absolute(candidates)}
        write_evaluation(workdir, sources | {"figures": figures, "rankings": rankings})
    if "full" in protocols:
        codes = validation.text_codes()
        vectors = text_vectors, image_vectors
        figures["full"], ranks = full_figures(*vectors, validation.groups, num_queries, text_codes=codes)
        if workdir:
            write_gallery(
                workdir, {"ids_sha256": validation.digests["ids"], "figures": figures["full"], "ranks": ranks}
            )
    if asked:
        about = queries.about(asked, len(validation))
        figures["queries"] = queries.query_figures(query_vectors, image_vectors, asked) | about
    return figures
