"""Networks with random weights, made on the device: what they cost is real."""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from videomla_jax.models import released


def make[Network: nnx.Module](
  build: Callable[[], Network], *, halve: bool = False
) -> Network:
  """Returns a network whose outputs neither vanish nor overflow.

  Args:
    build: Makes the network; only its shapes are used.
    halve: Whether kernels are in bfloat16, as for inference.
  """
  abstract = nnx.eval_shape(build)
  if halve:
    released.halve(abstract)
  return jax.jit(lambda: filled(abstract))()


def filled[Tree: PyTree](abstract: Tree, seed: int = 0) -> Tree:
  """Draws every array of a tree of shapes.

  Args:
    abstract: Shapes and dtypes.
    seed: Seed of the numbers.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
  bits = jax.random.key_data(jax.random.key(seed))

  def draw(
    key: Array, index: int, path: tuple[Any, ...], x: jax.ShapeDtypeStruct
  ) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return jnp.zeros(x.shape, x.dtype)
    normal = jax.random.normal(jax.random.fold_in(key, index), x.shape)
    name = jax.tree_util.keystr(path)
    if "kernel" in name:
      # All but the outputs is what a product or a convolution sums over; the
      # first axis of stacked layers is not, which makes them a little smaller.
      normal /= math.sqrt(math.prod(x.shape[:-1]))
    else:
      normal = 1 + 0.02 * normal if "gain" in name else 0.02 * normal
    return normal.astype(x.dtype)

  drawn = []
  for index, (path, x) in enumerate(leaves):
    array = draw(jax.random.wrap_key_data(bits), index, path, x)
    # One after the other: all at once are held in float32 before any is
    # rounded, 15 GB for the 1.3B network.
    bits, array = jax.lax.optimization_barrier((bits, array))
    drawn.append(array)
  return jax.tree.unflatten(structure, drawn)
