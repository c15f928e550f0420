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

import jax
import numpy as np

from fbjax.data.batches.sampler import Sampler
from fbjax.parallel.mesh import put_batch
from fbjax.runs.feature_cache import features_of
from fbjax.runs.loaded import LoadedRun
from fbjax.runs.run import Run
from fbjax.training.task_weights import norm_shares, solve_weights, weighted_gradient

EVERY = 16


def weights_at(workdir: str, step: int, num_batches: int) -> tuple[np.ndarray, ...]:
    """[batches, K] each, on the batches that training took from `step` on: exact weights and the squared gradients by
    parameters behind them, estimated weights and the shares of squared gradients by outputs behind those."""
    loaded = LoadedRun.load(workdir, step)
    run, config, objective = loaded.run, loaded.run.config, loaded.run.objective
    if step + num_batches > config.train.num_steps:
        raise SystemExit(f"the run ends {config.train.num_steps - step} batches after step {step} (lower --batches)")
    records = loaded.records(split="train")
    sampler = Sampler.of(records, config.train, config.model, objective.random_share)
    exact = replace(config.adaptive, method="gradient", every=1)

    @jax.jit
    def weigh(params, batch, key):
        key_masks, key_dropout = jax.random.split(key)
        examples = (objective.draw_masks(batch, key_masks), key_dropout)
        one_micro_batch = jax.tree.map(lambda x: x[None], examples)
        weighted = weighted_gradient(
            lambda examples: objective.losses_of(run.frozen, *examples),
            one_micro_batch,
            params,
            exact,
            [task.weight for task in objective.tasks],
            objective.shared,
        )
        slack = 1 / weighted.estimated  # Eq. 6 turned round: proportional to K - s_i, and s sums to domain K
        k = len(slack)
        scaled = k - slack * (k * k - k * exact.domain) / slack.sum()
        return weighted.weights, weighted.gradient_norms**2, weighted.estimated, scaled / (k * exact.domain)

    weights = []
    batches = records.train_batches(
        sampler,
        run.vocabulary,
        num_steps=config.train.num_steps,
        image_size=config.patches.image_size,
        with_negatives=config.needs_negative,
        start=step,
        features=features_of(run, records),
    )
    with contextlib.closing(batches):
        for number in range(num_batches):
            weights.append(
                jax.device_get(weigh(loaded.params, put_batch(next(batches), loaded.mesh), jax.random.key(number)))
            )
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
    corrected = np.array([solve_weights(norm_shares(of_batch, domain)) for of_batch in shares * gain])
    ways = {"held": held, "estimate": estimated, "corrected": corrected, "constant": exact.mean(axis=0)[None]}
    print(f"exact     mean {exact.mean(axis=0).round(3)}  deviation between batches {exact.std(axis=0).round(3)}")
    for name, weights in ways.items():
        print(f"{name:9} mean {weights.mean(axis=0).round(3)}  error {np.abs(weights - exact).mean():.3f}")
    print(f"gain      {gain.round(2)}")


if __name__ == "__main__":
    main()
