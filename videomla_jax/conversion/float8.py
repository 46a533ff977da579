"""Weights in float8 as a type that `convert` stores."""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.ops import quantise
from videomla_jax.storage import model_folder
from videomla_jax.storage import model_writer
from videomla_jax.storage import params_skeleton
from videomla_jax.storage import tree_names

# Products that round inputs in another way read the same weights.
PRODUCTS = "float8_per_token"

_WEIGHT, _SCALE, _KERNEL = "/weight", "/scale", "/kernel"
_quantise = jax.jit(quantise.quantise_kernel)


def check(dtype: str, parts: Collection[str]) -> None:
  """Refuses float8 for networks that are not held in it.

  Args:
    dtype: The type that was asked for.
    parts: Components or architectures that are converted.

  Raises:
    ValueError: If it is float8, and no DiT is among them.
  """
  if dtype == quantise.FLOAT8 and not {"dit", "wan_dit"} & {*parts}:
    raise ValueError(
      f"--dtype={dtype} is for the blocks of a DiT, but there are only "
      f"{sorted(parts)}; leave it out, or use bfloat16."
    )


def refuse_stored(config: released.Config, path: str) -> None:
  """Refuses a folder whose weights were rounded to float8 before.

  Args:
    config: Sizes of the network in the folder.
    path: The folder.

  Raises:
    ValueError: If its weights are in float8.
  """
  if isinstance(config, wan_config.WanConfig) and config.products:
    raise ValueError(
      f"source={path!r} holds weights in float8, which can only be sampled; "
      "give what they were converted from."
    )


def changed(
  config: released.Config,
  specs: Mapping[str, params_skeleton.Parameter],
) -> tuple[wan_config.WanConfig, dict[str, params_skeleton.Parameter]]:
  """Returns config and parameters of a DiT whose blocks are in float8.

  Args:
    config: Sizes of the network.
    specs: Its parameters by name.
  """
  assert isinstance(config, wan_config.WanConfig)
  config = dataclasses.replace(config, products=PRODUCTS)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  arrays = tree_names.flat_dict(model_folder.model_arrays(model))
  found = dict(specs)
  for name in [n for n in arrays if n.endswith(_WEIGHT)]:
    layer = name.removesuffix(_WEIGHT)
    del found[layer + _KERNEL]
    for part in (_WEIGHT, _SCALE):
      leaf = arrays[layer + part]
      found[layer + part] = params_skeleton.Parameter(
        leaf.shape, np.dtype(leaf.dtype), True
      )
  return config, found


class Float8Writer:
  """Rounds the kernels that a model holds in float8 while they are written."""

  def __init__(
    self,
    writer: model_writer.ModelWriter,
    specs: Mapping[str, params_skeleton.Parameter],
  ) -> None:
    """Notes where parameters go.

    Args:
      writer: Writes the folder.
      specs: Parameters of the folder by name.
    """
    self._writer, self._specs = writer, specs

  def write(
    self, name: str, value: np.ndarray, *, block: int | None = None
  ) -> None:
    """Writes a parameter, or the two that a kernel in float8 consists of.

    Args:
      name: Name of the parameter before it is rounded.
      value: The parameter, or one block of it.
      block: Index on the leading axis of a stacked parameter.

    Raises:
      ValueError: If a number is not finite.
    """
    if name in self._specs:
      self._writer.write(name, value, block=block)
      return
    # Rounding would turn an infinite scale into numbers that look right.
    model_folder.check_finite(name, value)
    layer = name.removesuffix(_KERNEL)
    stored = _quantise(jnp.asarray(value, jnp.float32))
    for part, array in ((_WEIGHT, stored.values), (_SCALE, stored.scale)):
      self._writer.write(layer + part, np.asarray(array), block=block)

  def add_file(self, name: str, text: str) -> None:
    """Adds a text file to the folder.

    Args:
      name: Name of the file.
      text: What it says.
    """
    self._writer.add_file(name, text)
