"""Tests of judging models of the colour world, with tiny random networks."""

import json
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest

from tests import tiny_colour
from tests import tiny_project
from videomla_jax import evaluate
from videomla_jax.quality import colour
from videomla_jax.quality import colour_videos
from videomla_jax.runtime import config_reader
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import judge as judge_lib
from videomla_jax.small_world.colour import measures as measures_lib


def _ignorant(
  path: str, **recipe: object
) -> tuple[glyphs.Reader, judge_lib.Report]:
  """Returns a reader that was never trained."""
  del path, recipe
  report = judge_lib.Report(identity=0.1, identity_clean=0.1, train_seconds=0.0)
  return glyphs.Reader(dropout=0.0, rngs=nnx.Rngs(0)), report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("colour")
  with pytest.MonkeyPatch.context() as patch:
    tiny_colour.shrink(patch)
    folder = tiny_colour.write_vae(root / "vae")
    made = tiny_colour.video("latent", folder, seed=0)
    # Of larger weights attention makes a difference that pixels show.
    made.dit = jax.tree.map(lambda x: 4 * x, made.dit)
    model_lib.save(root / "model", made)
  return root / "model"


@pytest.fixture
def config(
  model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
  tiny_colour.shrink(monkeypatch)
  tiny_project.shrink(monkeypatch)
  monkeypatch.setattr(judge_lib, "load_or_train", _ignorant)
  made = tiny_project.config(
    "evaluate", f"colour,model={model},windows,runlocal"
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
  # An average of 0.999 changes too little of two seconds for whole numbers.
  config.sink_decay = 0.0
  report = evaluate.evaluate(config)
  rows = ["model", "sink0", "average", "full"]
  # The model's own window has a sink of one frame.
  assert [*report["windows"]] == rows and report["same_as_own"] == ["sink1"]
  assert [*report["summary"]] == [*rows, "real"]
  assert all(x.shape == (2, 32, 64, 64, 3) for x in seen)
  assert all(x.dtype == np.uint8 for x in seen)
  own, *others, real = (x.astype(int) for x in seen)
  # Six latent frames are 21 pixel frames, and nothing leaves before that; a
  # cache of another size is another program, which may round otherwise.
  for videos in others:
    apart = np.abs(videos - own)
    assert apart[:, :21].max() <= 1
    assert apart[:, 21:].max() > 1
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


def test_a_trial_does_not_replace_the_reader_of_the_full_recipe() -> None:
  whole, trial = (
    config_reader.read(
      colour.ColourWorld, _values(tiny_project.config("evaluate", arg))
    )
    for arg in ("colour", "colour,runlocal")
  )
  full = judge_lib.Recipe()
  assert whole.reader == colour.Reader(
    num_crops=full.num_crops, num_epochs=full.num_epochs
  )
  assert trial.reader != whole.reader and trial.judge != whole.judge
  assert whole.windows == trial.windows == ()


def _values(config: Any) -> dict[str, Any]:
  return {k: v for k, v in config.items() if k != "suite"}


def test_videos_do_not_depend_on_the_batch(config: Any, seed: int) -> None:
  config.windows, config.videos, config.seed = "", 3, seed
  asked = config_reader.read(colour.ColourWorld, _values(config))
  job = asked._prepare([x.text() for x in colour_videos.held_out(3)])
  pipeline = job.source.load()
  two, three = (
    colour_videos.make(job, pipeline, batch=n, name="model").astype(int)
    for n in (2, 3)
  )
  assert two.shape == (3, 32, 64, 64, 3)
  # Another batch is another program, which may round otherwise.
  assert np.abs(two - three).max() <= 1
  assert np.abs(two[0] - two[2]).max() > 1


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
  config: Any,
  model: pathlib.Path,
  tmp_path: pathlib.Path,
  seed: int,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setattr(judge_lib, "load_or_train", None)
  config.output.folder = str(model / "config.json" / "out")
  with pytest.raises(ValueError, match="choose a folder"):
    evaluate.evaluate(config)
  tiny_project.checkpoint(tmp_path / "digits", np.random.default_rng(seed))
  config.checkpoint = str(tmp_path / "digits")
  with pytest.raises(ValueError, match="no model of the colour world"):
    evaluate.evaluate(config)
  assert not (tmp_path / "out").exists()
