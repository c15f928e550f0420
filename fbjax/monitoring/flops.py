"""Counts the FLOPs of a train step from the traced losses, without compiling.

Matrix products and convolutions count 2 M N K each: once forward and, for each operand that depends on a parameter,
once backward, as in PaLM's model FLOPs utilisation (Chowdhery et al. 2022, appendix B). Not counted are further
pull-backs for the weights of Eq. 6, rematerialisation, augmentation and the optimiser; nor softmax, LayerNorm and GELU,
which are 1 to 2 % of XLA's count (configs/catalogue_paper.py, configs/my_fashionbert.py).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from fbjax.config.schema import Augment
from fbjax.data.batches.batch import Batch
from fbjax.model.lora import merged
from fbjax.tasks.objective import Objective


@dataclasses.dataclass(frozen=True)
class StepWork:
    """The work of steps: model FLOPs by padded text length, and the number of readings of each product."""

    flops: Mapping[int, float]
    readings: int  # of each text and image: in the true pair, the mismatched one, the towers
    num_patches: int  # image tokens of a global batch, each time

    def tokens(self, num_pieces: float) -> float:
        """Tokens that the encoder reads in a step on texts with `num_pieces` pieces together, without padding."""
        return self.readings * (num_pieces + self.num_patches)


def step_work(
    objective: Objective, params: Any, frozen: Any, batches: Iterable[Batch], base: dict | None = None
) -> StepWork:
    """The work of steps on `batches`, arrays or shapes that differ only in text length. `base`: of the train state."""
    batches = list(batches)
    flops = {batch.ids.shape[1]: step_flops(objective, params, frozen, batch, base) for batch in batches}
    num_patches = len(batches[0].ids) * objective.patches.num_patches if batches else 0
    return StepWork(flops, objective.num_readings, num_patches)


def step_flops(objective: Objective, params: Any, frozen: Any, batch: Batch, base: dict | None = None) -> float:
    """Model FLOPs of a step on a global batch of arrays or shapes."""
    plain = dataclasses.replace(objective.model.config, attention="xla", remat="none")  # makes all products visible
    objective = dataclasses.replace(objective, model=objective.model.clone(config=plain), augment=Augment())

    def losses(params, frozen, batch, base):
        return objective.losses(merged(base, params), frozen, batch, jax.random.key(0))[0]

    return training_flops(losses, params, frozen, batch, base or {})


def training_flops(function, params: Any, *others: Any) -> float:
    """FLOPs of ``function(params, *others)`` and of its gradient with respect to `params`."""
    jaxpr = jax.make_jaxpr(function)(params, *others).jaxpr
    num_params = len(jax.tree.leaves(params))
    return float(_count(jaxpr, [i < num_params for i in range(len(jaxpr.invars))])[0])


def program_flops(program: ClosedJaxpr) -> int:
    """FLOPs of a traced program, such as a whole step with all pull-backs and recomputation."""
    return _count(program.jaxpr, [False] * len(program.jaxpr.invars))[0]


def _count(jaxpr: Jaxpr, learned: list[bool]) -> tuple[int, list[bool]]:
    """FLOPs, and which outputs depend on a parameter; `learned` marks the inputs that do."""
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
    """Forward FLOPs of a matrix product or convolution; 0 for other equations."""
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
    """Which inputs of `part` depend on a parameter: those of its equation; in a loop all, since results return."""
    if equation.primitive.name == "cond":
        return inputs[1:]
    one_by_one = "length" not in equation.params and len(inputs) == len(part.invars)
    return inputs if one_by_one else [any(inputs)] * len(part.invars)
