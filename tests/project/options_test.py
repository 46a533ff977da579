"""Every path is local, and every option has an effect or is refused.

Both are asked of the classes that configs are read into, so a new key is asked,
too, or missing in a table here.
"""

import dataclasses
import functools
import os
import pathlib
import re
import typing
from typing import Any

import jax
import numpy as np
from PIL import Image
import pytest

from tests import tiny_project
import videomla_jax
from videomla_jax import ablate
from videomla_jax import analyze
from videomla_jax import benchmark
from videomla_jax import calibrate
from videomla_jax import convert
from videomla_jax import embed
from videomla_jax import evaluate
from videomla_jax import prepare
from videomla_jax.autoencoding import settings as vae_settings
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import mp4
from videomla_jax.generation import networks
from videomla_jax.generation import request
from videomla_jax.generation import sources
from videomla_jax.generation import video
from videomla_jax.runtime import config_reader
from videomla_jax.storage import paths
from videomla_jax.training import settings
from videomla_jax.training.stages import table

_DOORS = (
  *(request.Request, evaluate.Evaluation, *evaluate.SUITES.values()),
  *(embed.Embedding, prepare.Request, vae_settings.Settings),
  *(
    calibrate.Calibration,
    analyze.Analysis,
    ablate.Ablation,
    *benchmark.SUITES.values(),
    networks.Networks,
  ),
  *(settings.Training, *settings.DATA.values(), settings.Samples),
  *(stage.settings for stage in table.STAGES.values()),
)
# Texts whose description names a file or a folder that they are not.
_NO_PATHS = {"name"}


def _fields() -> list[tuple[type, str, Any]]:
  """Class, name and annotation of every field behind the doors."""
  found, todo, seen = [], [*_DOORS], set()
  while todo:
    kind = todo.pop()
    if kind in seen:
      continue
    seen.add(kind)
    for field in dataclasses.fields(kind):
      found.append((kind, field.name, field.type))
      if dataclasses.is_dataclass(field.type):
        todo.append(field.type)
  return found


def _marks(kind: Any) -> list[Any]:
  """What annotations say beside types, those of elements included."""
  arguments = typing.get_args(kind)
  found = list(getattr(kind, "__metadata__", ()))
  return found + [x for a in arguments for x in _marks(a) if a is not kind]


def _described(kind: type, name: str) -> str:
  text = "\n".join(c.__doc__ or "" for c in kind.__mro__)
  match = re.search(rf"^ +{name}: (.*(?:\n      .*)*)", text, re.MULTILINE)
  return match[1] if match else ""


_PATHS = [x for x in _fields() if paths.local in _marks(x[2])]


def test_all_known_paths_are_found() -> None:
  names = {name for _, name, _ in _PATHS}
  assert names >= {
    *("checkpoint", "dit", "vae", "umt5", "tokenizer", "embeddings", "image"),
    "tiny_decoder",
    *("clip", "clips", "folder", "judge", "checkpoints", "prompts_file"),
    *("output", "videos", "table", "prompts", "compare", "json", "root"),
    *("networks", "codec"),
  }


@pytest.mark.parametrize(
  ("kind", "name", "annotation"), _fields(), ids=lambda x: str(x)[:40]
)
def test_what_is_described_as_a_file_or_folder_is_a_path(
  kind: type, name: str, annotation: Any
) -> None:
  is_text = str in (annotation, *typing.get_args(annotation))
  if not is_text or name in _NO_PATHS or paths.local in _marks(annotation):
    return
  words = re.search(r"\b(file|files|folder|folders)\b", _described(kind, name))
  assert not words, f"{kind.__name__}.{name} is a path; use config_values.Path"


@pytest.mark.parametrize(
  ("kind", "name", "annotation"), _PATHS, ids=lambda x: str(x)[:40]
)
@pytest.mark.parametrize(
  "address", ["gs://b/x", "s3://b/x", "hf://a/b", "http://h/x", "file:///x"]
)
def test_a_path_knows_homes_and_refuses_addresses(
  kind: type, name: str, annotation: Any, address: str, monkeypatch
) -> None:
  monkeypatch.setenv("HOME", "/somewhere")

  def read(text: str) -> str:
    mapping = "Mapping" in str(typing.get_origin(annotation))
    value = config_reader._value(
      annotation, {"a": text} if mapping else text, name
    )
    value = value["a"] if mapping else value
    return value[0] if isinstance(value, tuple) else value

  assert read("~/x") == "/somewhere/x"
  assert read("./x") == "./x"
  with pytest.raises(ValueError, match="only local paths work"):
    read(address)


@pytest.mark.parametrize("name", ["source", "output", "activations"])
def test_flags_of_convert_know_homes_and_refuse_addresses(
  name: str, monkeypatch
) -> None:
  monkeypatch.setenv("HOME", "/somewhere")
  options = convert.Options(**{name: "~/x"}, to="latent")
  assert getattr(options, name) == "/somewhere/x"
  with pytest.raises(ValueError, match="only local paths work"):
    convert.Options(**{name: "s3://b/x"})


