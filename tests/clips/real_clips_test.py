"""Real video through `prepare`, once here and once through Apache Beam.

`make test-clips` fetches the clips; VIDEOMLA_CLIPS_DIR names their folder.
"""

import csv
import os
import pathlib
import shutil

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import tiny_project
from tests.clips import fetch
from videomla_jax import prepare
from videomla_jax.data import dataset
from videomla_jax.data import encode
from videomla_jax.media import clips

CLIPS = pathlib.Path(os.environ.get("VIDEOMLA_CLIPS_DIR", ".clips"))
# Height, width, frames per second, frames: known facts of the files. The last
# has 176 columns of pixels that are wider than high, 128 to 117.
FACTS = {
  "bigbuckbunny.mp4": (720, 1280, 25.0, 132),
  "bikes.mp4": (272, 640, 25.0, 250),
  "carphone_pristine.mp4": (144, 193, 29.97, 120),
}
ROWS = [
  ["bigbuckbunny.mp4", "a big rabbit in a meadow", 6.1, 5.28, 25],
  ["bikes.mp4", "people ride bikes", 5.2, 10.0, 25],
  ["carphone_pristine.mp4", "a man talks in a car", 4.0, 4.0, 29.97],
  ["cut_off.mp4", "a file that ends too early", 6.0, 5.28, 25],
  ["bikes.mp4", "people ride bikes", 5.2, 10.0, 25],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("clips")
  (root / "videos").mkdir()
  for name in fetch.NAMES:
    shutil.copy(CLIPS / name, root / "videos" / name)
  # Without its index, which is at the end.
  data = (CLIPS / "bigbuckbunny.mp4").read_bytes()
  (root / "videos" / "cut_off.mp4").write_bytes(data[: len(data) // 2])
  with (root / "table.csv").open("w", newline="") as file:
    header = ["video", "caption", "aesthetic score", "seconds", "fps"]
    csv.writer(file).writerows([header, *ROWS])
  return root


def make(root, output, **changes):
  config = tiny_project.config("prepare", "tiny")
  config.update(
    videos=str(root / "videos"),
    table=str(root / "table.csv"),
    output=str(output),
    test_fraction=0.0,
    max_clips=3,
  )
  config.clip.update(height=32, width=48, num_frames=17, fps=8.0)
  config.update(changes)
  return prepare.prepare(config), dataset.locate(output)


def records(folder):
  source = tfds.builder_from_directory(folder).as_data_source("train")
  return sorted(source, key=lambda r: (r["index"], r["start"]))


@pytest.mark.parametrize("name", fetch.NAMES)
def test_files_say_what_is_known_of_them(name):
  height, width, fps, num_frames = FACTS[name]
  with clips.open_video(CLIPS / name) as video:
    facts = video.facts()
  assert facts[:2] == (height, width)
  assert facts.fps == pytest.approx(fps, abs=0.01)
  assert facts.seconds == pytest.approx(num_frames / fps, abs=0.1)


@pytest.mark.parametrize("name", fetch.NAMES[:2])
def test_at_the_rate_of_the_file_clips_are_its_frames(name):
  height, width, _, _ = FACTS[name]
  with av.open(str(CLIPS / name)) as file:
    expected = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)][:50]
    rate = float(file.streams.video[0].average_rate)
  shape = clips.ClipShape(height=height, width=width, num_frames=50, fps=rate)
  with clips.open_video(CLIPS / name) as video:
    (clip,) = video.clips(shape)
  np.testing.assert_array_equal(clip, expected)


def test_real_clips_become_records_and_all_else_is_counted(root, tmp_path):
  report, folder = make(
    root, tmp_path, filters=dict(min_aesthetic_score=5.0, min_height=200)
  )
  assert report["inputs"] == len(ROWS)
  assert report["excluded"] == {"duplicate": 1, "min_aesthetic_score": 1}
  assert (report["used"], report["quarantined"]) == (2, 1)
  assert "cut_off.mp4" in (folder / "quarantine.jsonl").read_text()
  made = records(folder)
  # 17 frames at 8 a second are 2.125 s: twice in 5.28 s, at most three times.
  assert [(r["video"].decode(), float(r["start"])) for r in made] == [
    ("bigbuckbunny.mp4", 0.0),
    ("bigbuckbunny.mp4", 2.125),
    ("bikes.mp4", 0.0),
    ("bikes.mp4", 2.125),
    ("bikes.mp4", 4.25),
  ]
  shape = clips.ClipShape(height=32, width=48, num_frames=17, fps=8.0)
  with clips.open_video(CLIPS / "bikes.mp4") as video:
    frames = [*video.clips(shape, max_clips=3)][2]
  encoder = encode.load(encode.EncoderConfig(checkpoint=encode.RANDOM))
  expected = encoder.latents(frames)
  np.testing.assert_allclose(
    np.float32(made[4]["latents"]), expected, rtol=1e-3, atol=1e-3
  )


def test_beam_makes_the_same_records(root, tmp_path):
  here, folder = make(root, tmp_path / "here")
  beam, other = make(root, tmp_path / "beam", runner="beam")
  for name in ("inputs", "used", "excluded", "quarantined", "clips"):
    assert here[name] == beam[name]
  for one, two in zip(records(folder), records(other), strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
