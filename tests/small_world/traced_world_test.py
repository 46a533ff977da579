"""Clips drawn by JAX are clips that NumPy could have drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.small_world import prompts
from videomla_jax.small_world import traced_world
from videomla_jax.small_world import world

N, T = 400, 9
_batch = jax.jit(
  traced_world.batch,
  static_argnames=("size", "num_frames", "split", "word_dropout"),
)


@functools.cache
def _by_tokens() -> dict[tuple[int, ...], prompts.Prompt]:
  return {
    tuple(prompts.tokenize(p.text()).tolist()): p for p in prompts.all_prompts()
  }


def _digit(frame: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
  """All that is drawn, and where its first row and column are."""
  rows, columns = np.nonzero(frame)
  y, x = rows.min(), columns.min()
  return frame[y : rows.max() + 1, x : columns.max() + 1], (int(x), int(y))


@pytest.mark.parametrize("split", world.SPLITS)
def test_clips_show_their_prompt_and_move_as_it_says(
  seed: int, split: str
) -> None:
  batch = _batch(jax.random.key(seed), size=N, num_frames=T, split=split)
  video, tokens = (
    np.asarray(batch["video"])[..., 0],
    np.asarray(batch["tokens"]),
  )
  allowed = world.split_prompts(split)
  images, labels = world.load_sprites(split)
  known: dict[bytes, set[int]] = {}
  for image, label in zip(np.rint(images * 255).astype(np.uint8), labels):
    drawn, _ = _digit(image)
    known.setdefault(drawn.tobytes(), set()).add(int(label))
  seen = set()
  for clip, words in zip(video, tokens, strict=True):
    prompt = _by_tokens()[tuple(words.tolist())]
    assert prompt in allowed
    seen.add(prompt)
    drawn, first = _digit(clip[0])
    assert prompt.digit in known[drawn.tobytes()]
    places = np.array([_digit(frame)[1] for frame in clip])
    steps = np.abs(np.diff(places, axis=0))
    moving = np.array(traced_world._AXES[prompt.direction])
    # Walls are met exactly, so every step has the whole speed.
    speed = world.World().speed(prompt)
    np.testing.assert_array_equal(
      steps, np.broadcast_to(moving * speed, steps.shape)
    )
  # 400 draws of at most 50 prompts leave one out once in 60 times.
  assert len(seen) >= len(allowed) - 2


def test_paths_are_those_of_the_world(seed: int) -> None:
  rng = np.random.default_rng(seed)
  for prompt in prompts.all_prompts()[:6]:
    speed = world.World().speed(prompt)
    start = tuple(int(speed * n) for n in rng.integers(0, 16 // speed + 1, 2))
    sign = tuple(int(s) for s in rng.choice((-1, 1), 2))
    expected = world.positions(prompt, start, sign, 40)
    moving = np.array(traced_world._AXES[prompt.direction])
    found = traced_world.paths(
      jnp.array([start]), jnp.array([moving * sign * speed]), 40
    )
    np.testing.assert_array_equal(found[0], expected)


def test_prompts_and_words_are_left_out(seed: int) -> None:
  key = jax.random.key(seed)
  tokens = lambda **chances: np.asarray(
    _batch(key, size=N, num_frames=1, **chances)["tokens"]
  )
  assert (tokens(word_dropout=1.0) == prompts.PADDING).all()
  assert (tokens()[:, :3] != prompts.PADDING).all()
  some = tokens(word_dropout=0.5)[:, :3] == prompts.PADDING
  assert 0.4 < some.mean() < 0.6 and not some.all(1).all()
