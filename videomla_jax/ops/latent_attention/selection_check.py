"""Whether what the table of `selection` names can run, and is right.

Two questions are asked of a kernel before it is chosen, each once per process:

  lowers?   The call is traced and lowered on abstract arrays. A backend that is
            missing, of a wrong version or broken is thereby found in time to
            take another one.
  agrees?   A kernel without a record on this architecture is compiled, runs on
            a small input with holes, and is compared with `xla_chunked`. This
            also finds what fails in XLA's compiler. A device that is absent
            cannot be asked.

Both are asked in a thread of their own: the mesh and the trace in use belong to
the thread that asks, so that a program can be traced meanwhile.
"""

from collections.abc import Callable
import concurrent.futures
import functools
import math
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree
import numpy as np

from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import selection
from videomla_jax.ops.latent_attention import types

# Largest difference over largest number: bfloat16 rounds by 2^-8 a few times.
# The kernels on an H100 were within 4.3e-3, their gradients within 6e-3.
BOUND = 2e-2
_BLOCK = 64  # keys of a validity block of the small input
_ROWS = 72  # its queries: more than one tile on Hopper

Attend = Callable[..., Array]
Shapes = tuple[tuple[tuple[int, ...], np.dtype], ...]


class Candidate(NamedTuple):
  """An implementation of one problem, as a function that can be compared.

  Attributes:
    option: Form, implementation, and whether it has a record.
    run: Computes attention of the arguments.
    static: What `run` is given by name, as sorted pairs.
    truth: What it is compared with, of the same arguments in float32.
    gradient: Whether its gradient is asked for.
  """

  option: selection.Option
  run: Attend
  static: tuple[tuple[str, Any], ...]
  truth: Attend
  gradient: bool

  def program(self) -> Callable[..., PyTree]:
    """Returns what has to compile: the attention, perhaps with its gradient."""
    run = functools.partial(self.run, **dict(self.static))
    return with_gradient(run) if self.gradient else run


def with_gradient(run: Attend) -> Callable[..., PyTree]:
  """Returns a function of a value and of all its gradients."""

  def both(*args: PyTree) -> PyTree:
    out, pull = jax.vjp(run, *args)
    found = [x for x in jax.tree.leaves(pull(out)) if _is_float(x)]
    return out, found

  return both


def _is_float(x: Array | np.ndarray | jax.ShapeDtypeStruct) -> bool:
  """Tells whether an array is differentiated; flags and bytes are not."""
  return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize > 1


def _in_thread[Result](function: Callable[[], Result]) -> Result:
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(function).result()


def refusal(candidate: Candidate, args: PyTree) -> str | None:
  """Says in one sentence why a call cannot be computed this way.

  Args:
    candidate: What would compute it.
    args: Arguments of the call, concrete, traced or abstract.

  Returns:
    The reason, or None where nothing is known against it.
  """
  option = candidate.option
  if option.choice.implementation in selection.PLAIN:
    return None
  leaves, tree = jax.tree.flatten(args)
  shapes = tuple((x.shape, jnp.dtype(x.dtype)) for x in leaves)
  here = device.current()
  mesh = jax.sharding.get_abstract_mesh()
  absent = None if here.present else mesh.abstract_device
  reason = _lowers(candidate, tree, shapes, here, absent)
  if reason is None and here.present and not option.has_record:
    # Of the arrays of the call, their widths and dtypes are kept.
    narrow = tuple(((0 if d.name == "bool" else s[-1],), d) for s, d in shapes)
    reason = _agrees(candidate, tree, narrow, here)
  return reason


def _told(error: Exception) -> str:
  """Returns the first line of an error, and its kind where that says more."""
  first = (str(error) or repr(error)).splitlines()[0][:300]
  refused = isinstance(error, NotImplementedError)
  return first if refused else f"{type(error).__name__}: {first}"


def _abstract(tree: jax.tree_util.PyTreeDef, shapes: Shapes) -> PyTree:
  return jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*x) for x in shapes])


@functools.cache
def _lowers(
  candidate: Candidate,
  tree: jax.tree_util.PyTreeDef,
  shapes: Shapes,
  here: device.Device,
  absent: jax.sharding.AbstractDevice | None,
) -> str | None:
  """Traces and lowers a call; returns what went wrong.

  Args:
    candidate: What would compute it.
    tree: Structure of the arguments.
    shapes: Shape and dtype of each array.
    here: The device that is asked, since kernels differ by device.
    absent: The same device, if it is not in this machine.
  """

  def lower() -> None:
    traced = lambda: jax.jit(candidate.program()).trace(
      *_abstract(tree, shapes)
    )
    if absent is None:
      traced().lower()
      return
    mesh = jax.sharding.AbstractMesh(
      (1,),
      ("device",),
      axis_types=jax.sharding.AxisType.Auto,
      abstract_device=absent,
    )
    platform = "cuda" if here.platform == "gpu" else here.platform
    with jax.sharding.use_abstract_mesh(mesh):
      traced().lower(lowering_platforms=(platform,))

  # Backends fail by errors of many kinds, and any of them is a reason.
  try:
    _in_thread(lower)
  except Exception as error:
    return _told(error)
  return None


