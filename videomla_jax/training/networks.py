"""The networks of a stage: where they come from and whether they may.

A stage starts from what the stage before it wrote. Folders say what made them,
so a wrong order is refused before anything is loaded.
"""

import dataclasses
import os
from typing import Any

from flax import nnx
import jax

from videomla_jax.models import released
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world as world_lib
from videomla_jax.storage import model_folder
from videomla_jax.training import inputs

# What made a folder -> how to make one.
ORIGINS = {
  "release": "convert a release: python -m videomla_jax.convert",
  "conversion": "convert a dense model: convert --to=latent",
  "pretraining": "train --config=configs/pretraining.py",
  "teacher_forcing": "train --config=configs/teacher_forcing.py",
  "consistency": "train --config=configs/consistency.py",
  "dmd": "train --config=configs/dmd.py",
}


def origin(about: dict[str, Any]) -> str:
  """What made a model folder, from its config: a key of `ORIGINS`."""
  training = about.get("training")
  if training:
    return str(training.get("stage", "teacher_forcing"))
  return "conversion" if "init" in about else "release"


def check_origin(
  role: str, path: str | os.PathLike[str], allowed: tuple[str, ...]
) -> None:
  """Refuses a folder that another stage than expected has written.

  Args:
    role: Name in `networks` of the config.
    path: Model folder, or `shipped:NAME`.
    allowed: Keys of `ORIGINS`; the empty string allows no folder at all.

  Raises:
    ValueError: If the folder is missing, or of a stage that is not allowed.
  """
  names = [name for name in allowed if name]
  if not str(path):
    if "" in allowed:
      return
    raise ValueError(
      f"networks.{role}='' must name a model folder made by "
      f"{' or '.join(names)}; {ORIGINS[names[0]]}."
    )
  folder = model_lib.checkpoint_path(path)
  found = origin(model_folder.read_config(folder))
  if found not in names:
    raise ValueError(
      f"networks.{role}={str(path)!r} was made by {found!r} but this stage "
      f"starts from {' or '.join(names)}; {ORIGINS[names[0]]}."
    )


def load(
  path: str | os.PathLike[str], config: Any, *, frozen: bool = False
) -> nnx.Module:
  """Loads a network for training: a small video model, or a bare DiT.

  Args:
    path: Model folder, or `shipped:NAME`.
    config: Training config; its `network` replaces fields of a bare DiT.
    frozen: Not trained: kernels of a bare DiT may be kept in bfloat16.

  Raises:
    ValueError: If the folder is damaged or of another architecture.
  """
  folder = model_lib.checkpoint_path(path)
  if "model" in model_folder.read_config(folder):
    return model_lib.load(folder)
  return released.load(
    folder, "wan_dit", half_weights=frozen, **config.network.to_dict()
  )


def check_build(config: Any) -> None:
  """Refuses a network that cannot start from random weights.

  Raises:
    ValueError: If it is not a small one, or the sizes are unknown.
  """
  _small_config(config).network  # noqa: B018  Refuses sizes and kinds.
  if config.data.kind != "moving_digits":
    raise ValueError(
      f"networks.model='' starts from random weights, but data.kind="
      f"{config.data.kind!r} is for a released model; name its folder "
      f"({ORIGINS['release']})."
    )


def build(config: Any) -> model_lib.VideoModel:
  """A small video model with random weights."""
  sizes = _small_config(config)
  # One program; a hundred small ones take twice as long to compile.
  make = lambda: model_lib.VideoModel(sizes, rngs=nnx.Rngs(config.seed))
  return jax.jit(make)()


def _small_config(config: Any) -> model_lib.VideoModelConfig:
  """Of the small world's frames."""
  world = world_lib.World()
  latent = world.frame_size // 4  # a codec block is 4 pixels
  return model_lib.VideoModelConfig(
    size=config.model.size,
    kind=config.model.kind,
    d_c=config.model.d_c or None,
    d_rope=config.model.d_rope or None,
    vocabulary=prompts.vocabulary_size(),
    latent_height=latent,
    latent_width=latent,
    fps=float(world.fps),
    shift=config.diffusion.shift,
    window=window_lib.Window(**config.window),
  )


def prepare(model: nnx.Module, config: Any) -> nnx.Module:
  """The model as this stage trains it: its window and schedule.

  Raises:
    ValueError: If the model is not of the kind the config asks for.
  """
  attention = inputs.dit(model).config.attention
  wanted = config.model
  if attention.kind != wanted.kind:
    raise ValueError(
      f"networks.model has {attention.kind} attention but model.kind="
      f"{wanted.kind!r}; name the other folder or change model.kind."
    )
  for name in ("d_c", "d_rope") if attention.kind == "latent" else ():
    size = getattr(attention, name)
    if wanted[name] and size != wanted[name]:
      raise ValueError(
        f"networks.model has {name}={size} but model.{name}={wanted[name]}; "
        "convert again with that size, or leave it 0."
      )
  if isinstance(model, model_lib.VideoModel):
    changed = dataclasses.replace(
      model.config,
      shift=config.diffusion.shift,
      window=window_lib.Window(**config.window),
    )
    graph, state = nnx.split(model)
    model = nnx.merge(graph, state)
    model.config = changed
  return model


def save(path: str | os.PathLike[str], model: nnx.Module, **about: Any) -> None:
  """Writes what a stage hands on, with what made it."""
  if isinstance(model, model_lib.VideoModel):
    model_lib.save(path, model, **about)
  else:
    released.save(path, model, **about)
