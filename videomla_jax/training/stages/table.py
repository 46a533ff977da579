"""The stages by name.

A stage is a module with

  TITLE, STARTS_FROM   a word for people; which folders its networks may be
  check(config)        refuses what cannot be trained, before anything runs
  loss or step         see `regression`; distribution matching has a step of its
                       own and nothing that held-out data could be compared with
"""

from collections.abc import Callable
import functools
from typing import Any

from videomla_jax.training import batches
from videomla_jax.training import inputs
from videomla_jax.training import long_tuning
from videomla_jax.training import optim
from videomla_jax.training.stages import consistency
from videomla_jax.training.stages import dmd
from videomla_jax.training.stages import pretraining
from videomla_jax.training.stages import regression
from videomla_jax.training.stages import teacher_forcing

STAGES: dict[str, Any] = {
  "pretraining": pretraining,
  "teacher_forcing": teacher_forcing,
  "consistency": consistency,
  "dmd": dmd,
}


def get(config: Any) -> Any:
  """The stage of a config.

  Raises:
    ValueError: If there is no such stage.
  """
  if config.stage not in STAGES:
    raise ValueError(
      f"stage={config.stage!r} is unknown; use one of {', '.join(STAGES)}."
    )
  return STAGES[config.stage]


def step(config: Any) -> Callable[..., tuple[Any, optim.Metrics]]:
  """The step `(state, batch, key, *, frozen, variant) -> (state, metrics)`."""
  stage = get(config)
  if stage is dmd:
    return functools.partial(stage.step, config=config)
  return functools.partial(regression.step, stage.loss, config=config)


def held_out_loss(config: Any) -> Callable[..., Any] | None:
  """The loss `(model, batch, key, *, frozen)` of held-out data, if any."""
  stage = get(config)
  if stage is dmd:
    return None
  return functools.partial(regression.held_out_loss, stage.loss, config=config)


def variant(config: Any, step: int) -> int | None:
  """Static argument of a step: programs that alternate.

  Videos of stage 3 may begin or go on. In other stages every so many steps the
  first chunk is one given frame, as when a picture is continued.
  """
  if config.stage == "dmd":
    return (
      long_tuning.variant(config, step) if long_tuning.is_on(config) else None
    )
  every = config.diffusion.get("first_frame_every", 0)
  return 1 if every and step % every == 0 else None


def mean_trips(config: Any) -> float:
  """Mean number of calls before the random exit of a self-rollout."""
  if config.stage != "dmd":
    return 1.0
  return (len(config.diffusion.timesteps) - 1) / 2


def trained(config: Any) -> tuple[str, ...]:
  """Roles of the networks that are trained; the others are frozen."""
  return ("model", "critic") if config.stage == "dmd" else ("model",)


def check_networks(networks: dict[str, Any], config: Any) -> None:
  """Refuses networks that do not work on the same latents and prompts.

  Raises:
    ValueError: If they differ.
  """
  own = inputs.dit(networks["model"]).config
  for role, model in networks.items():
    other = inputs.dit(model).config
    for field in ("channels", "text_dim"):
      if getattr(other, field) != getattr(own, field):
        raise ValueError(
          f"networks.{role} has {field}={getattr(other, field)} but "
          f"networks.model has {getattr(own, field)}; they must share codec "
          "and text encoder."
        )
    wanted = "dense" if role in ("real", "critic") else own.attention.kind
    if other.attention.kind != wanted:
      raise ValueError(
        f"networks.{role} has {other.attention.kind} attention but must have "
        f"{wanted}; name another folder."
      )
  text_shape = (own.text_tokens, own.text_dim)
  wanted_text = tuple(config.data.get("text_shape", text_shape))
  if text_shape != wanted_text:
    raise ValueError(
      f"networks.model reads {text_shape[0]} tokens of {text_shape[1]} "
      f"channels but data.text_shape={wanted_text}; use the model's own text "
      "encoder."
    )
  if own.channels != config.data.latent_shape[-1]:
    raise ValueError(
      f"networks.model takes {own.channels} channels but data.latent_shape="
      f"{tuple(config.data.latent_shape)}; use the model's codec."
    )


def skipped(state: Any) -> Any:
  """Updates left out so far."""
  if isinstance(state, dmd.DmdState):
    return state.student.skipped + state.critic.skipped
  return state.skipped


def init(networks: dict[str, Any], config: Any) -> Any:
  """The state of a stage before its first step, from its networks."""
  state = optim.init(networks["model"], config.optim)
  if config.stage != "dmd":
    return state
  critic = optim.init(networks["critic"], config.optim, averaged=False)
  stream = None
  if long_tuning.is_on(config):
    prompts = batches.abstract_prompts(config)
    stream = long_tuning.empty(networks["model"], prompts, config)
  return dmd.DmdState(state, critic, stream)
