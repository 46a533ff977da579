"""Refuses keys of a config that nothing reads beside its other values.

A config file leaves such a key at None (or 0, or empty), so that a config shows
what is used. Any other value would look as if it had changed the run. Which
keys these are follows from the stage, the kind of data and a few switches.
"""

from typing import NamedTuple

from videomla_jax.models import window as window_lib
from videomla_jax.small_world import worlds
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib

_SAMPLES = tuple(
  f"samples.{x}" for x in ("every", "seconds", "num_steps", "guidance")
)
# Key that holds None where nothing reads it, and a number anywhere else -> the
# key that decides.
_NUMBERS = {
  "optim.final_fraction": "optim.schedule",
  "eval.every": "eval.batches",
  **dict.fromkeys(_SAMPLES, "samples.videos"),
}


class Unused(NamedTuple):
  """Why a key is not read.

  Attributes:
    why: Under which circumstances, as it follows "has no effect".
    unset: The value that leaves it unset.
  """

  why: str
  unset: object = None


def keys(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> dict[str, Unused]:
  """Returns the keys that nothing reads, by name.

  Args:
    stage: The stage.
    settings: Settings of the stage.
  """
  found = _of_samples(stage, settings) | _of_stage(stage, settings)
  if settings.optim.schedule == "constant":
    found["optim.final_fraction"] = Unused("with optim.schedule='constant'")
  if settings.optim.ema_decay == 0:
    found["optim.ema_warmup"] = Unused("with optim.ema_decay=0", False)
  if settings.model.kind == "dense":
    why = "with model.kind='dense', which has no latent attention"
    found |= {f"model.{x}": Unused(why, 0) for x in ("d_c", "d_rope")}
    found["model.rope_ladder"] = Unused(why, "")
  if isinstance(settings.data, settings_lib.SmallWorld):
    kind = settings.data.kind
    why = f"with data.kind={kind!r}, whose small models have their own"
    if not worlds.WORLDS[kind].halves:
      found |= {f"network.{x}": Unused(why) for x in settings.network}
    found["samples.codec"] = Unused(why, "")
    found["samples.fps"] = Unused(why, 0.0)
  if settings.window.sink == "first":
    found["window.sink_decay"] = Unused(
      "with window.sink='first', which keeps frames as they are",
      window_lib.Window().sink_decay,
    )
  return found


def _of_samples(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> dict[str, Unused]:
  """Returns the keys of samples that are not read, by name."""
  unset: dict[str, object] = {
    **dict.fromkeys(_SAMPLES),
    **{"samples.codec": "", "samples.fps": 0.0},
    **dict.fromkeys(stage.sampler_keys, ()),
    **dict.fromkeys(stage_lib.EULER_KEYS),
  }
  if not settings.samples.videos:
    why = "with samples.videos=0"
    return {name: Unused(why, value) for name, value in unset.items()}
  found = {}
  if not stage.causal:
    found["samples.seconds"] = Unused(
      f"in {stage.title}, whose samples are as long as a clip"
    )
  for name in set(stage_lib.EULER_KEYS) - set(stage.sampler_keys):
    found[name] = Unused(
      f"in {stage.title}, whose student has steps of its own and no guidance"
    )
  return found


def _of_stage(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> dict[str, Unused]:
  """Returns the keys that a stage does not read, by name."""
  found = {}
  if stage.held_out_loss is None:
    why = f"in {stage.title}, which has no loss on held-out clips"
    found["eval.batches"] = Unused(why, 0)
    found["eval.every"] = Unused(why)
  elif not settings.eval.batches:
    found["eval.every"] = Unused("with eval.batches=0")
  if not stage.causal:
    # A window that keeps every frame.
    why = f"in {stage.title}, in which every frame sees every frame"
    found["window.sink_frames"] = Unused(why, 0)
    found["window.local_frames"] = Unused(why)
    found["window.sink"] = Unused(why, window_lib.Window().sink)
  return found


def check(stage: stage_lib.Stage, settings: settings_lib.Training) -> None:
  """Refuses values that nothing reads, and None where a number is read.

  Args:
    stage: The stage.
    settings: Settings of the stage.

  Raises:
    ValueError: With all keys that are set for the same reason.
  """
  unread = keys(stage, settings)
  useless = {
    name: unused
    for name, unused in unread.items()
    if _value(settings, name) != unused.unset
  }
  for first in useless.values():
    # Whoever turns samples off learns at once what else to unset.
    names = [
      name for name, unused in useless.items() if unused.why == first.why
    ]
    given = ", ".join(f"{n}={_value(settings, n)!r}" for n in names)
    verb = "has" if len(names) == 1 else "have"
    way_out = "set " + ", ".join(f"{n}={useless[n].unset!r}" for n in names)
    if names[0].startswith("network."):  # These fields need not be there.
      way_out = "leave it out"
    raise ValueError(f"{given} {verb} no effect {first.why}; {way_out}.")
  for name, switch in _NUMBERS.items():
    if name not in unread and _value(settings, name) is None:
      way_out = "see configs/common.py"
      if name in _SAMPLES:
        way_out = "the argument videos=N of the config file sets all of these"
      raise ValueError(
        f"{name}=None must be a number with "
        f"{switch}={_value(settings, switch)!r}; {way_out}."
      )


def _value(settings: settings_lib.Training, name: str) -> object:
  """Returns the value of a key such as `optim.steps`."""
  group, _, field = name.partition(".")
  values = getattr(settings, group)
  return values[field] if isinstance(values, dict) else getattr(values, field)
