"""Tests of the VAE: cutting changes nothing, the past knows no future."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import vae
from videomla_jax.models import vae_coders

_FRAME = (2, 3)  # latent rows and columns


@functools.cache  # One tree structure per config, so jit compiles once.
def _abstract(**kwargs) -> vae.WanVAE:
  return vae.abstract(vae_coders.tiny_vae(**kwargs))


def _model(rng: np.random.Generator, **kwargs) -> vae.WanVAE:
  return tiny_model.fill(_abstract(**kwargs), rng)


@jax.jit
def _decode(model, latents, state):
  return model.decode_unclipped(latents, state)


@jax.jit
def _encode(model, video, state):
  return model.encode_chunk(video, state)


def _in_chunks(step, x, state, lengths: list[int]):
  pieces, start = [], 0
  for length in lengths:
    piece, state = step(x[:, start : start + length], state)
    pieces.append(piece)
    start += length
  assert start == x.shape[1]
  return jnp.concatenate(pieces, axis=1)


def test_decoding_in_chunks_equals_decoding_at_once(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  latents = tiny_model.normal(rng, 2, 6, *_FRAME, 4)
  step = functools.partial(_decode, model)
  state = model.start(2, *_FRAME)
  whole, _ = step(latents, state)
  assert whole.shape == (2, 4 * 5 + 1, 16, 24, 3)
  for lengths in ([1] * 6, [3, 3]):
    # Convolutions may add in another order for another number of frames.
    pieces = _in_chunks(step, latents, state, lengths)
    tolerances.assert_close(pieces, whole)


def test_one_group_of_all_frames_is_what_groups_give(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  pixels = tiny_model.normal(rng, 1, 9, 16, 24, 3)

  @functools.partial(jax.jit, static_argnames="at_once")
  def both(model, pixels, *, at_once):
    mean, log_variance, _ = model.moments(
      pixels, model.start_encode(1, 16, 24), at_once=at_once
    )
    latents, state = model.normalise(mean), model.start(1, *_FRAME)
    out, _ = model.decode_unclipped(latents, state, at_once=at_once)
    return mean, log_variance, out

  together, grouped = (both(model, pixels, at_once=x) for x in (True, False))
  assert together[2].shape == (1, 9, 16, 24, 3)
  for found, expected in zip(together, grouped, strict=True):
    # Convolutions may add in another order for another number of frames.
    tolerances.assert_close(found, expected, "float32_deep")


def test_latents_are_means_normalised_by_their_statistics(seed: int) -> None:
  rng = np.random.default_rng(seed)
  shift, scale = (0.5, -1.0, 2.0, 0.0), (2.0, 0.5, 3.0, 1.0)
  model = _model(rng, mean=shift, std=scale)
  video = jnp.asarray(rng.integers(0, 256, (1, 1, 16, 16, 3)), jnp.uint8)

  @jax.jit
  def both(model, video):
    state = model.start_encode(1, 16, 16)
    pixels = video.astype(jnp.float32) / 127.5 - 1
    return model.encode_chunk(video, state)[0], model.moments(pixels, state)[0]

  latents, mean = both(model, video)
  expected = (mean - np.asarray(shift)) / np.asarray(scale)
  tolerances.assert_close(latents, expected)


def test_encoding_in_chunks_equals_encoding_at_once(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  video = jnp.asarray(rng.integers(0, 256, (1, 9, 16, 24, 3)), jnp.uint8)
  step = functools.partial(_encode, model)
  state = model.start_encode(1, 16, 24)
  whole, _ = step(video, state)
  assert whole.shape == (1, 3, *_FRAME, 4)
  for lengths in ([1, 4, 4], [5, 4]):
    pieces = _in_chunks(step, video, state, lengths)
    tolerances.assert_close(pieces, whole)


def _changed(a: jax.Array, b: jax.Array) -> list[bool]:
  """Whether each frame differs in any bit."""
  return (np.asarray(a) != np.asarray(b)).any(axis=(0, 2, 3, 4)).tolist()


def test_a_latent_changes_its_pixels_and_none_before(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  latents = tiny_model.normal(rng, 2, 6, *_FRAME, 4)
  state = model.start(2, *_FRAME)
  pixels, _ = _decode(model, latents, state)
  for frame in range(6):
    other, _ = _decode(model, latents.at[:, frame].add(1), state)
    first = 4 * (frame - 1) + 1 if frame else 0
    changed = _changed(pixels, other)
    assert not any(changed[:first]) and all(changed[first : first + 4])


def test_a_frame_changes_the_latent_of_its_group_and_none_before(seed) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  video = jnp.asarray(rng.integers(0, 256, (1, 9, 16, 24, 3)), jnp.uint8)
  state = model.start_encode(1, 16, 24)
  latents, _ = _encode(model, video, state)
  for frame in range(9):
    other, _ = _encode(model, video.at[:, frame].add(99), state)
    group = -(-frame // 4)
    changed = _changed(latents, other)
    assert not any(changed[:group]) and changed[group]


def test_memory_does_not_grow_with_the_length(seed: int) -> None:
  model = vae.abstract(vae_coders.tiny_vae())

  def temporaries(frames: int) -> int:
    latents = jax.ShapeDtypeStruct((1, frames, *_FRAME, 4), jnp.float32)
    state = jax.eval_shape(lambda: model.start(1, *_FRAME))
    compiled = _decode.lower(model, latents, state).compile()
    used = compiled.memory_analysis()
    return used.temp_size_in_bytes - used.output_size_in_bytes

  short, long = temporaries(4), temporaries(40)
  # The pixels before they are joined are as large as the output.
  assert long - short <= 0.2 * abs(short)


def test_state_is_what_the_convolutions_remember() -> None:
  model = vae.abstract(vae_coders.wan_vae(dtype="bfloat16"))
  state = jax.eval_shape(lambda: model.start(1, 60, 104))
  shapes = sorted(x.shape[2:] for x in jax.tree.leaves(state))
  expected = sorted(  # docs/method.md, section 4.4
    [(60, 104, 16)]
    + [(60, 104, 384)] * 11
    + [(120, 208, 192)]
    + [(120, 208, 384)] * 6
    + [(240, 416, 192)] * 6
    + [(480, 832, 96)] * 7
  )
  assert shapes == expected
  assert all(x.shape[1] == 2 for x in jax.tree.leaves(state))
  total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert 1.8e9 < total < 2.0e9
  encoder = jax.eval_shape(lambda: model.start_encode(1, 480, 832))
  assert len(jax.tree.leaves(encoder)) == 24


def test_bfloat16_is_within_its_rounding(seed: int) -> None:
  rng = np.random.default_rng(seed)
  exact = _model(rng)
  half = tiny_model.fill(
    vae.abstract(vae_coders.tiny_vae(dtype="bfloat16")),
    np.random.default_rng(seed),
  )
  latents = tiny_model.normal(np.random.default_rng(seed), 1, 3, *_FRAME, 4)
  a, b = (_decode(m, latents, m.start(1, *_FRAME))[0] for m in (half, exact))
  assert a.dtype == b.dtype == jnp.float32
  tolerances.assert_close(a, b, "bfloat16_deep")


@pytest.mark.parametrize(
  ("frames", "first", "words"),
  [
    (2, True, "one more than a multiple of 4; drop 1"),
    (8, True, "drop 3"),
    (0, True, "one more than a multiple of 4; drop 0 or give more"),
    (5, False, "must have a multiple of 4; drop 1"),
    (0, False, "a multiple of 4"),
  ],
)
def test_other_numbers_of_frames_are_refused(frames, first, words) -> None:
  model = vae.abstract(vae_coders.tiny_vae())
  video = jnp.zeros((1, frames, 16, 24, 3), jnp.uint8)
  state = vae.State((), first)
  with pytest.raises(ValueError, match=words):
    model.encode_chunk(video, state)


@pytest.mark.parametrize("size", [(12, 24), (16, 0)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
  model = vae.abstract(vae_coders.tiny_vae())
  with pytest.raises(ValueError, match="multiple of 8; crop or resize"):
    model.encode(jnp.zeros((1, 1, *size, 3), jnp.uint8))


def test_config_survives_json() -> None:
  config = vae_coders.wan_vae(dtype="bfloat16")
  assert vae_coders.VaeConfig.from_dict(config.to_dict()) == config
  with pytest.raises(ValueError, match="convert it again"):
    vae_coders.VaeConfig.from_dict({**config.to_dict(), "depth": 3})
  with pytest.raises(ValueError, match=r"vae.std has 4 entries"):
    vae_coders.tiny_vae(channels=8, mean=(0.0,) * 8)
