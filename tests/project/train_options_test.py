"""Every option of `train` has an effect or is refused, in every stage.

A run is recorded with each option changed, see `recorded_run`: what it asks of
files, devices, data and samples, or its program, must differ from the run as
the config file gives it; or one sentence that names the option refuses it.
"""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib
import re
from typing import Any

import jaxtyping
import pytest

from tests import recorded_run
from tests import tiny_project
from videomla_jax.training import unused
from videomla_jax.training.stages import table

# Key -> another value, or {present value: another one, None: for the rest}.
_CHANGES: dict[str, Any] = {
  "stage": "gan",
  "seed": 3,
  "dispatch": 3,
  "networks.model": "OTHER",
  "networks.teacher": "OTHER",
  "networks.real": "OTHER",
  "networks.critic": "OTHER",
  "model.size": "another",
  "model.kind": {"latent": "dense", "dense": "latent"},
  "model.d_c": 8,
  "model.d_rope": 4,
  "model.rope_ladder": "fresh",
  "network.dtype": "bfloat16",
  "network.remat": True,
  "network.scan_blocks": False,
  "data.kind": {"moving_digits": "latents", None: "moving_digits"},
  "data.root": "elsewhere",
  "data.num_frames": 9,
  "data.latent_shape": (8, 8, 4),
  "data.batch_size": 4,
  "data.prompt_dropout": 0.5,
  "data.num_clips": 99,
  "data.clip_frames": {24: 15, 81: 41},
  "data.vae": "elsewhere",
  "data.word_dropout": 0.3,
  "data.text_shape": (6, 8),
  "data.verify": True,
  "window.chunk_frames": 2,
  "window.sink_frames": {1: 0, 0: 1},
  "window.local_frames": 3,
  "window.sink": "average",
  "window.sink_decay": 0.9,
  "diffusion.shift": 3.0,
  "diffusion.frame_levels": 0.25,
  "diffusion.loss_weight": {"none": "bell", "bell": "none"},
  "diffusion.first_frame_every": 3,
  "diffusion.num_levels": 5,
  "diffusion.guidance": 1.5,
  "diffusion.timesteps": (1000, 600),
  "optim.steps": 13,
  "optim.accumulate": 2,
  "optim.schedule": {"constant": "cosine", "cosine": "constant"},
  "optim.learning_rate": 3e-5,
  "optim.matrix_rate": 0.02,
  "optim.warmup_steps": 5,
  "optim.final_fraction": 0.5,
  "optim.b1": 0.7,
  "optim.b2": 0.7,
  "optim.eps": 1e-5,
  "optim.weight_decay": 0.3,
  "optim.clip_norm": 3.0,
  "optim.ema_decay": 0.7,
  "optim.ema_warmup": {False: True, True: False},
  "optim.max_skipped": 3,
  "optim.critic_updates": 3,
  "optim.critic_learning_rate": 3e-5,
  "mesh.data": 2,
  "mesh.fsdp": 2,
  "mesh.sequence": 2,
  "mesh.tensor": 2,
  "checkpoint.every": 5,
  "checkpoint.keep": 7,
  "log.every": 2,
  "log.ranks_every": 5,
  "log.flops": {False: True, True: False},
  "eval.every": 5,
  "eval.batches": 3,
  "samples.every": 7,
  "samples.videos": {0: 1, None: 2},
  "samples.seconds": 2.5,
  "samples.num_steps": 5,
  "samples.guidance": 1.5,
  "samples.codec": "HERE",
  "samples.fps": 8.0,
  "rollout.num_frames": 9,
  "rollout.stream_frames": 12,
}
# Keys of settings that no config file has, since their defaults are taken.
_EULER_NAMES = ("num_steps", "guidance")
_DEFAULTS = {
  *("window.sink", "window.sink_decay", "samples.codec", "samples.fps"),
}
_WORLDS = {"small": "small", "world": "world", "wan_1p3b": "wan"}
_RUNS = [(s, v) for s in table.STAGES for v in _WORLDS]


