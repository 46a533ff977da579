"""Rows of attention: each implementation, form, shape and direction."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import numpy as np

from videomla_jax.costs import attention_shapes
from videomla_jax.costs import gpus
from videomla_jax.measuring import row as row_lib
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types

FORMS: tuple[types.Form, ...] = ("expanded", "absorbed")
# A backward pass is 2.5 times the products of a forward pass, which runs, too.
_GRADIENT_WORK = 3.5
# The reference writes all scores: above this many it needs too much memory.
_MOST_SCORES = 2**30


def rows(
  *,
  shapes: Mapping[str, attention_shapes.Shape],
  full: Sequence[str],
  gradients: Sequence[str],
  implementations: Sequence[str],
) -> Iterator[row_lib.Row]:
  """Yields the rows of latent attention.

  Args:
    shapes: Calls by name, which are measured with holes.
    full: Names of those that are measured without holes, too.
    gradients: Names of those whose gradient is measured, with holes.
    implementations: Names in the table of `api`.
  """
  for (name, shape), holes in itertools.product(shapes.items(), (True, False)):
    if not holes and name not in full:
      continue
    with_gradient = holes and name in gradients
    directions = ("forward", "gradient") if with_gradient else ("forward",)
    for direction, form, implementation in itertools.product(
      directions, FORMS, implementations
    ):
      yield row_lib.Row(
        name="latent_attention",
        measure=functools.partial(
          _measure, shape, form, implementation, direction, holes
        ),
        shape=name,
        form=form,
        implementation=implementation,
        direction=direction,
        holes=holes,
      )


def dense_rows(
  *, sizes: Sequence[tuple[int, int]], heads: int, width: int
) -> Iterator[row_lib.Row]:
  """Yields the rows of dense layers and of attention to the text.

  Args:
    sizes: Pairs of a number of queries and a number of keys.
    heads: Heads N.
    width: Channels D of a head.
  """

  def measure(
    queries: int, keys: int, implementation: str
  ) -> list[row_lib.Figure]:
    q, k, v = (
      jax.random.normal(jax.random.key(i), (1, n, heads, width), jnp.bfloat16)
      for i, n in enumerate((queries, keys, keys))
    )
    attend = functools.partial(
      api.dense_attention,
      valid=None,
      scale=1 / math.sqrt(width),
      implementation=implementation,
    )
    took = row_lib.seconds(jax.jit(attend), q, k, v)
    return _figures(took, 4 * queries * keys * heads * width)

  names = [n for n in api.DENSE if n != "reference"]
  for (queries, keys), implementation in itertools.product(sizes, names):
    yield row_lib.Row(
      name="dense_attention",
      measure=functools.partial(measure, queries, keys, implementation),
      shape=f"{queries}x{keys}",
      implementation=implementation,
      direction="forward",
      holes=False,
    )


def _figures(took: float, flops: float | int) -> list[row_lib.Figure]:
  return [
    row_lib.Figure("", took * 1e6, "us"),
    row_lib.Figure("rate", flops / took / 1e12, "TFLOP/s"),
  ]


def draw(
  shape: attention_shapes.Shape, *, holes: bool, seed: int = 0
) -> tuple[types.Queries, tuple[types.Keys, ...], types.UpProjections]:
  """Draws the arguments of a call.

  Args:
    shape: The call.
    holes: Whether the middle frame of every segment is not valid.
    seed: Seed of the numbers.
  """
  rng = np.random.default_rng(seed)

  def one(x: jax.ShapeDtypeStruct) -> Array:
    if x.dtype == bool:
      valid = np.ones(x.shape, bool)
      if holes and x.shape[1] > 1:
        valid[:, x.shape[1] // 2] = False
      return jnp.asarray(valid)
    if x.dtype == jnp.int8:
      return jnp.asarray(rng.integers(-127, 128, x.shape), x.dtype)
    return jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)

  queries, keys, up = jax.tree.map(one, shape.arguments(jnp.bfloat16))
  # Products of unit variance, so that the softmax is neither flat nor a choice.
  up = jax.tree.map(lambda w: w / math.sqrt(w.shape[0]), up)
  return queries, keys, up


def _function(
  form: types.Form, implementation: str, direction: str
) -> Callable[..., PyTree]:
  """Returns attention, or the gradient of a sum over its values."""
  attend = functools.partial(
    api.latent_attention, form=form, implementation=implementation
  )
  if direction == "forward":
    return attend
  return gradient(attend)


def gradient(attend: Callable[..., Array]) -> Callable[..., PyTree]:
  """Returns the gradient by queries, latents, positional keys and weights.

  Args:
    attend: (queries, keys, up-projections) -> values.
  """

  def run(queries: Any, keys: Any, up: Any) -> PyTree:
    # Flags have no gradient, and latents in eight bits none either.
    parts = [(k.content, k.rope) for k in keys]

    def loss(queries: Any, parts: Any, up: Any) -> Array:
      pairs = zip(keys, parts, strict=True)
      given = [k._replace(content=c, rope=r) for k, (c, r) in pairs]
      out = attend(queries, given, up).astype(jnp.float32)
      # Every value has a weight of its own: equal ones would hide mistakes.
      weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32))
      return jnp.vdot(out.ravel(), weights)

    return jax.grad(loss, argnums=(0, 1, 2))(queries, parts, up)

  return run


def _measure(
  shape: attention_shapes.Shape,
  form: types.Form,
  implementation: str,
  direction: str,
  holes: bool,
) -> list[row_lib.Figure]:
  """Times one call, and compares it with the reference in float32."""
  args = draw(shape, holes=holes)
  run = jax.jit(_function(form, implementation, direction))
  flops = 2.0 * shape.sizes.multiply_adds(form) * shape.batch
  took = row_lib.seconds(run, *args)
  work = _GRADIENT_WORK if direction == "gradient" else 1
  figures = _figures(took, work * flops)
  least = _roofline_us(shape, form)
  if least and direction == "forward" and not holes:
    figures.append(row_lib.Figure("over_roofline", took * 1e6 / least, "ratio"))
  sizes = shape.sizes
  if sizes.queries * sizes.keys * sizes.heads <= _MOST_SCORES:
    figures += _errors(run, args, direction)
  return figures


def _roofline_us(
  shape: attention_shapes.Shape, form: types.Form
) -> float | None:
  """Returns the least time by the data sheet; None for unknown devices."""
  capability = int(device.current().capability)
  for target in gpus.TARGETS.values():
    if target.capability[0] == capability:
      sizes = shape.sizes
      least, _ = gpus.roofline(
        flops=2.0 * sizes.multiply_adds(form),
        bytes_moved=float(sum(sizes.num_bytes(form))),
        exps=float(sizes.queries * sizes.keys * sizes.heads),
        target=target,
      )
      return least * shape.batch
  return None


def _errors(
  run: Callable[..., PyTree], args: PyTree, direction: str
) -> list[row_lib.Figure]:
  """Compares with the reference in float32, and with a second call."""
  exact: Callable[..., PyTree] = functools.partial(
    reference.latent_attention, form="expanded"
  )
  if direction == "gradient":
    exact = gradient(exact)
  wide = jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, args
  )
  with jax.default_matmul_precision("highest"):
    expected = jax.jit(exact)(*wide)
  ours, again = run(*args), run(*args)
  errors, equal = [], True
  for a, b, c in zip(*map(jax.tree.leaves, (expected, ours, again))):
    if not jnp.issubdtype(a.dtype, jnp.floating):
      continue
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    size = max(float(np.linalg.norm(a)), 1e-30)
    errors.append(float(np.linalg.norm(a - b)) / size)
    equal &= bool((b == c).all())
  return [
    row_lib.Figure("error", max(errors), "relative error"),
    row_lib.Figure("repeats_equal", float(equal), "1 is yes"),
  ]
