"""Leaves of a training state, as Orbax stores them and as they come back.

Orbax knows no random keys, and on a CPU it reads the very buffers that the next
step donates.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from videomla_jax.storage import tree_names

Leaf = Any  # a number or an array, real or abstract; JAX has no type for both


def unflatten_like(tree: PyTree, flat: dict[str, jax.Array]) -> PyTree:
  """Builds a pytree like `tree` from flat arrays, with random keys wrapped.

  Args:
    tree: Arrays, real or abstract.
    flat: Restored arrays by name.
  """
  leaves = [
    jax.random.wrap_key_data(flat[name], impl=str(jax.random.key_impl(like)))
    if _is_key(like) and isinstance(like, jax.Array)
    else _wrap_abstract_key(flat[name], like)
    for name, like in tree_names.flat_tree(tree).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _wrap_abstract_key(value: jax.Array, like: Leaf) -> jax.Array:
  """Wraps key data if `like` is an abstract key; returns others as they are."""
  if not _is_key(like):
    return value
  # JAX has no public way from the type of a key to the name of its generator.
  return jax.random.wrap_key_data(value, impl=like.dtype._impl.name)


def _is_key(x: Leaf) -> bool:
  """Tells whether a leaf is a typed random key."""
  dtype = getattr(x, "dtype", None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def saveable(x: Leaf) -> jax.Array | np.ndarray:
  """Turns a leaf into what Orbax stores, and protects it from donation."""
  if _is_key(x):
    x = jax.random.key_data(x)
  if not isinstance(x, jax.Array):
    return np.array(x)
  # On CPU the background writer would read the very buffer that the next
  # train step, which donates its state, writes into.
  on_cpu = next(iter(x.devices())).platform == "cpu"
  return jnp.copy(x) if on_cpu else x


def abstract(x: Leaf) -> jax.ShapeDtypeStruct:
  """Describes a leaf that is to be restored, with a sharding in any case."""
  sharding = getattr(x, "sharding", None)
  if _is_key(x):
    x = jax.eval_shape(jax.random.key_data, x)
    sharding = None
  elif not hasattr(x, "shape"):
    x = np.asarray(x)
  if sharding is None:
    # Without one Orbax would ask for the devices that the array was saved from,
    # which a restore may not have.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
