"""Tests of what rows of the colour world show: prompts, windows, real clips."""

from flax import nnx
import numpy as np
import pytest

from videomla_jax.models import window as window_lib
from videomla_jax.quality import colour_videos
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import measures as measures_lib
from videomla_jax.small_world.colour import summaries


def test_real_clips_show_their_prompts_whatever_the_batch(seed: int) -> None:
  prompts = colour_videos.held_out(3)
  whole, parts = (
    colour_videos.real_clips(prompts, num_frames=16, seed=seed, batch=n)
    for n in (3, 2)
  )
  np.testing.assert_array_equal(whole, parts)
  reader = glyphs.Reader(dropout=0.0, rngs=nnx.Rngs(0))
  values = measures_lib.measure(whole, prompts, reader)
  found = summaries.summarise(values)
  for name in ("colour", "background", "wall"):
    assert found[f"{name}/all"].mean == 1.0, name


@pytest.mark.parametrize("number", [1, 2, 7, 24, 48])
def test_half_of_the_prompts_or_more_have_a_wall(number: int) -> None:
  prompts = colour_videos.held_out(number)
  assert len(prompts) == number
  assert sum(bool(x.wall) for x in prompts) >= number / 2
  assert len({x.text() for x in prompts}) == min(number, 24)


def test_windows_are_those_of_their_names() -> None:
  own = window_lib.Window(sink_frames=3, local_frames=9, sink="average")
  made = {name: of(own, 0.5) for name, of in colour_videos.WINDOWS.items()}
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
