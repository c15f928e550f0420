"""Captions of prepared products, and their figures."""

import numpy as np

from fbjax.data.batches.negatives import NegativeSampler
from fbjax.data.batches.split import Split
from fbjax.data.text.detokenise import as_text, written_words
from fbjax.evaluation.captions.captioning import captioning_figures
from fbjax.inference.captions.captioner import Captioner
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun


def captions_of(loaded: LoadedRun, captioner: Captioner, records: Split, rows: np.ndarray) -> dict:
    """{"records_sha256", "figures", "captions": [[id, text, caption, its score], ..]} of the products `rows`.

    The texts of others that figures are compared with are drawn, seed 0: of the same category where there is one, never
    of the same group.
    """
    uniform = np.random.default_rng(0).random(len(rows))
    others = NegativeSampler(records.categories, records.groups).draw(rows, uniform, np.zeros(len(rows), bool))
    inputs = image_inputs(loaded.run, records, rows, captioner.batch_size, "captions")
    ids, scores = captioner.write(loaded.variables, inputs)
    texts = ids, *(text_inputs(loaded.run, records, of) for of in (rows, others))
    captions, own, drawn = ([written_words(loaded.run.vocabulary, row) for row in of] for of in texts)
    figures = captioning_figures(captions, own, drawn) | {"beams": captioner.beams}
    told = zip(records.ids[rows].tolist(), map(as_text, own), map(as_text, captions), scores.tolist(), strict=True)
    return {"records_sha256": records.digest, "figures": figures, "captions": [list(row) for row in told]}
