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
  key = jax.random.key(seed)

  def draw(index: int, path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> Array:
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

  drawn = [draw(i, *pair) for i, pair in enumerate(leaves)]
  return jax.tree.unflatten(structure, drawn)
