"""The networks of a stage: loaded or made, checked, and handed on.

There are two kinds. A small video model is a DiT with its word encoder and
codec, and knows its world, window and schedule. A released network is the bare
DiT; prepared data hold what the other parts would compute.
"""

import dataclasses
import os

from flax import nnx
import jax

from videomla_jax.models import released
from videomla_jax.models import wan_config
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import worlds
from videomla_jax.storage import model_folder
from videomla_jax.training import inputs
from videomla_jax.training import origins
from videomla_jax.training import settings as settings_lib


def load(
  path: str | os.PathLike[str],
  settings: settings_lib.Training,
  *,
  frozen: bool = False,
) -> inputs.Network:
  """Loads a network for training: a small video model, or a bare DiT.

  Args:
    path: Model folder, or `shipped:NAME`.
    settings: Settings, whose `network` replaces fields of the DiT.
    frozen: Whether the network is only read, so that the kernels of a bare DiT
      may be kept in bfloat16.

  Raises:
    ValueError: If the folder is damaged or of another architecture, or holds
      weights in float8.
  """
  folder = model_lib.checkpoint_path(path)
  # Only the config of a small video model has this entry.
  if "model" in model_folder.read_config(folder):
    return model_lib.load(folder, **_changes(settings))
  _refuse_float8("network", settings.network.get("products"))
  model = released.load(
    folder, "wan_dit", half_weights=frozen, **_changes(settings)
  )
  _refuse_float8(f"checkpoint={str(path)!r}", model.config.products)
  return model


def _changes(settings: settings_lib.Training) -> dict[str, str | bool | int]:
  """Returns the fields of `WanConfig` that a config changes."""
  return {name: x for name, x in settings.network.items() if x != ""}


def _refuse_float8(what: str, products: object) -> None:
  """Refuses a network whose weights are rounded, which has no gradient."""
  if products:
    raise ValueError(
      f"{what} has products={products!r}, but float8 is for sampling only; "
      "train a network whose weights were not converted to it."
    )


def check_build(settings: settings_lib.Training) -> None:
  """Refuses a network that cannot start from random weights.

  Args:
    settings: Settings of the stage.

  Raises:
    ValueError: If it is not a small one, or the sizes are unknown.
  """
  if not isinstance(settings.data, settings_lib.SmallWorld):
    raise ValueError(
      f"networks.model='' starts from random weights, but data.kind="
      f"{settings.data.kind!r} is for a released model; name its folder "
      f"({origins.remedy('release')})."
    )
  _small_config(settings).network  # noqa: B018  Refuses sizes and kinds.


def build(settings: settings_lib.Training) -> model_lib.VideoModel:
  """Makes a small video model with random weights."""
  sizes, data = _small_config(settings), settings.data
  vae = None
  if isinstance(data, settings_lib.ColourWorld):
    vae = codecs.open_vae(data.vae)
  # This is one program: a hundred small ones take twice as long to compile.
  make = lambda: model_lib.VideoModel(
    sizes, rngs=nnx.Rngs(settings.seed), codec=vae, **_changes(settings)
  )
  return jax.jit(make)()


def _small_config(
  settings: settings_lib.Training,
) -> model_lib.VideoModelConfig:
  """Returns the config of a model for frames of a small world."""
  world, model = worlds.WORLDS[settings.data.kind], settings.model
  return model_lib.VideoModelConfig(
    size=model.size,
    kind=model.kind,
    d_c=model.d_c or None,
    d_rope=model.d_rope or None,
    rope_ladder=model.rope_ladder or "wan",
    world=settings.data.kind,
    vocabulary=world.vocabulary,
    latent_height=world.latent_shape[0],
    latent_width=world.latent_shape[1],
    fps=world.fps,
    shift=settings.diffusion.shift,
    window=settings.window,
  )


def prepare(
  model: inputs.Network, settings: settings_lib.Training
) -> inputs.Network:
  """Returns the model as this stage trains it, with its window and schedule.

  Args:
    model: The model that is trained.
    settings: Settings of the stage.

  Raises:
    ValueError: If the model is not of the kind that the config asks for.
  """
  attention = inputs.dit(model).config.attention
  wanted = settings.model
  if attention.kind != wanted.kind:
    raise ValueError(
      f"networks.model has {attention.kind} attention but model.kind="
      f"{wanted.kind!r}; name the other folder or change model.kind."
    )
  _check_size(model, wanted)
  # A dense network has no such sizes; 0 or "" takes what the folder holds.
  sizes = {n: getattr(wanted, n) for n in ("d_c", "d_rope", "rope_ladder")}
  for name, size in sizes.items() if attention.kind != "dense" else ():
    found = getattr(attention, name)
    if size and found != size:
      raise ValueError(
        f"networks.model has {name}={found!r} but model.{name}={size!r}; "
        f"convert again with that value, or leave it {type(size)()!r}."
      )
  if isinstance(model, model_lib.VideoModel):
    changed = dataclasses.replace(
      model.config, shift=settings.diffusion.shift, window=settings.window
    )
    # The copy shares the arrays; the model of the caller keeps its config.
    graph, state = nnx.split(model)
    model = nnx.merge(graph, state)
    model.config = changed
  return model