def test_python_knows_homes_and_refuses_addresses(
  tmp_path: pathlib.Path, monkeypatch
) -> None:
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for address in ("gs://b/x", pathlib.Path("gs://b/x")):
    with pytest.raises(ValueError, match="only local paths work"):
      videomla_jax.load(address)
  made = video.Video(np.zeros((1, 1, 16, 16, 1), np.uint8), 4, ("a",))
  with pytest.raises(ValueError, match="only local paths work"):
    videomla_jax.save(made, "gs://b/x")
  (path,) = videomla_jax.save(made, "~/out")
  assert path == str(tmp_path / "out" / "video-0-a.mp4")
  assert os.listdir(tmp_path) == ["out"]


# Model kind -> config of `sample`.
_KINDS = {
  "small": "latent",
  "distilled": "student",
  "Wan": "wan_tiny",
  "bidirectional": "wan_tiny_bidirectional",
}
# Key of `sample` -> another value than the default; `HERE` is a folder.
_CHANGES: dict[str, Any] = {
  "checkpoint": "shipped:small_dense",
  "parts.dit": "HERE",
  "parts.vae": "HERE",
  "parts.umt5": "HERE",
  "parts.tokenizer": "HERE",
  "parts.tiny_decoder": "HERE",
  "embeddings": "HERE/prompts.safetensors",
  "prompts": "a fast one moving diagonally",
  "prompts_file": "HERE/prompts.txt",
  "negative_prompt": "a slow three moving vertically",
  "seconds": 1.5,
  "seed": 3,
  "image": "HERE/a.png",
  "clip": "HERE/a.mp4",
  "mode": {"causal": "bidirectional", "bidirectional": "causal"},
  "height": 64,
  "width": 64,
  "half_weights": True,
  "spare_memory": True,
  "layers_apart": True,
  "products": "float8_per_token",
  "vae_tile": 5,
  "vae_dtype": "bfloat16",
  "decoder": "tiny",
  "weights_seed": 1,
  "sampler.kind": {"unipc": "euler", None: "unipc"},
  "sampler.num_steps": 3,
  "sampler.guidance": 1.5,
  "sampler.shift": 3.0,
  "sampler.commit": "last_pass",
  "window.chunk_frames": 2,
  "window.sink_frames": 2,
  "window.local_frames": 9,
  "window.sink": "average",
  "window.sink_decay": 0.9,
  "cache_dtype": "int8",
  "output.folder": "HERE/other",
  "output.name": "other",
  "output.scale": 3,
}


def _config(variant: str) -> Any:
  config = tiny_project.config("sample", variant)
  config.prompts, config.seconds = "a slow three moving horizontally", 1.0
  return config


def _keys(config: Any, at: str = "") -> list[str]:
  found: list[str] = []
  for key, value in config.items():
    deeper = hasattr(value, "items")
    found += _keys(value, f"{at}{key}.") if deeper else [f"{at}{key}"]
  return found


@functools.cache
def _opened(path: pathlib.Path) -> sources.SmallSource:
  return _OPEN(path)


_OPEN = sources.open_small


def _plan(config: Any) -> dict[str, Any]:
  """All that reaches the networks, and where the results go."""
  asked = request.Request.from_config(config)
  source = sources.open_source(asked.networks)
  job = job_lib.prepare(asked, source)
  causal = asked.mode == "causal"
  plan: dict[str, Any] = dict(
    model=(type(source), asked.networks.checkpoint, source.fps),
    pixels=source.pixels,
    prompts=asked.prompts,
    sampler=job.sampler,
    keys=jax.random.key_data(job.keys()).tolist(),
    frames=job.num_frames,
    mode=asked.mode,
    given=None if job.given is None else job.given.tobytes(),
    output=asked.output,
  )
  if causal:
    plan |= dict(cache=asked.cache_dtype, window=asked.window)
  if job.sampler.guidance is not None:
    plan["negative"] = asked.negative_prompt
  if not isinstance(source, sources.SmallSource):
    # These are weights and a codec, which a test of its own looks into.
    own = asked.networks
    plan["networks"] = own.weights_seed, own.vae_dtype, own.vae_tile
    plan["memory"] = own.spare_memory, own.layers_apart
    plan["decoder"] = source.decoder
    plan["products"] = own.products
  else:
    plan["products"] = source.model.dit.config.products
  return plan


def test_table_has_every_key_of_the_command() -> None:
  assert set(_keys(_config("latent"))) == set(_CHANGES)


