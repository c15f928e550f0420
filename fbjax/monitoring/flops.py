"""FLOPs that a train step needs: counted from what the losses compute, before anything is compiled.

Counted are products of matrices and convolutions, 2 M N K each: once forward and, for each operand that depends on a
parameter, once back, nothing recomputed, as in PaLM's model FLOPs utilisation (Chowdhery et al. 2022, appendix B). What
a method does besides is not counted: further pull-backs for the weights of Eq. 6, rematerialisation, the optimiser. Nor
are softmax, LayerNorm and GELU, 1 to 2 % of what XLA counts (configs/catalogue_paper.py, configs/my_catalogue.py).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from fbjax.data.batches.batch import Batch
from fbjax.tasks.objective import Pretraining


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What steps have to do: model FLOPs by the tokens that texts are padded to, and how often they read a product."""

    flops: Mapping[int, float]
    readings: int  # of each text and image: in the true pair, the mismatched one, the towers
    num_patches: int  # image tokens of a global batch, each time

    def tokens(self, num_pieces: float) -> float:
        """Tokens that the encoder reads in a step on texts of `num_pieces` pieces in all, padding left out."""
        return self.readings * (num_pieces + self.num_patches)


def step_work(objective: Pretraining, params: Any, frozen: Any, batches: Iterable[Batch]) -> StepWork:
    """Of steps on batches like `batches`, arrays or their shapes; only their text lengths may differ."""
    batches = list(batches)
    flops = {batch.ids.shape[1]: step_flops(objective, params, frozen, batch) for batch in batches}
    pairs = 2 if "tia" in objective.tasks else bool({"mlm", "mpm"} & set(objective.tasks))
    num_patches = len(batches[0].ids) * objective.patches.num_patches if batches else 0
    return StepWork(flops, pairs + ("itc" in objective.tasks), num_patches)


def step_flops(objective: Pretraining, params: Any, frozen: Any, batch: Batch) -> float:
    """Model FLOPs of a step on a global batch; arrays or their shapes will do."""
    shape = dataclasses.replace(objective.model.shape, attention="xla", remat="none")  # the same products, in the open
    objective = dataclasses.replace(objective, model=objective.model.clone(shape=shape))

    def losses(params, frozen, batch):
        return objective.losses(params, frozen, batch, jax.random.key(0))[0]

    return training_flops(losses, params, frozen, batch)


def training_flops(function, params: Any, *others: Any) -> float:
    """FLOPs of ``function(params, *others)`` and of its gradient with respect to `params`."""
    jaxpr = jax.make_jaxpr(function)(params, *others).jaxpr
    num_params = len(jax.tree.leaves(params))
    return float(_count(jaxpr, [i < num_params for i in range(len(jaxpr.invars))])[0])


def program_flops(program: ClosedJaxpr) -> int:
    """FLOPs of all that a traced program computes: of a step with every pull-back and what is recomputed."""
    return _count(program.jaxpr, [False] * len(program.jaxpr.invars))[0]


def _count(jaxpr: Jaxpr, learned: list[bool]) -> tuple[int, list[bool]]:
    """FLOPs, and which outputs depend on a parameter; `learned` says which inputs do."""
    depends = dict(zip(jaxpr.invars, learned, strict=True))

    def is_learned(variable) -> bool:
        return not isinstance(variable, Literal) and depends.get(variable, False)

    total = 0
    for equation in jaxpr.eqns:
        inputs = [is_learned(variable) for variable in equation.invars]
        learns = any(inputs) and equation.primitive.name != "stop_gradient"
        outputs = [learns and jnp.issubdtype(variable.aval.dtype, jnp.inexact) for variable in equation.outvars]
        if products := _product_flops(equation):
            total += products * (1 + sum(inputs))
        elif parts := _parts(equation):
            counts = [_count(part, _inputs_of(part, equation, inputs)) for part in parts]
            total += max(flops for flops, _ in counts) * equation.params.get("length", 1)  # of branches the longest
            if len(parts) == 1 and "length" not in equation.params and len(counts[0][1]) == len(outputs):
                outputs = counts[0][1]  # of a call
        depends.update(zip(equation.outvars, outputs, strict=True))
    return total, [is_learned(variable) for variable in jaxpr.outvars]


def _product_flops(equation) -> int:
    """Of one matrix product or convolution forward, 0 of anything else."""
    size = equation.outvars[0].aval.size if equation.outvars else 0
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            return 2 * size * math.prod(left[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            return 2 * size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
    return 0


def _parts(equation) -> list[Jaxpr]:
    """The programs inside an equation: of a call, a loop's body, a condition's branches."""
    values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, ClosedJaxpr | Jaxpr)]


def _inputs_of(part: Jaxpr, equation, inputs: list[bool]) -> list[bool]:
    """Which inputs of `part` depend on a parameter: as in its equation; in a loop, where results come back, all."""
    if equation.primitive.name == "cond":
        return inputs[1:]
    one_by_one = "length" not in equation.params and len(inputs) == len(part.invars)
    return inputs if one_by_one else [any(inputs)] * len(part.invars)
