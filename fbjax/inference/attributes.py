"""Probabilities of each value of the attributes that a run predicts, of prepared products."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.core.batching import mixed_batches
from fbjax.core.console import progress
from fbjax.data.batches.split import Split
from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.pair_scorer import BUCKET, PairScorer
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated
from fbjax.runs.feature_cache import image_inputs, text_inputs
from fbjax.runs.loaded import LoadedRun


def attribute_probabilities(loaded: LoadedRun, records: Split, rows: np.ndarray) -> list[np.ndarray]:
    """float32 [N, K] of each column, for the products `rows` [N] of `records`: what the task reads of them decides."""
    run, mesh, variables = loaded.run, loaded.mesh, loaded.variables
    model, patches = run.model, run.feature_input
    task = next(task for task in model.tasks if task.predicts_attributes)

    def predict(variables: Any, ids: jax.Array, images: jax.Array) -> list[jax.Array]:
        apply = partial(model.apply, {"params": variables["fashionbert"]})
        features = None if task.reads == "text" else patches.apply(variables["patches"], images)
        if task.reads == "pair":
            embedded = apply(ids, method="embed_text"), ids != PAD_ID, apply(features, method="embed_image")
            read = apply(*embedded, jnp.zeros((len(ids), 1), jnp.int32), method="encode_pair")[0][:, 0]
        else:
            read = apply(None if task.reads == "image" else ids, features, method="mean_alone")
        return [jax.nn.softmax(logits) for logits in apply(task.name, "attribute_logits", read, method="run_head")]

    size, across = PairScorer(model, patches, mesh).batch_size, by_example(mesh)
    predict = jax.jit(predict, in_shardings=(None, across, across), out_shardings=replicated(mesh))
    ids = text_inputs(run, records, rows)
    batches = mixed_batches((ids != PAD_ID).sum(axis=1), size, BUCKET, ids.shape[1])
    inputs = image_inputs(run, records, rows[np.concatenate([members for _, members in batches])], size)
    found = [np.empty((len(rows), number), np.float32) for number in model.spec.num_classes]
    for (length, members), images in zip(progress(batches, len(batches), "attributes"), inputs, strict=True):
        batch = put_batch((pad_rows(ids[members, :length], size), pad_rows(images, size)), mesh)
        for of_column, values in zip(found, predict(variables, *batch), strict=True):
            of_column[members] = np.asarray(values)[: len(members)]
    return found