@pytest.mark.parametrize("kind", _KINDS)
def test_each_option_changes_the_plan_or_is_refused(
  kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(sources, "open_small", _opened)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "prompts.txt").write_text("a fast two moving diagonally\n")
  frames = np.zeros((5, 32, 48, 3), np.uint8)
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  Image.new("L", (9, 9)).save(tmp_path / "a.png")
  before, refused = _plan(_config(_KINDS[kind])), set()
  for key, value in _CHANGES.items():
    config = _config(_KINDS[kind])
    config.unlock()
    *groups, name = key.split(".")
    group = functools.reduce(lambda a, b: a[b], groups, config)
    if isinstance(value, dict):
      value = value.get(group[name], value.get(None))
    if isinstance(value, str):
      value = value.replace("HERE", str(tmp_path))
    group[name] = value
    try:
      assert _plan(config) != before, f"{key} changes nothing"
    except ValueError as error:
      refused.add(key)
      assert str(error).endswith((".", "first")), error
      assert name in str(error) or key.startswith("parts"), f"{key}: {error}"
  assert refused == _REFUSED[kind]


_FILES = {f"parts.{n}" for n in ("dit", "vae", "umt5", "tokenizer")}
_FILES |= {"parts.tiny_decoder"}
_FILES |= {"embeddings", "half_weights"}
# It is a size of an averaging sink, and the first frames are none.
_FILES |= {"window.sink_decay"}
_RELEASES = {"vae_tile", "vae_dtype", "weights_seed", "height", "width"}
_RELEASES |= {"decoder", "spare_memory", "layers_apart"}
_REFUSED = {
  "small": _FILES | _RELEASES | {"negative_prompt"},
  # A distilled student has no guidance; a whole clip needs another sampler.
  "distilled": _FILES
  | _RELEASES
  | {"negative_prompt", "sampler.guidance", "mode"},
  "Wan": _FILES | {"negative_prompt", "sampler.guidance", "mode", "checkpoint"},
  "bidirectional": _FILES
  | {"image", "clip", "cache_dtype", "checkpoint"}
  | {f"window.{n}" for n in ("chunk_frames", "sink_frames", "local_frames")}
  | {"window.sink", "sampler.commit"},
}


def test_decay_changes_an_averaging_sink() -> None:
  plans = []
  for decay in (0.9, 0.95):
    config = _config("latent")
    config.window.update(sink="average", sink_decay=decay)
    plans.append(_plan(config))
  assert plans[0] != plans[1]


_CONVERT = {
  "a size without latent attention": (dict(d_c=8), "--d_c=8 has no effect"),
  "a start without it": (dict(init="random"), "--init='random' has no effect"),
  "a seed of a spectral start": (dict(to="latent", seed=3), "--seed=3 has no"),
  "inputs of a random start": (
    dict(to="latent", init="random", activations="a"),
    "--activations='a' has no effect",
  ),
  "a type of an export": (
    dict(export="original", dtype="float32"),
    "--dtype='float32' has no effect",
  ),
  "a change of an export": (
    dict(export="original", to="latent"),
    "--to='latent' has no effect",
  ),
  "negative": (dict(to="latent", d_q=-1), "--d_q=-1 must be at least 0"),
  "a huge seed": (dict(seed=2**32), "--seed=4294967296 must be at most"),
}


@pytest.mark.parametrize("case", _CONVERT)
def test_flags_of_convert_without_effect_are_refused(case: str) -> None:
  changes, words = _CONVERT[case]
  with pytest.raises(ValueError, match=re.escape(words)):
    convert.Options(source="a", output="b", **changes)


_PREPARE = {
  "table": dict(table="a.csv"),
  "max_clips": dict(max_clips=2),
  "vae_dtype": dict(vae_dtype="bfloat16"),
  "clip": dict(clip=dict(height=64)),
  "filters": dict(filters=dict(min_height=9)),
  "beam_options": dict(beam_options=("--x",)),
}


@pytest.mark.parametrize("key", _PREPARE)
def test_options_of_videos_are_refused_with_prompts(key: str) -> None:
  config = tiny_project.config("prepare", "tiny")
  config.prompts = "prompts.txt"
  config_reader.read(prepare.Request, config)
  config.update(_PREPARE[key])
  with pytest.raises(ValueError, match=f"{key}=.* has no effect"):
    config_reader.read(prepare.Request, config)


def test_steps_and_guidance_of_students_alone_are_refused() -> None:
  config = tiny_project.config("evaluate", "models=student")
  for key, value in (("num_steps", 3), ("guidance", 2.0)):
    changed = config.copy_and_resolve_references()
    changed.sampler[key] = value
    asked = config_reader.read(evaluate.Evaluation, changed)
    with pytest.raises(ValueError, match=f"sampler.{key}=.* has no effect"):
      evaluate._open(asked)
  # Beside a model that needs them they are not the student's.
  config = tiny_project.config("evaluate", "models=latent+student,steps=3")
  asked = config_reader.read(evaluate.Evaluation, config)
  models = evaluate._open(asked)
  steps = {
    name: len(asked.sampler_of(seeds[0]).sigmas)
    for name, seeds in models.items()
  }
  assert steps == {"latent": 3, "student": 4}
