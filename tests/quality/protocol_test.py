"""A whole run on a tiny model: made, stopped, shared, measured, judged."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import evaluate
from videomla_jax.generation import mp4
from videomla_jax.generation import networks as networks_lib
from videomla_jax.quality import making
from videomla_jax.quality import prompt_lists
from videomla_jax.quality import protocol
from videomla_jax.runtime import config_reader
from videomla_jax.small_world import prompts as small_prompts

_PROMPTS = "a slow three moving horizontally; a fast two moving vertically"


@pytest.fixture
def config(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  tiny_project.shrink(monkeypatch)
  made = tiny_project.config("evaluate", "vbench,model=latent,runlocal")
  tiny_project.checkpoint(tmp_path / "model", np.random.default_rng(seed))
  made.checkpoint = str(tmp_path / "model")
  made.prompts = _PROMPTS
  made.samples, made.batch, made.seconds = 2, 3, 1.5
  made.output.update(folder=str(tmp_path / "out"), scale=1)
  return made


def _files(tmp_path: pathlib.Path) -> dict[str, bytes]:
  folder = tmp_path / "out" / "vbench" / "videos"
  return {x.name: x.read_bytes() for x in folder.iterdir()}


def test_a_run_makes_measures_and_reports_every_video(
  config: Any, tmp_path: pathlib.Path
) -> None:
  config.record = str(tmp_path / "record.jsonl")
  report = evaluate.evaluate(config)
  names = [x["file"] for x in report["videos"]]
  assert names == [f"{p}-{i}.mp4" for p in _PROMPTS.split("; ") for i in (0, 1)]
  assert {*names} == {*_files(tmp_path)}
  assert report["settings"]["chunks"] == dict(first=3, following=3)
  assert report["summary"]["chunk_ratio"]["n"] == 4
  assert {x["frames"] for x in report["videos"]} == {6}
  assert len({x["seed"] for x in report["videos"]}) == 4
  stored = json.loads((tmp_path / "out" / "vbench.json").read_text())
  assert stored == json.loads(json.dumps(report))
  (line,) = (tmp_path / "record.jsonl").read_text().splitlines()
  assert json.loads(line)["summary"] == report["summary"]


def test_what_was_stopped_goes_on_with_the_same_bytes(
  config: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  evaluate.evaluate(config)
  whole = _files(tmp_path)
  folder = tmp_path / "out" / "vbench" / "videos"
  for name in [*whole][:2]:
    (folder / name).unlink()
  made: list[str] = []
  make = making.make
  monkeypatch.setattr(
    making,
    "make",
    lambda videos, *a, **k: (made.extend(x.file for x in videos), make(videos, *a, **k)),
  )  # fmt: skip
  kept = {n: (folder / n).stat().st_mtime_ns for n in [*whole][2:]}
  evaluate.evaluate(config)
  assert sorted(made) == sorted([*whole][:2])
  assert _files(tmp_path) == whole
  assert {n: (folder / n).stat().st_mtime_ns for n in kept} == kept


def test_an_interrupted_batch_leaves_no_video(
  config: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  written = mp4.Mp4Writer.append
  calls: list[int] = []

  def append(writer: mp4.Mp4Writer, frames: np.ndarray) -> None:
    calls.append(len(frames))
    if len(calls) == 8:  # The first three videos have two pieces each.
      raise KeyboardInterrupt
    written(writer, frames)

  monkeypatch.setattr(mp4.Mp4Writer, "append", append)
  config.batch = 3
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(config)
  assert len(_files(tmp_path)) == 3
  monkeypatch.setattr(mp4.Mp4Writer, "append", written)
  assert len(evaluate.evaluate(config)["videos"]) == 4


def test_two_shares_make_what_one_process_makes(
  config: Any, tmp_path: pathlib.Path
) -> None:
  evaluate.evaluate(config)
  alone = _files(tmp_path)
  config.output.folder = str(tmp_path / "shared")
  folder = tmp_path / "shared" / "vbench" / "videos"
  config.share = "1/2"
  first = evaluate.evaluate(config)
  assert (first["num_missing"], len(first["videos"])) == (2, 2)
  before = {x.name for x in folder.iterdir()}
  config.share = "2/2"
  second = evaluate.evaluate(config)
  assert second["num_missing"] == 0
  after = {x.name: x.read_bytes() for x in folder.iterdir()}
  assert before < {*after} and after == alone


def test_other_settings_are_refused_and_nothing_is_lost(
  config: Any, tmp_path: pathlib.Path, seed: int
) -> None:
  evaluate.evaluate(config)
  before = _files(tmp_path)
  config.sampler.num_steps = 3
  with pytest.raises(ValueError, match="holds videos of sampler="):
    evaluate.evaluate(config)
  config.sampler.num_steps = 2
  config.batch = 2  # another program
  with pytest.raises(ValueError, match="holds videos of batch=3, and 2 is"):
    evaluate.evaluate(config)
  config.batch = 3
  # The same folder with other weights is another model.
  rng = np.random.default_rng(seed + 1)
  tiny_project.checkpoint(tmp_path / "other", rng)
  (tmp_path / "model").rename(tmp_path / "old")
  (tmp_path / "other").rename(tmp_path / "model")
  with pytest.raises(ValueError, match="holds videos of weights="):
    evaluate.evaluate(config)
  assert _files(tmp_path) == before


def test_every_part_of_a_release_counts_as_weights(
  tmp_path: pathlib.Path,
) -> None:
  for name, file in (("dit", "sha256.json"), ("tokenizer", "spiece.model")):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text("1")
  networks = networks_lib.Networks(checkpoint=str(tmp_path))
  before = protocol.weights_of(networks)
  assert {*before} == {"dit", "tokenizer"}
  (tmp_path / "tokenizer" / "spiece.model").write_text("2")
  after = protocol.weights_of(networks)
  assert before["dit"] == after["dit"]
  assert before["tokenizer"] != after["tokenizer"]
  # Stored embeddings take the place of the text encoder and of its tokenizer.
  (tmp_path / "stored").write_text("3")
  embedded = dataclasses.replace(networks, embeddings=str(tmp_path / "stored"))
  assert {*protocol.weights_of(embedded)} == {"dit", "embeddings"}
  (tmp_path / "vae").mkdir()
  with pytest.raises(ValueError, match=r"of 'vae' has no file 'sha256\.json'"):
    protocol.weights_of(networks)


def test_a_video_that_was_cut_is_named_and_the_others_are_measured(
  config: Any, tmp_path: pathlib.Path
) -> None:
  evaluate.evaluate(config)
  folder = tmp_path / "out" / "vbench" / "videos"
  path = next(folder.iterdir())
  mp4.write_mp4(path, np.zeros((2, 24, 24, 3), np.uint8), fps=4)
  with pytest.raises(
    ValueError, match=r"has 2 frames, and 6 are asked; remove"
  ):
    evaluate.evaluate(config)
  assert len(_files(tmp_path)) == 4


def test_vbench_that_is_not_there_is_told_and_measures_run(
  config: Any, capsys
) -> None:
  config.judging.dimensions = "imaging_quality; scene"
  report = evaluate.evaluate(config)
  assert "VBench does not judge: the package vbench" in capsys.readouterr().out
  assert {*report["judging"]["not_judged"]} == {"imaging_quality", "scene"}
  assert report["summary"]["temporal_flickering"]["n"] == 4
  folder = pathlib.Path(config.output.folder) / "vbench" / "videos"
  (folder / "notes.txt").touch()  # VBench would look for videos named .txt
  report = evaluate.evaluate(config)
  assert "'notes.txt'" in report["judging"]["not_judged"]["scene"]
  config.judging.python = "/none/python"
  with pytest.raises(ValueError, match="cannot be started"):
    evaluate.evaluate(config)


def test_earlier_results_stand_beside_the_papers(
  config: Any, tmp_path: pathlib.Path
) -> None:
  rows = {x: [0.5, []] for x in prompt_lists.scores.SIX}
  (tmp_path / "a.json").write_text(json.dumps(rows))
  config.judging.update(length="30s", results=str(tmp_path / "a.json"))
  report = evaluate.evaluate(config)
  assert report["judging"]["totals"] == {"overall": 0.5}
  text = (tmp_path / "out" / "vbench.md").read_text()
  assert "| VideoMLA | 0.601 |" in text and "| these videos | 0.500 |" in text


def test_a_folder_is_measured_without_a_model(
  tmp_path: pathlib.Path, seed: int
) -> None:
  config = tiny_project.config("evaluate", "videos")
  config.videos = str(tmp_path / "videos")
  config.output.folder = str(tmp_path / "out")
  with pytest.raises(ValueError, match="is no folder that can be read"):
    evaluate.evaluate(config)
  (tmp_path / "videos").mkdir()
  with pytest.raises(ValueError, match="has no videos"):
    evaluate.evaluate(config)
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
  mp4.write_mp4(tmp_path / "videos" / "a-0.mp4", frames, fps=8)
  (tmp_path / "videos" / "b-0.mp4").write_bytes(b"no video")
  config.chunks.update(first=3, following=4)
  with pytest.raises(ValueError, match=r"b-0\.mp4' cannot be measured"):
    evaluate.evaluate(config)
  (tmp_path / "videos" / "b-0.mp4").unlink()
  config.record = str(tmp_path / "record.jsonl")
  report = evaluate.evaluate(config)
  (video,) = report["videos"]
  assert (video["video"], video["frames"]) == ("a-0.mp4", 8)
  (line,) = (tmp_path / "record.jsonl").read_text().splitlines()
  stored = json.loads(line)["videos"]["a-0.mp4"]
  assert stored["measures"] == video["measures"]
  config.chunks.first = 0
  with pytest.raises(ValueError, match="both be given, or both be 0"):
    evaluate.evaluate(config)


def test_prompts_are_named_in_one_way(config: Any) -> None:
  config.prompts_file = "list.txt"
  with pytest.raises(ValueError, match="are both given, or both empty"):
    evaluate.evaluate(config)
  config.prompts_file, config.texts_file = "", "texts.txt"
  with pytest.raises(ValueError, match="texts_file='texts.txt' has no effect"):
    evaluate.evaluate(config)
  config.texts_file, config.share = "", "0/1"
  with pytest.raises(ValueError, match="share='0/1' must be a part"):
    evaluate.evaluate(config)


def test_small_models_are_given_prompts_that_training_never_showed() -> None:
  config = tiny_project.config("evaluate", "vbench,model=student")
  held_out = [x.text() for x in small_prompts.held_out_prompts()]
  assert [*config_reader.split(config.prompts)] == held_out


@pytest.mark.parametrize(
  ("arg", "frames"), [("", 81), (",length=30s", 477), (",length=60s", 957)]
)
def test_lengths_are_whole_chunks_of_wan(arg: str, frames: int) -> None:
  config = tiny_project.config("evaluate", f"vbench{arg}")
  values = {k: v for k, v in config.items() if k != "suite"}
  asked = config_reader.read(protocol.Protocol, values)
  assert round(asked.seconds * 16) == frames
  assert asked.judging.length == (arg.partition("=")[2] or "short")


def test_wans_chunks_are_nine_frames_then_twelve(
  tmp_path: pathlib.Path,
) -> None:
  config = tiny_project.config("evaluate", "vbench,model=wan_tiny,runlocal")
  config.prompts, config.prompts_file = "a fox", ""
  values = {k: v for k, v in config.items() if k != "suite"}
  asked = config_reader.read(protocol.Protocol, values)
  chunks = protocol.chunks_of(asked.prepare(["a fox"]))
  assert (chunks.first, chunks.following) == (9, 12)
