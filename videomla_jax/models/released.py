"""Parts of a converted release, each a model folder that says what it is.

`config.json` of a part holds `architecture`, a row of the table below, and
`config`, the sizes.
"""

import dataclasses
import os
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
  "wan_dit": (wan_config.WanConfig, wan.WanDiT),
  "wan_vae": (vae.VaeConfig, vae.WanVAE),
  "umt5": (umt5.Umt5Config, umt5.Umt5Encoder),
}


def load(
  path: str | os.PathLike[str],
  architecture: str,
  *,
  half_weights: bool = False,
  **changes: Any,
) -> Any:
  """Loads one part.

  Args:
    path: Its model folder.
    architecture: What it must be, a name in `ARCHITECTURES`.
    half_weights: Keep kernels that are used in bfloat16 in bfloat16 only,
      which halves their memory; not for training.
    **changes: Fields of the config to replace, such as `dtype`.

  Raises:
    ValueError: If the folder is missing, damaged or another architecture.
  """
  arrays, about = model_folder.load_model_state(path)
  found = about.get("architecture", "video model")
  if found != architecture:
    raise ValueError(
      f"checkpoint={str(path)!r} holds a {found!r} where a {architecture!r} is "
      "needed; give the folder that convert wrote for it."
    )
  config_type, module = ARCHITECTURES[architecture]
  config = dataclasses.replace(
    config_type.from_dict(about["config"]), **changes
  )
  model = nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0)))
  if half_weights:
    halve(model)
  model_folder.update_model(model, arrays)
  return model


def save(path: str | os.PathLike[str], model: nnx.Module, **about: Any) -> None:
  """Writes one part.

  Raises:
    ValueError: If the module is no part.
  """
  for architecture, (_, module) in ARCHITECTURES.items():
    if type(model) is module:
      config = model.config.to_dict()
      about |= dict(architecture=architecture, config=config)
      return model_folder.save_model(path, model, about, keep_dtypes=True)
  raise ValueError(
    f"model={type(model).__name__} is no part of a release; use one of "
    f"{sorted(ARCHITECTURES)}."
  )


def halve(model: nnx.Module) -> None:
  """Sets abstract kernels of bfloat16 products to bfloat16, in place."""
  for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.Linear) and module.dtype == jnp.bfloat16:
      shape = jax.ShapeDtypeStruct(module.kernel.shape, jnp.bfloat16)
      module.kernel.set_value(shape)
