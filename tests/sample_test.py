"""Tests of sampling: real files from a tiny model, and every user mistake."""

import json
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
from PIL import Image
import pytest

from tests import tiny_project
from videomla_jax import sample
from videomla_jax.diffusion import stream
from videomla_jax.generation import mp4
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import video_files
from videomla_jax.runtime import cli
from videomla_jax.runtime import signals
from videomla_jax.small_world import model as model_lib

_PROMPTS = "a slow three moving horizontally; fast 7 vertical"


@pytest.fixture
def model(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> model_lib.VideoModel:
  tiny_project.shrink(monkeypatch)
  rng = np.random.default_rng(seed)
  return tiny_project.checkpoint(tmp_path / "model", rng)


def _config(tmp_path: pathlib.Path, **changes: Any) -> Any:
  config = tiny_project.config("sample", "latent,runlocal")
  config.checkpoint = str(tmp_path / "model")
  config.output.folder = str(tmp_path / "out")
  config.prompts = _PROMPTS
  config.update(changes)
  return config


def _names(tmp_path: pathlib.Path) -> list[str]:
  return sorted(p.name for p in (tmp_path / "out").glob("*"))


def test_two_prompts_become_two_videos_a_sheet_and_a_report(
  tmp_path: pathlib.Path, model: model_lib.VideoModel, capsys
) -> None:
  # 11 frames: no multiple of the chunk.
  sample.sample(_config(tmp_path, seconds=2.75))
  names = [
    "sample-0-a-slow-three-moving-horizontally.mp4",
    "sample-1-fast-7-vertical.mp4",
  ]
  assert _names(tmp_path) == sorted([*names, "sample-sheet.png", "sample.json"])
  for name in names:
    frames, fps = mp4.read_mp4(tmp_path / "out" / name)
    assert (frames.shape, fps) == ((11, 48, 48, 3), 4.0)
  Image.open(tmp_path / "out" / "sample-sheet.png").verify()
  _check_report(json.loads((tmp_path / "out" / "sample.json").read_text()))
  shown = capsys.readouterr().out
  choice = "attention: absorbed form by xla_chunked (the device is a CPU)"
  for word in ("parameters:", "per token and layer: 24", "predicted peak"):
    assert word in shown
  assert shown.count(choice) == 1


def _check_report(report: dict[str, Any]) -> None:
  assert report["prompts"] == [p.strip() for p in _PROMPTS.split(";")]
  assert (report["frames"], report["fps"]) == (11, 4.0)
  assert report["attention"] == dict(
    self_attention="absorbed form by xla_chunked (the device is a CPU)",
    text_attention="expanded form by xla_chunked (the device is a CPU)",
  )
  assert report["seconds_wall"] > 0
  rate = 2 * 11 / report["seconds_wall"]
  assert report["frames_per_second"] == pytest.approx(rate, rel=0.01, abs=0.01)
  waited = report["seconds_wall"]
  assert 0 < report["seconds_compiling"] < waited
  assert 0 < report["seconds_to_first_chunk"] <= waited
  shown = rate / report["fps"]
  assert report["real_time_factor"] == pytest.approx(shown, rel=0.01, abs=0.01)
  # d_c + d_rope against keys and values of width 128.
  assert report["cache_scalars_per_token_layer"] == 24
  assert report["dense_scalars_per_token_layer"] == 256
  # 2 prompts with guidance, sink 1 + history 3 frames of 9 tokens, 1 layer.
  assert report["cache_bytes"] == 4 * 4 * 9 * 24 * 4
  assert report["dense_cache_bytes"] == 4 * 4 * 9 * 256 * 4


def test_same_seed_gives_the_same_files(
  tmp_path: pathlib.Path, model: model_lib.VideoModel
) -> None:
  config = _config(tmp_path, seconds=1.0, prompts="slow 1 vertical")
  sample.sample(config)
  first = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.mp4")}
  sample.sample(config)
  again = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.mp4")}
  assert first == again and len(first) == 1


@pytest.mark.parametrize("count", [1, 4, 8])
def test_given_frames_come_first(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  seed: int,
  count: int,
  capsys,
) -> None:
  rng = np.random.default_rng(seed)
  given = rng.integers(0, 2, (count, 6, 6, 1), dtype=np.uint8) * 255
  given = given.repeat(4, axis=1).repeat(4, axis=2)
  if count == 1:
    path = tmp_path / "given.png"
    Image.fromarray(given[0, ..., 0]).resize((48, 48), 0).save(path)
    source = dict(image=str(path))
  else:
    path = tmp_path / "given.mp4"
    mp4.write_mp4(path, given, fps=4, scale=2)
    source = dict(clip=str(path))
  # Two seconds are 8 frames: of the longest clip the window sees four.
  report = sample.sample(_config(tmp_path, prompts="slow 3 vertical", **source))
  given = given[-4:] if count == 8 else given
  (path,) = (tmp_path / "out").glob("*.mp4")
  frames = mp4.read_mp4(path)[0]
  assert len(frames) == 8
  stored = json.loads((tmp_path / "out" / "sample.json").read_text())
  assert stored["given"] == report["given"]
  assert any("scaled from" in text for text in report["given"])
  assert all(text in capsys.readouterr().out for text in report["given"][:1])
  error = frames[: len(given), ::2, ::2].astype(int) - given
  assert np.abs(error).mean() < 8


def test_few_step_sampler_runs_without_guidance(
  tmp_path: pathlib.Path, model: model_lib.VideoModel
) -> None:
  config = _config(tmp_path, seconds=0.5, prompts="slow 3 vertical")
  config.sampler.kind = "few_step"
  report = sample.sample(config)
  # One stream; two frames are one chunk, all of which fit the window.
  assert report["cache_bytes"] == 3 * 9 * 24 * 4


@pytest.mark.parametrize("stage", ["teacher_forcing", "dmd"])
def test_a_distilled_model_is_sampled_as_it_was_trained(
  tmp_path: pathlib.Path, model: model_lib.VideoModel, stage: str
) -> None:
  model_lib.save(tmp_path / "model", model, training=dict(stage=stage))
  config = _config(tmp_path, seconds=0.5, prompts="slow 3 vertical")
  streams = 1 if stage == "dmd" else 2  # guidance runs two
  report = sample.sample(config)
  assert report["cache_bytes"] == streams * 3 * 9 * 24 * 4


def test_cache_bytes_are_those_of_the_stream(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  held = []
  start = stream.rollout.start

  def spy(*args, **kwargs):
    state = start(*args, **kwargs)
    leaves = jax.tree.leaves(state.cache.entries)
    held.append(sum(x.nbytes for x in leaves))
    return state

  monkeypatch.setattr(stream.rollout, "start", spy)
  config = _config(tmp_path, seconds=1.0, prompts="slow 3 vertical")
  config.window.update(sink_frames=2, local_frames=9)
  assert [sample.sample(config)["cache_bytes"]] == held


# What the user got wrong, and words of the answer.
_MISTAKES = {
  "unknown word": (dict(prompts="slow cat vertical"), "'cat'"),
  "empty prompt": (dict(prompts=" ;"), "has no words"),
  "prompt between": (dict(prompts="slow 1 vertical;;"), None),
  "no digit": (dict(prompts="slow vertical"), "has no digit"),
  "small window": (dict(window=dict(local_frames=2)), "chunk_frames=3"),
  "no checkpoint": (dict(checkpoint="missing"), "is not a directory"),
  "unknown model": (dict(checkpoint="shipped:none"), "shipped are"),
  "no length": (dict(seconds=0.01), "less than one frame"),
  "no steps": (dict(sampler=dict(num_steps=0)), "at least 1"),
  "no sampler": (dict(sampler=dict(kind="ddim")), "'euler', 'unipc'"),
  "no mode": (dict(mode="acausal"), "'causal', 'bidirectional'"),
  "image of a clip": (
    dict(mode="bidirectional", image="a.png"),
    "takes no first frames",
  ),
  "no scale": (dict(output=dict(scale=0)), "output.scale=0"),
  "name too long": (dict(output=dict(name="x" * 121)), "120 bytes"),
  "hidden name": (dict(output=dict(name=".x")), "must not be empty, begin"),
  "a flag": (dict(output=dict(name="-x")), "must not be empty, begin"),
  "escape": (dict(output=dict(name="a\x1bb")), "control characters"),
  "huge": (dict(output=dict(scale=1000)), "use at most 341"),
  "remote": (dict(output=dict(folder="gs://b/x")), "only local paths work"),
  "no image": (dict(image="missing.png"), "give a PNG, JPEG"),
  "no clip": (dict(clip="missing.mp4"), "give an MP4"),
  "both": (dict(clip="a.mp4", image="a.png"), "choose one"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistake_is_one_sentence_before_anything_is_written(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
  mistake: str,
) -> None:
  changes, words = _MISTAKES[mistake]
  if words is None:  # Surplus separators at the end are no mistake.
    request = request_lib.Request.from_config(_config(tmp_path, **changes))
    assert request.prompts == ("slow 1 vertical",)
    return
  _assert_refused(_config(tmp_path, **changes), words, monkeypatch, capsys)
  assert not (tmp_path / "out").exists()


def _assert_refused(config: Any, words: str, monkeypatch, capsys) -> None:
  """Asserts that a config is refused before the first chunk is compiled."""

  def too_late(*unused, **unused_too):
    raise AssertionError("the rollout was reached")

  monkeypatch.setattr(sample, "_write_videos", too_late)
  with pytest.raises(cli.USER_ERRORS) as error:
    sample.sample(config)
  with pytest.raises(SystemExit) as end:
    cli.fail(error.value)
  said = capsys.readouterr().err
  assert end.value.code == 2
  assert said.startswith("error: ") and said.count("\n") == 1
  assert words in said and "Traceback" not in said


def test_corrupt_checkpoint_is_refused(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
  seed: int,
) -> None:
  files = [p for p in (tmp_path / "model").rglob("*") if p.stat().st_size]
  files = sorted(p for p in files if p.is_file())
  rng = np.random.default_rng(seed)
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  words = str(tmp_path / "model")
  _assert_refused(_config(tmp_path), words, monkeypatch, capsys)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["text", "half a picture"])
def test_broken_image_is_refused(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
  content: str,
) -> None:
  path = tmp_path / "given.png"
  noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
  Image.fromarray(noise).save(path)
  data = path.read_bytes()
  path.write_bytes(b"text" if content == "text" else data[: len(data) // 2])
  config = _config(tmp_path, image=str(path))
  _assert_refused(config, "cannot be read", monkeypatch, capsys)
  assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_refused(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
) -> None:
  (tmp_path / "file").write_text("")
  config = _config(tmp_path)
  # Tests may run as root, who may write anywhere but below a file.
  config.output.folder = str(tmp_path / "file" / "out")
  _assert_refused(config, "choose a folder", monkeypatch, capsys)


def test_failure_on_the_way_leaves_no_file(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  append, calls = video_files.VideoFiles.append, []

  def failing(self, frames):
    calls.append(frames)
    if len(calls) == 2:
      raise RuntimeError("a fault")
    return append(self, frames)

  monkeypatch.setattr(video_files.VideoFiles, "append", failing)
  with pytest.raises(RuntimeError):
    sample.sample(_config(tmp_path))
  assert _names(tmp_path) == []


def test_a_stopped_video_is_finished_with_the_frames_so_far(
  tmp_path: pathlib.Path,
  model: model_lib.VideoModel,
  monkeypatch: pytest.MonkeyPatch,
  capsys,
) -> None:
  append, writer = video_files.VideoFiles.append, mp4.Mp4Writer.append

  def stopped(self, frames):
    count = append(self, frames)
    if count:  # while the next chunk is computed
      os.kill(os.getpid(), signal.SIGTERM)
    return count

  def slow(self, frames):
    # The second signal comes between two files: all get the same frames.
    if len(frames):
      os.kill(os.getpid(), signal.SIGTERM)
    writer(self, frames)

  monkeypatch.setattr(video_files.VideoFiles, "append", stopped)
  monkeypatch.setattr(mp4.Mp4Writer, "append", slow)
  with signals.raised(), pytest.raises(signals.Interrupted) as end:
    sample.sample(_config(tmp_path, seconds=6.0))
  assert end.value.code == 143
  videos = sorted((tmp_path / "out").glob("*.mp4"))
  assert [len(mp4.read_mp4(path)[0]) for path in videos] == [3, 3]
  Image.open(tmp_path / "out" / "sample-sheet.png").verify()
  report = json.loads((tmp_path / "out" / "sample.json").read_text())
  assert (report["frames"], report["frames_asked"]) == (3, 24)
  assert report["interrupted"] == "stopped by SIGTERM"
  assert len(_names(tmp_path)) == 4
  assert "2 videos of 3 of 24 frames" in capsys.readouterr().out


def test_a_prompt_of_several_is_made_again_alone_with_its_own_seed(
  tmp_path: pathlib.Path, model: model_lib.VideoModel
) -> None:
  prompts = ["slow 3 vertical", "fast 1 diagonal", "slow 7 vertical"]
  config = _config(tmp_path, seconds=1.5, prompts="; ".join(prompts), seed=5)
  report = sample.sample(config)
  assert report["seeds"] == [5, 6, 7]
  together = (tmp_path / "out" / report["videos"][2]).with_name(
    "sample-2-slow-7-vertical-seed7.mp4"
  )
  alone = _config(
    tmp_path, seconds=1.5, prompts=prompts[2], seed=report["seeds"][2]
  )
  alone.output.name = "alone"
  (name,) = sample.sample(alone)["videos"]
  videos = [
    mp4.read_mp4(x)[0].astype(int) for x in (together, together.with_name(name))
  ]
  # Programs of other batch sizes round in other orders.
  assert np.abs(videos[0] - videos[1]).mean() < 1
  assert np.abs(videos[0] - np.roll(videos[1], 1, axis=0)).mean() > 1


def test_another_seed_keeps_the_earlier_video_and_says_what_it_replaces(
  tmp_path: pathlib.Path, model: model_lib.VideoModel, capsys
) -> None:
  def run(**changes):
    config = _config(tmp_path, seconds=0.5, prompts="slow 3 vertical")
    config.update(changes)
    sample.sample(config)
    return capsys.readouterr().out

  assert "replaces" not in run()
  first = tmp_path / "out" / "sample-0-slow-3-vertical.mp4"
  before = first.read_bytes()
  assert "replaces 1 files of another request" in run(seed=9)
  assert first.read_bytes() == before
  assert first.with_stem("sample-0-slow-3-vertical-seed9").exists()
  assert "replaces" not in run(seed=9)
  assert "such as sample-0-slow-3-vertical.mp4" in run(seconds=0.75)
