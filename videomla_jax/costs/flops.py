"""Floating-point operations of a program, counted in its trace.

XLA's own cost analysis counts the body of a loop once, which is wrong by the
number of layers here; a trace says how often a scan runs. Products and
convolutions are counted, with two operations per multiply-add. A custom kernel
hides its operations, so programs are traced as for a CPU, where attention is
plain XLA.
"""

from collections.abc import Callable
import contextlib
import functools
import math

import jax
from jax.extend import core
from jaxtyping import PyTree

from videomla_jax import sharding

# Parameters of an equation that hold the program it calls.
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")


def traced_for_cpu() -> contextlib.AbstractContextManager[object]:
  """Returns a context in which kernels are chosen as on a single CPU."""
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
  function: Callable[..., PyTree],
  *args: PyTree,
  trips: float | int = 1,
  scope: str = "",
) -> float:
  """Counts the operations of `function(*args)`, over the whole batch.

  Args:
    function: Anything that JAX can trace.
    *args: Arguments of the function, real or abstract.
    trips: Mean number of rounds of loops whose end is not known before they
      run, such as the calls before a random exit.
    scope: A name of `jax.named_scope`: only operations within it are counted,
      those of their gradients included. Empty counts all.
  """
  args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with traced_for_cpu():
    program = jax.make_jaxpr(function)(*args)
  return count(program.jaxpr, trips=trips, scope=scope)


def count(
  program: core.Jaxpr, *, trips: float | int = 1, scope: str = ""
) -> float:
  """Counts the operations of a traced program, see `of`."""
  return math.fsum(_equation(e, trips, scope) for e in program.eqns)


def _equation(equation: core.JaxprEqn, trips: float | int, scope: str) -> float:
  """Counts the operations of an equation and of the programs it calls."""
  name, params = equation.primitive.name, equation.params
  if scope in str(equation.source_info.name_stack):
    scope = ""  # what it calls is within the scope, too
  if name in ("dot_general", "conv_general_dilated"):
    one = _dot if name == "dot_general" else _convolution
    return 0.0 if scope else one(equation)
  inside = functools.partial(count, trips=trips, scope=scope)
  if name == "scan":
    return params["length"] * inside(params["jaxpr"].jaxpr)
  if name == "cond":  # the branch that costs most
    return max(inside(b.jaxpr) for b in params["branches"])
  rounds = trips if name == "while" else 1
  return rounds * math.fsum(
    inside(getattr(params[key], "jaxpr", params[key]))
    for key in _PROGRAMS
    if params.get(key) is not None
  )


def _dot(equation: core.JaxprEqn) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = _shape(equation.invars[0])
  depth = math.prod(left[i] for i in contracted)
  return 2.0 * math.prod(_shape(equation.outvars[0])) * depth


def _convolution(equation: core.JaxprEqn) -> float:
  kernel = _shape(equation.invars[1])
  out_channels = equation.params["dimension_numbers"].rhs_spec[0]
  depth = math.prod(kernel) / kernel[out_channels]
  return 2.0 * math.prod(_shape(equation.outvars[0])) * depth


def _shape(x: core.Var | core.Literal) -> tuple[int, ...]:
  return x.aval.shape  # type: ignore[attr-defined]
