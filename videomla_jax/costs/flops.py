"""Floating-point operations of a program, counted in its trace.

XLA's own cost analysis counts the body of a loop once, which is wrong by the
number of layers here. A trace says how often a scan runs. Counted are products
and convolutions, two operations per multiply-add; a custom kernel hides its
own, so programs are traced as for a CPU, where attention is plain XLA.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core

from videomla_jax import sharding

# Parameters of an equation that hold the program it calls.
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")


def traced_for_cpu() -> Any:
  """Context in which kernels are chosen as on a CPU without a mesh."""
  cpu = jax.sharding.AbstractDevice("cpu", None, "cpu")
  ones = (1,) * len(sharding.AXES)
  mesh = jax.sharding.AbstractMesh(
    ones,
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(ones),
    abstract_device=cpu,
  )
  return jax.sharding.use_abstract_mesh(mesh)


def of(
  function: Callable[..., Any], *args: Any, trips: float | int = 1
) -> float:
  """Operations of `function(*args)`, over the whole batch.

  Args:
    function: Anything that JAX can trace.
    *args: Arrays or shapes.
    trips: Mean number of rounds of loops whose end is not known before, such
      as the calls before a random exit.
  """
  args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with traced_for_cpu():
    program = jax.make_jaxpr(function)(*args)
  return count(program.jaxpr, trips=trips)


def count(program: core.Jaxpr, *, trips: float | int = 1) -> float:
  """Operations of a program, see `of`."""
  return math.fsum(_equation(e, trips) for e in program.eqns)


def _equation(equation: Any, trips: float | int) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "scan":
    return params["length"] * count(params["jaxpr"].jaxpr, trips=trips)
  if name == "cond":  # the dearest branch
    return max(count(b.jaxpr, trips=trips) for b in params["branches"])
  rounds = trips if name == "while" else 1
  return rounds * math.fsum(
    count(getattr(params[key], "jaxpr", params[key]), trips=trips)
    for key in _PROGRAMS
    if params.get(key) is not None
  )


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[i] for i in contracted)
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation: Any) -> float:
  kernel = equation.invars[1].aval.shape
  out_channels = equation.params["dimension_numbers"].rhs_spec[0]
  depth = math.prod(kernel) / kernel[out_channels]
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
