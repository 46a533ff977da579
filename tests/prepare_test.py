"""Tests of prepared data: what is stored, resumed, counted and refused."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import tiny_project
from tests import tiny_videos
from videomla_jax import prepare
from videomla_jax.data import dataset
from videomla_jax.data import encode
from videomla_jax.data import plans
from videomla_jax.data import preparation
from videomla_jax.data import record_files
from videomla_jax.data import shards
from videomla_jax.generation import mp4
from videomla_jax.runtime import config_reader

SEED = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Config, report and folder of a finished data set."""
  root = tmp_path_factory.mktemp("prepare")
  videos = tiny_videos.write(root / "videos", SEED)
  config = tiny_videos.config(videos, root / "data")
  report = prepare.prepare(config)
  return config, report, dataset.locate(root / "data")


def _plan(config) -> plans.Plan:
  return prepare.make_plan(config_reader.read(prepare.Request, config))


def changed(made, tmp_path, **changes):
  """The config of another data set of the same videos."""
  return tiny_videos.config(made[0].videos, tmp_path, **changes)


def read(folder, split="train"):
  """All records, in the order of their videos and times."""
  source = tfds.builder_from_directory(folder).as_data_source(split)
  return sorted(source, key=lambda r: (r["index"], r["start"]))


def assert_same(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_every_input_is_used_or_counted(made):
  _, report, folder = made
  assert report["inputs"] == 6
  assert report["excluded"] == {"no caption": 1, "too short": 1}
  assert (report["used"], report["quarantined"]) == (3, 1)
  assert report["clips"] == {"train": 1 + 2 + 3, "test": 0}
  (bad,) = map(
    json.loads, (folder / "quarantine.jsonl").read_text().splitlines()
  )
  assert bad["video"] == "broken.mp4"
  assert "not decodable" in bad["reason"]


def test_latents_are_those_of_the_decoded_frames(made):
  config, _, folder = made
  record = next(r for r in read(folder) if r["video"] == b"deep/c.mp4")
  frames, _ = mp4.read_mp4(f"{config.videos}/deep/c.mp4")
  frames = frames[:9].reshape(9, 32, 2, 32, 2, 3).mean((2, 4))  # about Lanczos
  encoder = encode.load(encode.EncoderConfig(checkpoint=encode.RANDOM))
  expected = encoder.latents(frames.round().astype(np.uint8))
  found = record["latents"].astype(np.float32)
  assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
  (text,) = encoder.texts(["a brown fox jumps"])
  np.testing.assert_array_equal(record["text"], record_files.pack(text))
  assert record["caption"] == b"a brown fox jumps"
  assert (record["height"], record["width"], record["fps"]) == (64, 64, 8)
  assert record["seconds"] == pytest.approx(31 / 8, abs=1e-3)


def test_clips_of_a_video_follow_each_other(made):
  starts = [r["start"] for r in read(made[2]) if r["video"] == b"deep/c.mp4"]
  assert starts == [0.0, 9 / 8, 18 / 8]


def test_going_on_after_an_interruption_equals_one_run(
  made, tmp_path, monkeypatch
):
  config = changed(made, tmp_path)
  run, ended = shards.run, []

  def stops_at_third(job, on_item):
    if len(ended) == 2:
      raise KeyboardInterrupt
    run(job, on_item)
    ended.append(job.data)

  monkeypatch.setattr(shards, "run", stops_at_third)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(config)
  monkeypatch.setattr(shards, "run", run)
  written = [path.stat().st_mtime_ns for path in ended]
  plan = _plan(config)
  assert not preparation.is_finished(plan)
  preparation.run(plan)
  assert [path.stat().st_mtime_ns for path in ended] == written
  report = preparation.finish(plan)
  assert report["clips"] == made[1]["clips"]
  assert report["identity"] == made[1]["identity"]
  assert_same(read(plan.folder), read(made[2]))
  assert not plan.work.exists()
  assert prepare.prepare(config) == json.loads(json.dumps(report))


# Ends itself by SIGKILL just before its K-th change of the file system.
_KILLED = """
import os, pathlib, signal, sys
from tests import tiny_videos
from videomla_jax import prepare
videos, output, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
changes = []
def see(event, args):
  if event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
    return
  if str(args[0]).startswith(output):
    changes.append(event)
    if len(changes) == last:
      os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(see)
prepare.prepare(tiny_videos.config(videos, pathlib.Path(output)))
print("changes:", len(changes))
"""


def test_killed_at_any_moment_it_goes_on(made, tmp_path, seed):
  rng = np.random.default_rng(seed)

  def start(output, last):
    return subprocess.run(
      [sys.executable, "-c", _KILLED, made[0].videos, str(output), str(last)],
      cwd=pathlib.Path(__file__).parents[1],
      capture_output=True,
      text=True,
    )

  # An uninterrupted run makes 30 changes.
  for most in (20, 8):
    done = start(tmp_path, rng.integers(1, most + 1))
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    with pytest.raises(ValueError, match="cannot be read"):
      dataset.read_report(tmp_path)
  report = prepare.prepare(changed(made, tmp_path))
  assert report["clips"] == made[1]["clips"]
  folder = dataset.locate(tmp_path)
  dataset.verify(folder, digests=True)
  assert_same(read(folder), read(made[2]))
  names = lambda root: {path.name for path in root.iterdir()}
  assert names(folder) == names(made[2])
  assert names(folder.parent) == names(made[2].parent)


def test_beam_makes_the_same_data(made, tmp_path):
  pytest.importorskip("apache_beam")
  config = changed(made, tmp_path, runner="beam")
  report = prepare.prepare(config)
  assert report["clips"] == made[1]["clips"]
  assert_same(read(dataset.locate(tmp_path)), read(made[2]))


def test_held_out_videos_share_no_clip_with_training(made, tmp_path):
  report = prepare.prepare(changed(made, tmp_path, test_fraction=0.7))
  folder = dataset.locate(tmp_path)
  assert min(report["clips"].values()) > 0
  test, train = (
    {r["video"] for r in read(folder, split)} for split in ("test", "train")
  )
  assert not test & train
  assert len(test | train) == report["used"]


def test_prompts_alone_need_no_video(tmp_path):
  (tmp_path / "p.txt").write_text("a cat\na dog\na cat\n")
  config = tiny_project.config("prepare", "tiny")
  config.update(
    prompts=str(tmp_path / "p.txt"), output=str(tmp_path), test_fraction=0.0
  )
  report = prepare.prepare(config)
  assert report["clips"]["train"] == 2
  assert report["excluded"] == {"duplicate": 1}
  assert report["latent_shape"] is None


def test_another_plan_does_not_touch_what_is_there(made, tmp_path):
  other = changed(made, tmp_path).copy_and_resolve_references()
  other.output = made[0].output
  other.clip.num_frames = 5
  with pytest.raises(ValueError, match="another data set"):
    prepare.prepare(other)
  half = changed(made, tmp_path)
  plan = _plan(half)
  preparation.begin(plan)
  half.clip.num_frames = 5
  with pytest.raises(ValueError, match="another unfinished data set"):
    prepare.prepare(half)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(clip=dict(height=40)), "clip.height=40 must be a multiple of"),
    (dict(clip=dict(num_frames=8)), "one more than a multiple of"),
    (dict(clip=dict(fps=0.0)), "clip.fps=0"),
    (dict(prompts="p.txt"), "and not both"),
    (dict(videos=""), "and not both"),
    (dict(checkpoint="nowhere"), "lacks"),
    (dict(runner="spark"), "runner='spark'"),
    (dict(max_clips=0), "max_clips=0"),
    (dict(shard_size=0), "shard_size=0"),
    (dict(test_fraction=2.0), "test_fraction=2.0"),
    (dict(filters=dict(min_fps=60.0)), "none of 6 inputs is left"),
    (dict(embeddings="none.safetensors", checkpoint="x"), "lacks"),
  ],
)
def test_bad_configs_are_refused_with_the_way_out(
  made, tmp_path, change, message
):
  config = changed(made, tmp_path)
  config.update(change)
  with pytest.raises(ValueError, match=message):
    prepare.prepare(config)


