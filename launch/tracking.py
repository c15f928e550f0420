"""How closely the cheap task weights follow the exact ones (Eq. 6), over batches at a checkpoint of any run.

    python launch/tracking.py runs/catalogue --step 1000 --batches 32

`held`: the weights of the last solve, every 16 batches, at unchanging parameters. `estimate`: from the gradients at the
encoder's output. `constant`: the exact weights' own mean over these batches, which no method knows beforehand: what is
left then is how much the exact weights jump from batch to batch. Errors are absolute, means over tasks and batches.

`gain`: by how much more than the last task's a task's squared gradient grows from the encoder's output to the
parameters, the median over batches; `estimate` takes it to be 1. `corrected` is `estimate` with these gains, likewise
known in hindsight only.
"""

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from fbjax.core.console import progress
from fbjax.data.batches.pipeline import train_batches
from fbjax.data.batches.sampler import Sampler
from fbjax.data.records.builder import build_records
from fbjax.data.records.source import Source
from fbjax.parallel.mesh import make_mesh, put_batch
from fbjax.runs.feature_cache import features_of
from fbjax.runs.run import MINED, Run
from fbjax.runs.trained import load_params
from fbjax.tasks.objective import Pretraining
from fbjax.training.task_weights import eq6, scale_norms, weighted_gradient

EVERY = 16


def weights_at(workdir: str, step: int, num_batches: int) -> tuple[np.ndarray, ...]:
    """[batches, K] each, on the batches that training took from `step` on: exact weights and the squared gradients by
    parameters behind them, estimated weights and the shares of squared gradients by outputs behind those."""
    run = Run.open(workdir)
    config, mesh = run.config, make_mesh(run.config.mesh)
    if step + num_batches > config.train.num_steps:
        raise SystemExit(f"the run ends {config.train.num_steps - step} batches after step {step} (lower --batches)")
    _, params = load_params(run, workdir, mesh, step)
    records = build_records(Source.from_config(config), run.vocabulary, config.data.prepared, progress)["train"]
    objective = Pretraining(run.model, run.feature_input, config.tasks, run.vocabulary.mask_id)
    sampler = Sampler.of(config, records, np.load(Path(workdir) / MINED) if config.tasks.mined else None)
    exact = replace(config.adaptive, method="gradient", every=1)

    @jax.jit
    def weigh(params, batch, key):
        key_masks, key_dropout = jax.random.split(key)
        examples = (objective.prepare(batch, key_masks), key_dropout)
        one_micro_batch = jax.tree.map(lambda x: x[None], examples)
        weighted = weighted_gradient(
            lambda examples: objective.branches(run.frozen, *examples), one_micro_batch, params, exact, objective.shared
        )
        slack = 1 / weighted.estimated  # Eq. 6 turned round: proportional to K - s_i, and s sums to domain K
        k = len(slack)
        scaled = k - slack * (k * k - k * exact.domain) / slack.sum()
        return weighted.weights, weighted.gradient_norms**2, weighted.estimated, scaled / (k * exact.domain)

    weights = []
    batches = train_batches(records, sampler, run.vocabulary, config, start=step, features=features_of(run, records))
    with contextlib.closing(batches):
        for number in range(num_batches):
            weights.append(jax.device_get(weigh(params, put_batch(next(batches), mesh), jax.random.key(number))))
    return tuple(np.array(weights).swapaxes(0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--batches", type=int, default=32)
    arguments = parser.parse_args()
    exact, squared, estimated, shares = weights_at(arguments.workdir, arguments.step, arguments.batches)
    held = exact[np.arange(len(exact)) // EVERY * EVERY]
    gain = np.median(squared / shares * (shares / squared)[:, -1:], axis=0)
    domain = Run.open(arguments.workdir).config.adaptive.domain
    corrected = np.array([eq6(scale_norms(of_batch, "share", domain)) for of_batch in shares * gain])
    ways = {"held": held, "estimate": estimated, "corrected": corrected, "constant": exact.mean(axis=0)[None]}
    print(f"exact     mean {exact.mean(axis=0).round(3)}  deviation between batches {exact.std(axis=0).round(3)}")
    for name, weights in ways.items():
        print(f"{name:9} mean {weights.mean(axis=0).round(3)}  error {np.abs(weights - exact).mean():.3f}")
    print(f"gain      {gain.round(2)}")


if __name__ == "__main__":
    main()
