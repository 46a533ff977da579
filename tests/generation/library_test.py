"""Tests of the Python door: the same videos as `sample`, in few lines."""

import itertools
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests import tiny_project
import videomla_jax
from videomla_jax import sample
from videomla_jax.generation import job
from videomla_jax.generation import mp4
from videomla_jax.small_world import model as model_lib

_PROMPTS = ["a slow three moving horizontally", "fast 7 vertical"]
_EULER = dict(kind="euler", num_steps=2)


@pytest.fixture
def folder(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
  """A folder that holds a tiny small model."""
  tiny_project.shrink(monkeypatch)
  tiny_project.checkpoint(tmp_path / "model", np.random.default_rng(seed))
  return tmp_path


def _sample(folder: pathlib.Path, variant: str, **changes: Any) -> list[bytes]:
  """The MP4 files that the command writes."""
  config = tiny_project.config("sample", variant)
  config.update(changes)
  config.output.update(folder=str(folder / "out"), name="video")
  sample.sample(config)
  return [p.read_bytes() for p in sorted((folder / "out").glob("*.mp4"))]


def test_small_videos_are_those_of_the_command_bit_for_bit(
  folder: pathlib.Path, seed: int
) -> None:
  checkpoint = str(folder / "model")
  made = _sample(
    folder,
    "latent,steps=2",
    checkpoint=checkpoint,
    prompts="; ".join(_PROMPTS),
    seconds=2.75,
    seed=seed,
  )
  model = videomla_jax.load(checkpoint)
  call = dict(seconds=2.75, seed=seed, sampler=dict(num_steps=2))
  video = videomla_jax.generate(model, _PROMPTS, **call)
  assert video.pixels.shape == (2, 11, 24, 24, 1)
  assert (video.fps, video.prompts) == (4.0, tuple(_PROMPTS))
  files = videomla_jax.save(video, folder / "saved")
  assert [pathlib.Path(path).read_bytes() for path in files] == made
  chunks = [*videomla_jax.stream(model, _PROMPTS, **call)]
  assert len(chunks) == 4
  np.testing.assert_array_equal(np.concatenate(chunks, axis=1), video.pixels)


@pytest.mark.parametrize(
  ("variant", "checkpoint", "options"),
  [
    (
      "wan_tiny",
      "random:wan_tiny",
      dict(sampler=dict(kind="few_step", num_steps=2)),
    ),
    (
      "wan_tiny_bidirectional",
      "random:wan_tiny_dense",
      dict(
        mode="bidirectional",
        sampler=dict(kind="unipc", num_steps=2, guidance=6.0, shift=8.0),
      ),
    ),
  ],
)
def test_wan_videos_are_those_of_the_command_bit_for_bit(
  tmp_path: pathlib.Path, variant: str, checkpoint: str, options: dict[str, Any]
) -> None:
  prompt = "a red fox"
  (made,) = _sample(
    tmp_path, f"{variant},steps=2", prompts=prompt, seconds=9 / 16
  )
  model = videomla_jax.load(checkpoint)
  assert repr(model) == (
    f"Model({checkpoint!r}, 32 x 48 pixels, 16 frames per second)"
  )
  video = videomla_jax.generate(model, prompt, seconds=9 / 16, **options)
  assert video.pixels.shape == (1, 9, 32, 48, 3)
  (path,) = videomla_jax.save(video, tmp_path, scale=1)
  assert pathlib.Path(path).read_bytes() == made
  # The encoder came back for the same words; nothing else has changed.
  again = videomla_jax.generate(model, prompt, seconds=9 / 16, **options)
  np.testing.assert_array_equal(again.pixels, video.pixels)


def test_given_clip_comes_first_and_is_continued(
  folder: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  given = rng.integers(0, 2, (4, 6, 6, 1), dtype=np.uint8) * 255
  given = given.repeat(4, axis=1).repeat(4, axis=2)
  mp4.write_mp4(folder / "given.mp4", given, fps=4, scale=2)
  model = videomla_jax.load(folder / "model")
  call = dict(clip=str(folder / "given.mp4"), sampler=_EULER)
  video = videomla_jax.generate(model, _PROMPTS, seconds=2, **call)
  assert video.pixels.shape[1] == 8
  error = video.pixels[:, :4].astype(int) - given
  assert np.abs(error).mean() < 8
  # Without end, the same chunks come and then others; the clip is not cut.
  endless = videomla_jax.stream(model, _PROMPTS, **call)
  chunks = [*itertools.islice(endless, 5)]
  assert [c.shape[1] for c in chunks] == [4, 3, 3, 3, 3]
  frames = np.concatenate(chunks, axis=1)
  np.testing.assert_array_equal(frames[:, :8], video.pixels)


@pytest.mark.parametrize("how", ["keep", "flush", "recache"])
def test_switch_changes_what_comes_and_nothing_before(
  folder: pathlib.Path, how: str
) -> None:
  model = videomla_jax.load(folder / "model")
  plain = videomla_jax.stream(model, _PROMPTS[0], seconds=6, sampler=_EULER)
  switched = videomla_jax.stream(model, _PROMPTS[0], seconds=6, sampler=_EULER)
  before = next(plain), next(switched)
  np.testing.assert_array_equal(*before)
  switched.switch(_PROMPTS[1], how=how)
  # One chunk was under way already.
  np.testing.assert_array_equal(next(plain), next(switched))
  rest = [np.concatenate([*s], axis=1) for s in (plain, switched)]
  assert rest[0].shape == rest[1].shape == (1, 18, 24, 24, 1)
  assert (rest[0] != rest[1]).any()
  with pytest.raises(ValueError, match="prompts are 2 but the stream shows 1"):
    switched.switch(_PROMPTS)
  with pytest.raises(ValueError, match="'cat'"):
    switched.switch("a slow cat")


def test_window_and_sampler_take_part_of_the_models_own(
  folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  model = videomla_jax.load(folder / "model")
  seen = []

  def spy(*args, **unused):
    seen.append(args)
    raise NotImplementedError

  monkeypatch.setattr(job, "prepare", spy)
  with pytest.raises(NotImplementedError):
    videomla_jax.generate(
      model,
      _PROMPTS,
      window=dict(local_frames=9),
      sampler=dict(guidance=1.5),
      cache_dtype="int8",
    )
  ((request, source),) = seen
  assert source is model.source and request.networks is model.networks
  window = tiny_project.WINDOW
  assert (window.chunk_frames, window.sink_frames, 9) == (
    request.window.chunk_frames,
    request.window.sink_frames,
    request.window.local_frames,
  )
  assert (request.sampler.kind, request.sampler.guidance) == ("auto", 1.5)
  assert request.cache_dtype == "int8"


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (dict(height=32), "height is unknown; use one of seed, "),
    (dict(sampler=dict(steps=3)), "sampler.steps is unknown"),
    (dict(window=dict(local_frames=2)), "chunk_frames=3"),
    (dict(seconds=0.01), "less than one frame"),
    (dict(seed="ten"), "seed='ten' must be int"),
    (dict(image="missing.png"), "give a PNG, JPEG"),
    (dict(mode="both"), "'causal', 'bidirectional'"),
  ],
)
def test_mistakes_are_one_sentence_before_anything_compiles(
  folder: pathlib.Path, options: dict[str, Any], said: str
) -> None:
  model = videomla_jax.load(folder / "model")
  with pytest.raises(ValueError, match=said) as error:
    videomla_jax.generate(model, _PROMPTS, **options)
  assert "\n" not in str(error.value)


def test_unknown_checkpoint_and_part_are_refused(tmp_path) -> None:
  with pytest.raises(ValueError, match="is not a directory"):
    videomla_jax.load(tmp_path / "missing")
  with pytest.raises(ValueError, match="shipped are"):
    videomla_jax.load("shipped:none")
  with pytest.raises(ValueError, match="parts.vea is unknown"):
    videomla_jax.load("random:wan_tiny", parts=dict(vea="x"))


_IMPORT = """
import sys, time
started = time.monotonic()
import videomla_jax
seconds = time.monotonic() - started
assert "jax" not in sys.modules and "numpy" not in sys.modules
assert {"load", "generate", "stream", "save"} <= {*dir(videomla_jax)}
assert videomla_jax.__version__
assert seconds < 1, seconds
assert callable(videomla_jax.load) and "jax" in sys.modules
try:
  getattr(videomla_jax, "nothing")
except AttributeError as error:
  print(error)
"""


def test_import_is_lazy_and_fast() -> None:
  ended = subprocess.run(
    [sys.executable, "-c", _IMPORT],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert ended.returncode == 0, ended.stderr
  assert "has no attribute 'nothing'" in ended.stdout


def test_trained_model_says_how_it_is_sampled(
  folder: pathlib.Path, seed: int
) -> None:
  model = tiny_project.video("latent", np.random.default_rng(seed))
  model_lib.save(folder / "dmd", model, training=dict(stage="dmd"))
  distilled = videomla_jax.load(folder / "dmd")
  auto = videomla_jax.generate(distilled, _PROMPTS[0], seconds=1)
  named = videomla_jax.generate(
    distilled, _PROMPTS[0], seconds=1, sampler=dict(kind="few_step")
  )
  np.testing.assert_array_equal(auto.pixels, named.pixels)