def test_what_cannot_be_read_is_told_even_if_nothing_is_left(made, tmp_path):
  config = changed(made, tmp_path)
  config.filters.min_fps = 60.0
  with pytest.raises(ValueError, match=r"see '(.*)'\.") as error:
    prepare.prepare(config)
  told = str(error.value).split("'")[-2]
  assert "broken.mp4" in pathlib.Path(told).read_text()


def test_frames_are_those_of_the_family() -> None:
  clip = tiny_project.config("prepare").clip
  assert (clip.height, clip.width, clip.fps) == (480, 832, 16.0)
  clip = tiny_project.config("prepare", "wan_14b").clip
  assert (clip.height, clip.width, clip.fps) == (720, 1280, 16.0)
  with pytest.raises(ValueError, match="family='wan_9b' is unknown"):
    tiny_project.config("prepare", "wan_9b")


_FULL_DISK = """
import os, resource, signal, sys
from videomla_jax.data import record_files
from videomla_jax.storage import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  with atomic.replacing(sys.argv[1]) as temporary:
    record_files.write(temporary, [os.urandom(50_000)] * 3)
except Exception as error:
  print("refused:", type(error).__name__, error)
"""


def test_a_full_disk_leaves_no_shard_behind(tmp_path):
  path = tmp_path / "shard"
  path.write_bytes(b"the one before")
  done = subprocess.run(
    [sys.executable, "-c", _FULL_DISK, str(path)],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert "refused: OSError" in done.stdout, done.stdout + done.stderr[-2000:]
  assert "File too large" in done.stdout
  assert path.read_bytes() == b"the one before"
  assert [*tmp_path.iterdir()] == [path]


def test_only_texts_of_videos_with_clips_are_embedded(
  made, tmp_path, monkeypatch
):
  names = ["a", "short", "broken", "b.mp4"] + [f"x{i}" for i in range(9)]
  rows = "".join(f"{name},text of {name}\n" for name in names)
  (tmp_path / "t.csv").write_text("video,caption\n" + rows)
  (tmp_path / "t.csv").write_text(
    (tmp_path / "t.csv").read_text() + "../c.mp4,outside\n"
  )
  embedded = []
  texts = encode.Encoder.texts
  monkeypatch.setattr(
    encode.Encoder,
    "texts",
    lambda self, captions: embedded.extend(captions) or texts(self, captions),
  )
  config = changed(made, tmp_path, table=str(tmp_path / "t.csv"), shard_size=64)
  report = prepare.prepare(config)
  # Whether a video is too short shows when it is decoded.
  assert sorted(embedded) == ["", "text of a", "text of b.mp4", "text of short"]
  assert report["excluded"] == {"no such file": 9, "too short": 1}
  assert report["quarantined"] == 2 and len(report["reasons"]) == 2
  assert (report["inputs"], report["used"]) == (14, 2)
  text = (dataset.locate(tmp_path) / "quarantine.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [line["video"] for line in lines] == ["broken.mp4", "../c.mp4"]


@pytest.mark.parametrize("damage", ["cut", "flip", "lose"])
def test_a_damaged_shard_is_found(made, tmp_path, damage, seed):
  folder = tmp_path / "copy"
  shutil.copytree(made[2], folder)
  shard = sorted(folder.glob("*.array_record-*"))[0]
  data = bytearray(shard.read_bytes())
  if damage == "cut":
    shard.write_bytes(data[:-100])
  elif damage == "lose":
    shard.unlink()
  else:
    place = int(np.random.default_rng(seed).integers(len(data)))
    data[place] ^= 1
    shard.write_bytes(data)
    dataset.verify(folder, digests=False)  # of the same size
  with pytest.raises(ValueError, match="shard .* copy it again"):
    dataset.verify(folder, digests=True)