def _config(stage: str, variant: str, *, videos: int | None = None) -> Any:
  """The config of a variant with few steps and tiny networks."""
  more = "" if videos is None else f",videos={videos}"
  config = tiny_project.config(stage, variant + more)
  config = config.copy_and_resolve_references()
  world = _WORLDS[variant]
  for role, allowed in table.STAGES[stage].starts_from.items():
    made_by = [x for x in allowed if x and (world == "wan" or x != "release")]
    # In the small world stage 1 begins with random weights.
    if role != "model" or made_by[0] != "pretraining" or stage == "pretraining":
      config.networks[role] = f"{world}/{made_by[0]}"
    elif world != "small":
      config.networks[role] = f"{world}/conversion"
  config.data.update(num_frames=6, batch_size=2)
  if world == "wan":
    config.network.update(dtype="float32", remat=False)
    config.data.update(
      text_shape=recorded_run.TEXT, latent_shape=recorded_run.FRAME
    )
  if stage != "pretraining":
    config.window.local_frames = 4  # Of a clip of six, not all are seen.
  config.optim.update(steps=12, warmup_steps=2)
  config.checkpoint.every, config.log.every = 4, 3
  for group in (config.eval, config.samples):
    if group.every is not None:
      group.every = 6
  if "rollout" in config:
    config.rollout.num_frames = 12 if world == "wan" else 6
    config.optim.critic_updates = 2
  if config.samples.videos and world == "wan":
    config.samples.codec = "."
  return config


def _keys(group: Any, at: str = "") -> set[str]:
  found: set[str] = set()
  for name, value in group.items():
    deeper = hasattr(value, "items")
    found |= _keys(value, f"{at}{name}.") if deeper else {f"{at}{name}"}
  return found


def _changed(config: Any, key: str, folder: pathlib.Path) -> Any:
  """The config with one key changed."""
  *groups, name = key.split(".")
  value = _CHANGES[key]
  present = functools.reduce(lambda a, b: a[b], groups, config).get(name)
  if isinstance(value, dict):
    value = value.get(present, value.get(None))
  if value == "HERE":
    value = str(folder)
  if value == "OTHER":
    value = f"another/{present}" if present else "small/teacher_forcing"
  assert value != present, key
  return _set(config, {key: value})


def _set(config: Any, changes: dict[str, Any]) -> Any:
  """A copy of the config with other values."""
  config = config.copy_and_resolve_references().unlock()
  for key, value in changes.items():
    *groups, name = key.split(".")
    with config.ignore_type():
      functools.reduce(lambda a, b: a[b], groups, config)[name] = value
  return config


def test_table_has_every_key_of_every_config() -> None:
  keys = set(_DEFAULTS)
  for stage, variant in _RUNS:
    config = _config(stage, variant)
    keys |= _keys(config)
    # Nothing that a class knows is missing in both.
    known = _keys(dataclasses.asdict(table.read(config)[1]))
    assert known <= _keys(config) | _DEFAULTS
  assert keys == set(_CHANGES)