def _check_size(model: inputs.Network, wanted: settings_lib.Model) -> None:
  """Refuses a network of another size than `model.size`, if that is named.

  Args:
    model: The model that is trained.
    wanted: Group `model` of the config.

  Raises:
    ValueError: If the size is unknown, or the network has another one.
  """
  if not wanted.size:
    return
  if wanted.size not in wan_config.SIZES:
    raise ValueError(
      f"model.size={wanted.size!r} is unknown; use one of "
      f"{sorted(wan_config.SIZES)}, or '' for that of the network."
    )
  sizes = wan_config.SIZES[wanted.size](kind=wanted.kind)
  network = inputs.dit(model).config
  for name in ("width", "num_layers", "ffn_width", "channels"):
    found, expected = getattr(network, name), getattr(sizes, name)
    if found != expected:
      raise ValueError(
        f"networks.model has {name}={found} but model.size={wanted.size!r} "
        f"means {expected}; name the other folder or size, or leave it ''."
      )


def check_together(
  networks: dict[str, inputs.Network],
  data: settings_lib.Data,
  *,
  scores: tuple[str, ...],
) -> None:
  """Refuses networks that do not work on the same latents and prompts.

  Args:
    networks: All networks of a stage by role.
    data: What they are trained on.
    scores: Roles of the networks that must be dense; the others must have the
      attention of the trained model.

  Raises:
    ValueError: If channels, text or attention of two networks do not fit.
  """
  model = inputs.dit(networks["model"]).config
  for role, network in networks.items():
    _check_world(role, network, data)
  for role, network in networks.items():
    other = inputs.dit(network).config
    # Latents and embeddings go from one network to the other.
    for field in ("channels", "text_dim"):
      if getattr(other, field) != getattr(model, field):
        raise ValueError(
          f"networks.{role} has {field}={getattr(other, field)} but "
          f"networks.model has {getattr(model, field)}; they must share codec "
          "and text encoder."
        )
    wanted = "dense" if role in scores else model.attention.kind
    if other.attention.kind != wanted:
      raise ValueError(
        f"networks.{role} has {other.attention.kind} attention but must have "
        f"{wanted}; name another folder."
      )
  text_shape = (model.text_tokens, model.text_dim)
  wanted_text = text_shape  # small models encode words themselves
  if isinstance(data, settings_lib.PreparedClips):
    wanted_text = data.text_shape
  if text_shape != wanted_text:
    raise ValueError(
      f"networks.model reads {text_shape[0]} tokens of {text_shape[1]} "
      f"channels but data.text_shape={wanted_text}; use the model's own text "
      "encoder."
    )
  if model.channels != data.latent_shape[-1]:
    raise ValueError(
      f"networks.model takes {model.channels} channels but data.latent_shape="
      f"{data.latent_shape}; use the model's codec."
    )


def _check_world(
  role: str, network: inputs.Network, data: settings_lib.Data
) -> None:
  """Refuses a network of another world than the data, or of another VAE.

  Args:
    role: Name in `networks` of the config.
    network: The network.
    data: What it is trained on.

  Raises:
    ValueError: If they do not fit.
  """
  is_small = isinstance(data, settings_lib.SmallWorld)
  if not isinstance(network, model_lib.VideoModel) or not is_small:
    if isinstance(network, model_lib.VideoModel) != is_small:
      raise ValueError(
        f"networks.{role} is {'no' if is_small else 'a'} small model but "
        f"data.kind={data.kind!r}; name another folder or kind."
      )
    return
  if network.config.world != data.kind:
    raise ValueError(
      f"networks.{role} is a model of {network.config.world!r} but data.kind="
      f"{data.kind!r}; name another folder or kind."
    )
  if isinstance(data, settings_lib.ColourWorld):
    vae = codecs.open_vae(data.vae)
    if network.codec != vae:
      raise ValueError(
        f"networks.{role} has another VAE than data.vae={data.vae!r}; use that "
        f"of its folder, NAME/{codecs.VAE_FOLDER}."
      )


def save(
  path: str | os.PathLike[str], model: inputs.Network, **about: object
) -> None:
  """Writes what a stage hands on.

  Args:
    path: Model folder to write or replace.
    model: A small video model, or a bare DiT.
    **about: JSON values that say what made it.
  """
  if isinstance(model, model_lib.VideoModel):
    model_lib.save(path, model, **about)
  else:
    released.save(path, model, **about)
