"""Writes captions of pictures with a run that learned the task caption.

Each step encodes the picture and what is written anew, padded to a multiple of 16; keys and values of earlier positions
are not kept. So a caption is computed exactly as training read it, at the cost of up to T readings of a pair.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fbjax.data.text.wordpiece import PAD_ID
from fbjax.inference.captions.search import Found, beam_search
from fbjax.inference.embedder import batch_size
from fbjax.model.patch_features import PatchNetwork
from fbjax.parallel.mesh import by_example, pad_rows, put_batch, replicated

if TYPE_CHECKING:
    from fbjax.runs.run import Run

BEAMS = 3
CPU_SEQUENCES, ACCELERATOR_SEQUENCES = 32, 256  # a batch, beams included


class Captioner:
    """Captions with any parameters of one run: `variables` hold "fashionbert" and "patches"."""

    def __init__(
        self,
        run: "Run",
        mesh,
        beams: int = BEAMS,
        patches: PatchNetwork | None = None,
        rows: int | None = None,
    ):
        """`patches`: the network that reads the inputs (default: `run.feature_input`). `rows`: of a batch, at most.

        Raises ValueError where the run does not write captions, or `beams` is below 1.
        """
        model, vocabulary, network = run.model, run.vocabulary, patches or run.feature_input
        task = next((task for task in model.tasks if task.writes_captions), None)
        if task is None:
            raise ValueError("captions need a run that learned to write them: its tasks have no caption")
        if beams < 1:
            raise ValueError(f"--beams {beams}: take at least 1")
        self._mesh, self.beams, self.num_tokens = mesh, beams, run.config.model.text_tokens
        most = batch_size(mesh, None, -(-CPU_SEQUENCES // beams), -(-ACCELERATOR_SEQUENCES // beams))
        self.batch_size = min(most, batch_size(mesh, rows, most, most))
        never = jnp.array([PAD_ID, vocabulary.unk_id, vocabulary.cls_id, vocabulary.mask_id])

        def write(variables: Any, images: jax.Array) -> Found:
            apply = partial(model.apply, {"params": variables["fashionbert"]})
            image = apply(network.apply(variables["patches"], images), method="embed_image")
            image = jnp.repeat(image, beams, axis=0)

            def log_probabilities(ids: jax.Array, place: jax.Array) -> jax.Array:
                positions = jnp.full((len(ids), 1), place)
                hidden = apply(ids, image, positions, method="read_left_to_right")[:, 0]
                logits = apply(task.name, "caption_logits", hidden, method="run_head")
                return jax.nn.log_softmax(logits).at[:, never].set(-jnp.inf)

            sequences = self.num_tokens, vocabulary.cls_id, vocabulary.sep_id
            return beam_search(log_probabilities, len(images), beams, *sequences)

        self._write = jax.jit(write, in_shardings=(None, by_example(mesh)), out_shardings=replicated(mesh))

    def write(self, variables: Any, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Framed piece ids [N, T] int32 and scores [N] of batches of at most `batch_size` images or cached features.

        A score is the mean log probability of a piece.
        """
        ids, scores = [np.empty((0, self.num_tokens), np.int32)], [np.empty(0, np.float32)]
        for images in batches:
            found = self._write(variables, put_batch(pad_rows(images, self.batch_size), self._mesh))
            ids.append(np.asarray(found.ids)[: len(images)])
            scores.append(np.asarray(found.scores)[: len(images)])
        return np.concatenate(ids), np.concatenate(scores)
