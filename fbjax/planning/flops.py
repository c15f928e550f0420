"""FLOPs of a traced function's matrix products and convolutions, each loop's times its turns.

Counted before XLA, which counts a loop's body once. Of a step it is all devices' work together, with what is
recomputed (`model.remat`) and each task's pull-back.
"""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Two for each multiplication and addition; of a conditional the branch with more."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        kind, settings = equation.primitive.name, equation.params
        inner = [matmul_flops(j) for value in settings.values() for j in _jaxprs(value)]
        if kind == "dot_general":
            ((contracted, _), _) = settings["dimension_numbers"]
            left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(result) * math.prod(kernel) // kernel[settings["dimension_numbers"].rhs_spec[0]]
        elif kind == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (settings["length"] if kind == "scan" else 1)
    return total


def _jaxprs(value) -> list[Jaxpr | ClosedJaxpr]:
    """Those in one parameter of an equation."""
    listed = value if isinstance(value, tuple | list) else (value,)
    return [v for v in listed if isinstance(v, Jaxpr | ClosedJaxpr)]
