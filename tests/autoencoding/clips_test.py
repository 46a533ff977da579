"""Clips of films follow from seed and step; the colour world is drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.autoencoding import clips
from videomla_jax.autoencoding import settings
from videomla_jax.generation import mp4


def _data(films: str = "", **changes) -> settings.Data:
  values = dict(
    kind="films" if films else "colour_world",
    films=films,
    num_frames=3,
    height=8 if films else 64,
    width=8 if films else 64,
    fps=8.0,
    batch_size=2,
  )
  return settings.Data(**(values | changes))


@pytest.fixture
def films(tmp_path) -> str:
  """Two films that brighten from frame to frame, and a file that is none."""
  for name, frames in (("a", 40), ("b", 80)):
    steps = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    video = np.broadcast_to(2 * steps + 20, (frames, 16, 16, 3))
    mp4.write_mp4(tmp_path / f"{name}.mp4", video, fps=8)
  (tmp_path / "broken.mp4").write_bytes(b"this is no video")
  return str(tmp_path)


def test_a_step_has_the_clips_that_it_had_before(films, seed) -> None:
  source = clips.open_source(_data(films), seed % 1000)
  whole = [*source.steps(0, [2, 2, 1])]
  assert [x.shape for x in whole] == [
    (2, 2, 3, 8, 8, 3),
    (2, 2, 3, 8, 8, 3),
    (1, 2, 3, 8, 8, 3),
  ]
  (later,) = clips.open_source(_data(films), seed % 1000).steps(2, [3])
  np.testing.assert_array_equal(later, np.concatenate(whole[1:]))
  (other,) = clips.open_source(_data(films), seed % 1000 + 1).steps(2, [3])
  assert not np.array_equal(other, later)


def test_held_out_clips_come_from_the_last_fifth(films, seed) -> None:
  source = clips.open_source(_data(films), seed % 1000)
  # A film's brightness tells its frame; the first has 40 and the other 80.
  brightness = lambda x: np.asarray(x, np.float32).mean((2, 3, 4))
  held_out = np.concatenate([brightness(x) for x in source.held_out(12)])
  assert held_out.shape == (12, 3)
  assert held_out.min() > 20 + 2 * (32 - 2)
  trained = brightness(np.concatenate([*source.steps(0, [10])])[0])
  assert trained.max() < 20 + 2 * (64 + 2)


def test_films_that_are_too_short_or_none_are_refused(films, tmp_path) -> None:
  with pytest.raises(ValueError, match=r"holds no video of .* s or more"):
    clips.open_source(_data(films, num_frames=33), 0)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="holds no video"):
    clips.open_source(_data(str(tmp_path / "empty")), 0)
  with pytest.raises(ValueError, match="is no folder"):
    clips.open_source(_data(str(tmp_path / "missing")), 0)


def test_damage_at_one_place_draws_another(films, monkeypatch, seed) -> None:
  source = clips.open_source(_data(films), seed % 1000)
  opened, count = clips.clips_lib.open_video, itertools.count()

  def failing(path):
    if next(count) % 2 == 0:
      raise clips.files.Unusable("it is damaged")
    return opened(path)

  monkeypatch.setattr(clips.clips_lib, "open_video", failing)
  (found,) = source.steps(0, [2])
  assert found.shape == (2, 2, 3, 8, 8, 3)

  def broken(path):
    raise clips.files.Unusable("it is damaged")

  monkeypatch.setattr(clips.clips_lib, "open_video", broken)
  with pytest.raises(ValueError, match="could not be read"):
    next(source.steps(0, [2]))


def test_the_colour_world_is_drawn_by_step(seed) -> None:
  source = clips.open_source(_data(num_frames=2), seed % 1000)
  np.testing.assert_array_equal(
    np.concatenate([*source.steps(3, [5, 1])]), np.arange(3, 9)
  )
  first, again = source.clips(jnp.int32(4)), jax.jit(source.clips)(4)
  assert first.shape == (2, 2, 64, 64, 3) and first.dtype == np.uint8
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, source.clips(jnp.int32(5)))
  held_out = np.concatenate([*source.held_out(4)])
  assert held_out.shape == (4, 2, 64, 64, 3)
  assert not np.array_equal(held_out[:2], held_out[2:])
  with pytest.raises(ValueError, match="must be 64"):
    clips.open_source(_data(height=32), 0)
