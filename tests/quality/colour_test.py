"""Tests of judging models of the colour world, with tiny random networks."""

import json
import pathlib
from typing import Any

from flax import nnx
import numpy as np
from PIL import Image
import pytest

from tests import tiny_colour
from tests import tiny_project
from videomla_jax import evaluate
from videomla_jax.models import window as window_lib
from videomla_jax.quality import colour
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import judge as judge_lib
from videomla_jax.small_world.colour import measures as measures_lib
from videomla_jax.small_world.colour import summaries


def _ignorant(
  path: str, **recipe: object
) -> tuple[glyphs.Reader, judge_lib.Report]:
  """Returns a reader that was never trained."""
  del path, recipe
  report = judge_lib.Report(identity=0.1, identity_clean=0.1, train_seconds=0.0)
  return glyphs.Reader(dropout=0.0, rngs=nnx.Rngs(0)), report


@pytest.fixture
def config(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  tiny_colour.shrink(monkeypatch)
  tiny_project.shrink(monkeypatch)
  monkeypatch.setattr(judge_lib, "load_or_train", _ignorant)
  folder = tiny_colour.write_vae(tmp_path / "vae")
  model = tiny_colour.video("latent", folder, seed)
  model_lib.save(tmp_path / "model", model)
  made = tiny_project.config(
    "evaluate", f"colour,model={tmp_path / 'model'},windows,runlocal"
  )
  made.judge = str(tmp_path / "judge.npz")
  made.output.folder = str(tmp_path / "out")
  return made


def test_rows_of_a_model_differ_by_their_windows(
  config: Any, tmp_path: pathlib.Path, capsys, monkeypatch
) -> None:
  seen: list[Any] = []
  measure = measures_lib.measure

  def spy(videos, *others):
    seen.append(videos)
    return measure(videos, *others)

  monkeypatch.setattr(measures_lib, "measure", spy)
  config.record = str(tmp_path / "record.jsonl")
  report = evaluate.evaluate(config)
  rows = ["model", "sink0", "average", "full"]
  # The model's own window has a sink of one frame.
  assert [*report["windows"]] == rows and report["same_as_own"] == ["sink1"]
  assert [*report["summary"]] == [*rows, "real"]
  assert all(x.shape == (2, 32, 64, 64, 3) for x in seen)
  assert all(x.dtype == np.uint8 for x in seen)
  own, *others, real = seen
  # Six latent frames are 21 pixel frames, and nothing leaves before that.
  for videos in others:
    np.testing.assert_array_equal(videos[:, :21], own[:, :21])
    assert (videos[:, 21:] != own[:, 21:]).any()
  assert (real != own).any()
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert names == {
    *("colour.md", "colour.json"),
    *(f"colour-{row}.png" for row in (*rows, "real")),
  }
  Image.open(tmp_path / "out" / "colour-full.png").verify()
  page = (tmp_path / "out" / "colour.md").read_text()
  assert page.strip() in capsys.readouterr().out
  for words in ("full - model", "real - model", "| memory_out_long", "`sink1`"):
    assert words in page
  stored = json.loads((tmp_path / "out" / "colour.json").read_text())
  assert stored == report
  assert all(len(x) == 2 for x in stored["per_video"]["model"].values())
  (line,) = (tmp_path / "record.jsonl").read_text().splitlines()
  assert json.loads(line)["summary"] == report["summary"]


def test_videos_do_not_depend_on_the_batch(config: Any, seed: int) -> None:
  config.windows, config.videos, config.seed = "", 3, seed
  asked = colour.config_reader.read(colour.ColourWorld, _values(config))
  job = asked._prepare([x.text() for x in colour.held_out(3)])
  pipeline = job.source.load()
  two, three = (
    colour.make(job, pipeline, batch=n, name="model").astype(int)
    for n in (2, 3)
  )
  assert two.shape == (3, 32, 64, 64, 3)
  # Another batch is another program, which may round otherwise.
  assert np.abs(two - three).max() <= 1
  assert np.abs(two[0] - two[2]).max() > 1


def test_real_clips_show_their_prompts_whatever_the_batch(seed: int) -> None:
  prompts = colour.held_out(3)
  whole, parts = (
    colour.real_clips(prompts, num_frames=16, seed=seed, batch=n)
    for n in (3, 2)
  )
  np.testing.assert_array_equal(whole, parts)
  reader, _ = _ignorant("")
  values = measures_lib.measure(whole, prompts, reader)
  found = summaries.summarise(values)
  for name in ("colour", "background", "wall"):
    assert found[f"{name}/all"].mean == 1.0, name


@pytest.mark.parametrize("number", [1, 2, 7, 24, 48])
def test_half_of_the_prompts_or_more_have_a_wall(number: int) -> None:
  prompts = colour.held_out(number)
  assert len(prompts) == number
  assert sum(bool(x.wall) for x in prompts) >= number / 2
  assert len({x.text() for x in prompts}) == min(number, 24)


def test_windows_are_those_of_their_names() -> None:
  own = window_lib.Window(sink_frames=3, local_frames=9, sink="average")
  made = {name: of(own, 0.5) for name, of in colour.WINDOWS.items()}
  sizes = {
    name: (x.sink, x.sink_frames, x.local_frames) for name, x in made.items()
  }
  assert sizes == {
    "sink0": ("first", 0, 9),
    "sink1": ("first", 1, 9),
    "average": ("average", 3, 9),
    "full": ("first", 3, None),
  }
  assert made["average"].sink_decay == 0.5


def _values(config: Any) -> dict[str, Any]:
  return {k: v for k, v in config.items() if k != "suite"}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(seconds=0.9), "seconds=0.9 is 14 frames"),
    (dict(seconds=1.0), "windows=.* has no effect on seconds=1.0"),
    (dict(checkpoint="missing"), "is not a directory"),
    (dict(checkpoint=""), "checkpoint or judge is empty"),
    (dict(judge=""), "checkpoint or judge is empty"),
    (dict(windows="sink2"), "windows has 'sink2'.*sink0; sink1"),
    (dict(windows="", sink_decay=0.5), "sink_decay=0.5 has no effect"),
    (dict(videos=1), "batch=2 must be at most videos=1"),
    (dict(videos=0), "videos=0 must be"),
    (dict(sampler=dict(kind="magic")), "sampler.kind='magic'"),
    (dict(reader=dict(num_crops=1)), "reader.num_crops=1 must be"),
  ],
)
def test_mistakes_are_refused_before_a_judge_is_trained(
  config: Any, changes: dict[str, Any], words: str, monkeypatch
) -> None:
  monkeypatch.setattr(judge_lib, "load_or_train", None)
  config.update(changes)
  with pytest.raises(ValueError, match=words):
    evaluate.evaluate(config)


def test_other_models_and_folders_are_refused_before_a_judge_is_trained(
  config: Any, tmp_path: pathlib.Path, seed: int, monkeypatch
) -> None:
  monkeypatch.setattr(judge_lib, "load_or_train", None)
  config.output.folder = str(tmp_path / "model" / "config.json" / "out")
  with pytest.raises(ValueError, match="choose a folder"):
    evaluate.evaluate(config)
  tiny_project.checkpoint(tmp_path / "digits", np.random.default_rng(seed))
  config.checkpoint = str(tmp_path / "digits")
  with pytest.raises(ValueError, match="no model of the colour world"):
    evaluate.evaluate(config)
  assert not (tmp_path / "out").exists()
