"""Inputs that cannot work are refused before anything compiles."""

import dataclasses

import jax.numpy as jnp
import pytest

from tests import tiny_rollout
from videomla_jax.diffusion import rollout

B, FRAME, WINDOW = tiny_rollout.B, tiny_rollout.FRAME, tiny_rollout.WINDOW


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(frame=(4, 2, 3)), "latents have 3 channels but the model takes 2"),
    (dict(frame=(3, 2, 2)), "latent height=3 must be a positive multiple"),
    (dict(frame=(4, 4, 2)), "token grid of 2 x 2 but the model was trained"),
    (dict(num_frames=0), "num_frames=0 must be at least 1"),
    (dict(text=(3, 3, 8)), "text has 3 rows for 2 examples"),
    (dict(text=(2, 3, 9)), "text has shape"),
    (dict(context=(2, 1, 4, 4, 2)), "token grid of 2 x 2"),
    (dict(context=(1, 1, 4, 2, 2)), "context has 1 examples for 2 prompts"),
    (dict(context=(2, 1, 4, 2, 3)), "latents have 3 channels"),
  ],
  ids=str,
)
def test_bad_input_is_refused_before_compilation(seed, changes, message):
  model, text, keys, sampler = tiny_rollout.setup(seed, learned_grid=(2, 1))
  changes = {
    name: jnp.zeros(value) if name in ("text", "context") else value
    for name, value in changes.items()
  }
  values = dict(text=text, num_frames=6) | changes
  with pytest.raises(ValueError, match=message):
    tiny_rollout.generate(model, values.pop("text"), keys, sampler, **values)


def test_num_frames_below_one_is_refused_with_a_context_too(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  context = jnp.zeros((B, 3, *FRAME))
  with pytest.raises(ValueError, match="num_frames=0 must be at least 1"):
    tiny_rollout.generate(model, text, keys, sampler, 0, context=context)


def test_guided_sampler_wants_two_rows_of_text_per_video(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed, "guided")
  with pytest.raises(ValueError, match="give 4: conditional rows"):
    rollout.start(
      model,
      text[:3],
      keys,
      frame=FRAME,
      window=WINDOW,
      sampler=sampler,
      max_frames=6,
    )


def test_a_cache_that_loses_what_its_window_stores_is_refused(seed):
  model, *_ = tiny_rollout.setup(seed)
  window = dataclasses.replace(WINDOW, sink="average")
  for dtype in ("bfloat16", "int8"):
    with pytest.raises(ValueError, match="has no effect on a cache in"):
      rollout.empty_cache(
        model, batch=B, frame=FRAME, window=window, max_frames=9, dtype=dtype
      )