@functools.cache
def _agrees(
  candidate: Candidate,
  tree: jax.tree_util.PyTreeDef,
  narrow: Shapes,
  here: device.Device,
) -> str | None:
  """Runs a small call; returns what went wrong, after a warning.

  Args:
    candidate: What would compute the call.
    tree: Structure of the arguments.
    narrow: Last size and dtype of each array of the arguments.
    here: The device, which is in this machine.
  """

  def run() -> float:
    args = _abstract(tree, narrow)
    error = jax.jit(functools.partial(_difference, candidate, args))()
    return float(jax.device_get(error))

  try:
    error = _in_thread(run)
    if error <= BOUND:
      return None
    reason = (
      f"it is {error:.2g} away from xla_chunked on a small input; {BOUND:g} is "
      "allowed"
    )
  except Exception as error:
    reason = f"it fails on a small input: {_told(error)}"
  name, form = candidate.option.choice
  what = "the gradient of the " if candidate.gradient else "the "
  told = f"{what}{form} form by {name} is passed over on {here.kind}: {reason}"
  logging.warning("%s", told)
  return reason


def forget() -> None:
  """Forgets all answers, as after a backend was installed or replaced."""
  _lowers.cache_clear()
  _agrees.cache_clear()


def _difference(candidate: Candidate, args: PyTree) -> Float32[Array, ""]:
  """Compares a candidate with the truth on a small input, relatively."""
  small = small_input(args, stored=not candidate.gradient)
  truth = functools.partial(candidate.truth, **dict(candidate.static))
  if candidate.gradient:
    truth = with_gradient(truth)
  with jax.default_matmul_precision("highest"):
    expected = truth(*_wide(small))
  found = candidate.program()(*small)
  worst = jnp.zeros((), jnp.float32)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    away = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
    # What is not finite is as far away as can be.
    worst = jnp.maximum(worst, jnp.where(jnp.isfinite(away), away, jnp.inf))
  return worst


def _wide(args: PyTree) -> PyTree:
  """Returns the arguments in float32, eight bits dequantised."""
  is_keys = lambda x: isinstance(x, types.Keys)
  args = jax.tree.map(
    lambda x: x._replace(content=x.latents) if is_keys(x) else x,
    args,
    is_leaf=is_keys,
  )
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if _is_float(x) else x, args
  )


def small_input(args: PyTree, *, stored: bool = True) -> PyTree:
  """Draws a small input with holes, of the widths and dtypes of a call.

  Args:
    args: Arguments of latent or dense attention, of which only the last sizes
      and the dtypes are read.
    stored: Whether content in eight bits stays so.

  Returns:
    Arguments with two rows of the batch, two heads, and in each segment three
    blocks of keys of which one is empty.
  """
  seeds = iter(jax.random.split(jax.random.key(0), 64))

  def draw(like: Array | jax.ShapeDtypeStruct, *sizes: int) -> Array:
    shape = (2, *sizes, like.shape[-1])
    return jax.random.normal(next(seeds), shape).astype(like.dtype)

  # Row 0 lacks block 1, and row 1 lacks block 0.
  holes = jnp.arange(3)[None] != jnp.asarray([[1], [0]])
  keys = holes.shape[1] * _BLOCK
  if not isinstance(args[0], types.Queries):
    query, key, value, valid = args
    return (
      draw(query, _ROWS, 2),
      draw(key, keys, 2),
      draw(value, keys, 2),
      None if valid is None else holes,
    )
  queries, segments, up = args

  def segment(like: types.Keys) -> types.Keys:
    content = draw(
      jax.ShapeDtypeStruct(like.content.shape[-1:], like.rope.dtype), keys
    )
    rope = draw(like.rope, keys)
    if stored and isinstance(like.content, quantise.Quantised):
      dtype = like.content.values.dtype
      return types.Keys(quantise.quantise(content, dtype=dtype), rope, holes)
    return types.Keys(content, rope, holes)

  d_c = segments[0].content.shape[-1]

  def weight(like: Array | jax.ShapeDtypeStruct) -> Array:
    shape = (d_c, 2, like.shape[-1])
    drawn = jax.random.normal(next(seeds), shape) / math.sqrt(d_c)
    return drawn.astype(like.dtype)

  return (
    types.Queries(*(draw(q, _ROWS, 2) for q in queries)),
    tuple(segment(k) for k in segments),
    types.UpProjections(*(weight(w) for w in up)),
  )
