"""Tests of sampling whole clips."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib

_FRAMES = 5


def _inputs(rng: np.random.Generator, batch: int, rows: int):
  noise = tiny_model.normal(rng, batch, _FRAMES, *tiny_model.FRAME)
  text = tiny_model.normal(rng, batch * rows, *tiny_model.TEXT)
  return noise, text


@pytest.mark.parametrize("kind", ["dense", "latent"])
def test_clip_equals_a_rollout_of_one_chunk(kind: str, seed: int) -> None:
  # A first chunk sees no history, so a chunk of all frames is the whole clip.
  rng = np.random.default_rng(seed)
  model = tiny_model.build(kind, rng)
  noise, text = _inputs(rng, 2, 2)
  sampler = sampling.euler(3, shift=5.0, guidance=3.0)
  clip = bidirectional.generate(model, noise, text, sampler=sampler)
  window = window_lib.Window(
    chunk_frames=_FRAMES, sink_frames=0, local_frames=_FRAMES
  )
  empty = rollout.empty_cache(
    model,
    batch=4,
    frame=tiny_model.FRAME,
    window=window,
    max_frames=_FRAMES,
  )
  fresh = jnp.zeros((0, *noise.shape))
  chunk = chunk_pass.denoise(
    model,
    empty,
    sampling.Noise(noise, fresh),
    text,
    window=window,
    sampler=sampler,
  )
  tolerances.assert_close(clip, chunk, "float32")


@pytest.mark.parametrize("rule", ["euler", "unipc"])
def test_steps_equal_the_loop_written_out(rule: str, seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("dense", rng)
  noise, text = _inputs(rng, 1, 2)
  make = {"euler": sampling.euler, "unipc": sampling.unipc}[rule]
  sampler = make(4, shift=5.0, guidance=2.0)

  def velocity(x, sigma):
    parts = [
      bidirectional.velocity(model, x, sigma, text[i : i + 1]) for i in (0, 1)
    ]
    return flow.guide(*parts, 2.0)

  gaussian = sampling.Noise(noise, jnp.zeros((0, *noise.shape)))
  state = sampling.start(sampler, gaussian)
  calls = sampling.calls(sampler, gaussian)
  outputs = list(bidirectional.denoise(model, noise, text, sampler=sampler))
  assert len(outputs) == 4
  for i, out in enumerate(outputs):
    call = sampling.Call(
      calls.sigma[i],
      calls.next_sigma[i],
      None,
      calls.weights and type(calls.weights)(*(w[i] for w in calls.weights)),
      calls.first[i],
    )
    state = sampling.step(sampler, state, velocity(state.x, call.sigma), call)
    tolerances.assert_close(out, state.x, "float32_deep")


def test_given_noise_survives_and_decides_the_clip(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("dense", rng)
  noise, text = _inputs(rng, 1, 1)
  before = np.asarray(noise).copy()
  sampler = sampling.unipc(2, shift=5.0, guidance=None)
  clips = [
    bidirectional.generate(model, n, text, sampler=sampler)
    for n in (noise, noise, -noise)
  ]
  np.testing.assert_array_equal(noise, before)
  np.testing.assert_array_equal(clips[0], clips[1])
  assert not np.allclose(clips[0], clips[2])


def test_every_frame_sees_the_last_one(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.build("dense", rng)
  noise, text = _inputs(rng, 1, 1)
  level = jnp.asarray([0.5], jnp.float32)
  a, b = (
    bidirectional.velocity(model, x, level, text)
    for x in (noise, noise.at[:, -1].add(1.0))
  )
  assert (np.abs(a - b).max(axis=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize(
  ("sampler", "rows", "message"),
  [
    (sampling.few_step(), 1, "few-step causal students"),
    (
      sampling.euler(2, shift=5.0, guidance=3.0),
      1,
      "1 rows but 1 clips need 2",
    ),
  ],
)
def test_wrong_samplers_are_refused(sampler, rows, message, seed) -> None:
  rng = np.random.default_rng(seed)
  model = tiny_model.abstract(tiny_model.config("dense"))
  noise, text = _inputs(rng, 1, rows)
  with pytest.raises(ValueError, match=message):
    bidirectional.generate(model, noise, text, sampler=sampler)