@pytest.fixture
def recorder(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[recorded_run.Recorder]:
  # Many other tests check types and shapes; here they would take half the time.
  jaxtyping.config.update("jaxtyping_disable", True)
  yield recorded_run.Recorder(tmp_path, monkeypatch)
  jaxtyping.config.update("jaxtyping_disable", False)


# What only the update of a network reads: it is the same function for both
# variants, so it is traced for the released one.
_UPDATE = {
  f"optim.{x}"
  for x in ("b2", "eps", "weight_decay", "clip_norm", "ema_decay", "ema_warmup")
} | {f"optim.{x}rate" for x in ("learning_", "critic_learning_", "matrix_")}


def _refused(
  recorder: recorded_run.Recorder, config: Any, keys: set[str]
) -> set[str]:
  """The keys whose change is refused; all others must have an effect."""
  before, refused = recorder.run(config), set()
  for key in sorted(keys):
    changed = _changed(config, key, recorder.folder)
    try:
      after = recorder.run(changed)
    except ValueError as error:
      text = str(error)
      assert text.endswith(".") and "\n" not in text, text
      assert key.rpartition(".")[2] in text, f"{key}: {text}"
      refused.add(key)
      continue
    same = after.events == before.events
    if same and key in _UPDATE and config.model.size != "wan_1p3b":
      continue
    # Samples read windows, too, but training is what has to.
    if same or key.startswith("window."):
      assert after.trace != before.trace, f"{key} changes nothing"
  return refused


# Refused whatever the variant: an unknown stage, data of another kind, a decay
# without an averaging sink, and a schedule without what belongs to it.
_ALWAYS = {"stage", "data.kind", "window.sink_decay", "optim.schedule"}
# Intervals of these configs are no multiples of three.
_ALWAYS |= {"dispatch"}
# Eight devices leave no choice for the axis that takes the rest.
_SMALL = {"mesh.data", "data.latent_shape", "samples.codec", "samples.fps"}
_SAMPLES = {
  f"samples.{x}"
  for x in ("every", "videos", "seconds", "num_steps", "guidance", "codec")
} | {"samples.fps"}
_WAN = _SAMPLES | {"mesh.fsdp", "data.text_shape", "optim.final_fraction"}
# Sizes of a network that is loaded, which must be those of its folder.
_SIZES = {
  *("model.size", "model.kind", "model.d_c", "model.d_rope"),
  "model.rope_ladder",
}
_EULER = {"samples.num_steps", "samples.guidance"}
_WHOLE = {"window.sink_frames", "window.local_frames", "window.sink"}
_EVAL = {"eval.every", "eval.batches"}
# Stage and variant -> what is refused beside that.
_REFUSED = {
  ("pretraining", "small"): _SIZES | _WHOLE | {"samples.seconds"},
  ("pretraining", "wan_1p3b"): _SIZES | _WHOLE,
  # It begins with random weights, of any size.
  ("teacher_forcing", "small"): set(),
  # That of the colour world begins with a converted model.
  ("teacher_forcing", "world"): _SIZES,
  ("pretraining", "world"): _SIZES | _WHOLE | {"samples.seconds"},
  ("consistency", "world"): _SIZES | _EULER,
  ("dmd", "world"): _SIZES | _EULER | _EVAL | {"data.num_frames"},
  ("teacher_forcing", "wan_1p3b"): _SIZES,
  ("consistency", "small"): _SIZES | _EULER,
  ("consistency", "wan_1p3b"): _SIZES | {"diffusion.timesteps"},
  # A clip may not be longer than the rollout, nor shorter if videos go on.
  ("dmd", "small"): _SIZES | _EULER | _EVAL | {"data.num_frames"},
  ("dmd", "wan_1p3b"): _SIZES | _EVAL | {"rollout.stream_frames"},
}


@pytest.mark.parametrize(("stage", "variant"), _REFUSED)
def test_each_option_has_an_effect_or_is_refused(
  recorder: recorded_run.Recorder, stage: str, variant: str
) -> None:
  config = _config(stage, variant)
  refused = _refused(recorder, config, _keys(config) | _DEFAULTS)
  always = _ALWAYS | (_WAN if variant == "wan_1p3b" else _SMALL)
  assert refused == always | _REFUSED[stage, variant]


@pytest.mark.parametrize(
  ("stage", "expected"),
  [
    ("pretraining", {"samples.seconds"}),
    ("teacher_forcing", set()),
    ("consistency", _EULER),
    ("dmd", _EULER),
  ],
)
def test_each_option_of_released_samples_has_an_effect(
  recorder: recorded_run.Recorder, stage: str, expected: set[str]
) -> None:
  config = _config(stage, "wan_1p3b", videos=1)
  keys = _SAMPLES | ({"diffusion.timesteps"} & _keys(config))
  assert _refused(recorder, config, keys) == expected


# Keys that take effect together, and those that then have none.
_TOGETHER = {
  "small: a constant rate": (
    "small",
    {"optim.schedule": "constant", "optim.final_fraction": None},
    {"optim.final_fraction": 0.5},
  ),
  "wan: a falling rate": (
    "wan_1p3b",
    {"optim.schedule": "cosine", "optim.final_fraction": 0.1},
    {"optim.final_fraction": None},
  ),
  "an averaging sink": (
    "small",
    {"window.sink": "average", "window.sink_decay": 0.5},
    {},
  ),
  "no average": (
    "small",
    {"optim.ema_decay": 0.0, "optim.ema_warmup": False},
    {"optim.ema_warmup": True},
  ),
  "no evaluation": (
    "small",
    {"eval.batches": 0, "eval.every": None},
    {"eval.every": 5},
  ),
  "no samples": (
    "small",
    {f"samples.{x}": None for x in ("every", "seconds", *_EULER_NAMES)}
    | {"samples.videos": 0},
    {"samples.seconds": 3.0},
  ),
  "calls of two steps": (
    "small",
    {"dispatch": 2, "log.every": 4, "log.ranks_every": 4},
    {"log.every": 3},
  ),
  "dense": ("small", {"model.kind": "dense"}, {"model.d_c": 8}),
  "fields of a small network": ("small", {}, {"network.remat": True}),
}


@pytest.mark.parametrize("case", _TOGETHER)
def test_options_that_need_each_other(
  recorder: recorded_run.Recorder, case: str
) -> None:
  variant, changes, useless = _TOGETHER[case]
  before = recorder.run(_config("teacher_forcing", variant))
  config = _set(_config("teacher_forcing", variant), changes)
  after = recorder.run(config)
  if changes:
    assert after.events != before.events or after.trace != before.trace
  for key, value in useless.items():
    with pytest.raises(ValueError, match=f"{key}=.* (has no effect|must be)"):
      recorder.run(_set(config, {key: value}))


# Argument of a config file -> another value than its default.
_ARGUMENTS = {
  "size": "wan_1p3b",
  "kind": "dense",
  "seed": 3,
  "steps": 60,
  "local": 9,
  "data": 2,
  "videos": 3,
  "init": "x",
  "real": "x",
  "critic": "x",
  "frames": 24,
  "stream": 24,
  "d_c": 8,
  "d_rope": 4,
  "dispatch": 5,
  "vae": "x",
  "images": True,
  "runlocal": True,
}
# Those that only the colour world has.
_COLOUR = {"vae", "images"}


@pytest.mark.parametrize("stage", table.STAGES)
def test_each_argument_of_a_config_file_changes_it(stage: str) -> None:
  with pytest.raises(ValueError, match="is unknown; use one of") as error:
    tiny_project.config(stage, "bogus=1")
  named = re.findall(r"(\w+)=", str(error.value).partition("one of")[2])
  assert set(named) <= set(_ARGUMENTS)
  for name in named:
    arg, size = f"{name}={_ARGUMENTS[name]}", "small"
    if name in _COLOUR:
      with pytest.raises(ValueError, match="has no effect with size='small'"):
        tiny_project.config(stage, arg)
      arg, size = f"world,{arg}", "world"
    before = tiny_project.config(stage, size).to_json()
    config = tiny_project.config(stage, arg)
    assert config.to_json() != before, f"{name} changes nothing"
  for videos in (0, 1, 4):
    for size in ("small", "world", "wan_1p3b", "small,runlocal"):
      config = tiny_project.config(stage, f"{size},videos={videos}")
      assert config.samples.videos == videos
      unused.check(*table.read(config))
