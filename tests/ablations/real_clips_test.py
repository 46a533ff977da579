"""Films become clips of which none is both trained on and held out."""

import pathlib

import jax
import numpy as np
import pytest

from videomla_jax.ablations import real_clips
from videomla_jax.generation import mp4

T = 6


@pytest.fixture
def films(tmp_path: pathlib.Path, seed: int) -> list[str]:
  """Two films of 40 and 16 frames at the rate at which they are read."""
  rng, paths = np.random.default_rng(seed), []
  for name, length in (("a.mp4", 40), ("b.mp4", 16)):
    frames = rng.integers(0, 256, (length, 48, 64, 3), dtype=np.uint8)
    paths.append(str(tmp_path / name))
    mp4.write_mp4(tmp_path / name, frames, fps=real_clips.FPS)
  return paths


def test_clips_lie_in_one_film_and_one_part_of_it(films, seed) -> None:
  read = real_clips.read(films, num_frames=T)
  assert read.frames.shape == (56, 24, 24, 1)
  ends = {0: 40, 1: 56}
  of = lambda first: {int(f) for x in first for f in range(x, x + T)}
  assert not of(read.train) & of(read.test)
  for firsts in (read.train, read.test):
    assert len(firsts)
    films_of = firsts >= 40
    assert (firsts + T <= np.where(films_of, ends[1], ends[0])).all()
  # Most of the film is trained on, and its last fifth held out.
  assert of(read.test) >= {*range(32, 40)} and len(of(read.train)) >= 32
  batch = real_clips.batch(
    read, jax.random.key(seed), size=5, num_frames=T, split="test"
  )
  assert not np.asarray(batch["tokens"]).any()
  known = {read.frames[i : i + T].tobytes() for i in read.test}
  assert all(np.asarray(x).tobytes() in known for x in batch["video"])


def test_films_too_short_or_missing_are_refused(films) -> None:
  with pytest.raises(ValueError, match=r"b.mp4' has 16 frames .* need 18"):
    real_clips.read(films, num_frames=9)
  with pytest.raises(ValueError, match="nowhere"):
    real_clips.read(["/nowhere/a.mp4"], num_frames=T)
