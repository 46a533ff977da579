"""Tests of the tiny decoder: cutting changes nothing, NumPy agrees."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae

_FRAME = (2, 3)  # latent rows and columns
# Fewer resolutions compile faster.
_TWO = dict(widths=(8, 6, 4), temporal=(True, True), spatial=(True, False))
_ONE = dict(widths=(8, 6), temporal=(True,), spatial=(True,))
Arrays = np.ndarray


@functools.cache  # One tree structure per config, so jit compiles once.
def _abstract(**changes) -> tiny_decoder.TinyDecoder:
  return tiny_decoder.abstract(tiny_decoder.tiny(**changes))


def _model(rng: np.random.Generator, **changes) -> tiny_decoder.TinyDecoder:
  return tiny_model.fill(_abstract(**changes), rng)


@jax.jit
def _decode(model, latents, state):
  return model.decode_unclipped(latents, state)


def test_decoding_in_chunks_equals_decoding_at_once(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng, **_TWO)
  latents = tiny_model.normal(rng, 2, 6, *_FRAME, 4)
  whole, _ = _decode(model, latents, model.start(2, *_FRAME))
  assert whole.shape == (2, 4 * 5 + 1, 4, 6, 3)
  for lengths in ([1] * 6, [3, 3]):
    pieces, state, start = [], model.start(2, *_FRAME), 0
    for length in lengths:
      chunk = latents[:, start : start + length]
      pixels, state = _decode(model, chunk, state)
      pieces.append(pixels)
      start += length
    # Convolutions may add in another order for another number of frames.
    tolerances.assert_close(jnp.concatenate(pieces, axis=1), whole)


# The layers of one video in float64, in the published order. Frames are
# `[t, h, w, C]`, and nothing is carried: a block sees its whole input.


def _conv(x: Arrays, conv) -> Arrays:
  kernel, bias = (np.asarray(w, np.float64) for w in conv.weights())
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return bias + sum(
    padded[:, i : i + height, j : j + width] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


def _block(x: Arrays, block) -> Arrays:
  past = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
  y = np.maximum(_conv(np.concatenate([x, past], -1), block.conv_in), 0)
  y = np.maximum(_conv(y, block.conv_middle), 0)
  return np.maximum(_conv(y, block.conv_out) + x, 0)


def _grow(x: Arrays, resolution) -> Arrays:
  x = x @ np.asarray(resolution.grow.kernel[...], np.float64)
  frames = 2 if resolution.temporal else 1
  pieces = np.split(x, frames, axis=-1)
  return np.stack(pieces, axis=1).reshape(-1, *pieces[0].shape[1:])


def _pixels(latents: Arrays, model: tiny_decoder.TinyDecoder) -> Arrays:
  x = 3 * np.tanh(latents / 3)
  x = np.maximum(_conv(x, model.conv_in), 0)
  for resolution in model.resolutions:
    for block in resolution.blocks:
      x = _block(x, block)
    if resolution.spatial:
      x = x.repeat(2, axis=1).repeat(2, axis=2)
    x = _conv(_grow(x, resolution), resolution.conv)
  x = _conv(np.maximum(x, 0), model.conv_out)
  p = model.config.patch
  x = x.reshape(*x.shape[:3], 3, p, p).transpose(0, 1, 4, 2, 5, 3)
  x = x.reshape(x.shape[0], x.shape[1] * p, -1, 3)
  return x[model.temporal_stride - 1 :]


def test_a_block_sees_each_frame_and_the_one_before(seed: int) -> None:
  rng = np.random.default_rng(seed)
  block = _model(rng).resolutions[1].blocks[2]
  x = np.maximum(rng.standard_normal((4, 3, 5, 12)), 0)
  memory = block.start(1, 3, 5)
  pieces = []
  for part in (x[:1], x[1:]):
    y, memory = jax.jit(lambda b, x, m: b(x, m))(
      block, jnp.asarray(part[None], jnp.float32), memory
    )
    pieces.append(np.asarray(y[0]))
  tolerances.assert_close(np.concatenate(pieces), _block(x, block))
  np.testing.assert_array_equal(memory[0, 0], np.float32(x[-1]))


@pytest.mark.parametrize(
  "changes",
  [
    dict(),
    _ONE | dict(patch=2),
    _TWO,
  ],
  ids=["published", "patches", "other strides"],
)
def test_pixels_equal_plain_numpy_in_float64(changes, seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng, **changes)
  latents = tiny_model.normal(rng, 1, 4, *_FRAME, 4)
  pixels, _ = _decode(model, latents, model.start(1, *_FRAME))
  scale, stride = model.spatial_stride, model.temporal_stride
  frames = 1 + 3 * stride
  assert pixels.shape == (1, frames, 2 * scale, 3 * scale, 3)
  expected = _pixels(np.asarray(latents[0], np.float64), model)
  tolerances.assert_close(pixels[0], expected)


def test_pixels_are_clipped(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng, **_ONE)
  latents = 9 * tiny_model.normal(rng, 1, 2, *_FRAME, 4)
  pixels, _ = _decode(model, latents, model.start(1, *_FRAME))
  clipped = jax.jit(lambda m, x: m.decode(x))(model, latents)
  assert pixels.min() < 0 and pixels.max() > 1
  tolerances.assert_close(clipped, jnp.clip(pixels, 0, 1))


def test_a_latent_changes_its_pixels_and_none_before(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  latents = tiny_model.normal(rng, 1, 4, *_FRAME, 4)
  state = model.start(1, *_FRAME)
  pixels, _ = _decode(model, latents, state)
  for frame in range(4):
    other, _ = _decode(model, latents.at[:, frame].add(1), state)
    first = 4 * (frame - 1) + 1 if frame else 0
    changed = (np.asarray(pixels) != np.asarray(other)).any(axis=(0, 2, 3, 4))
    assert not changed[:first].any() and changed[first : first + 4].all()


def test_published_sizes_are_what_the_documents_say() -> None:
  model = tiny_decoder.abstract(tiny_decoder.TinyDecoderConfig())
  leaves = jax.tree.leaves(model)
  assert sum(math.prod(x.shape) for x in leaves) == 9_844_611
  assert isinstance(model, vae.Decoder) and not isinstance(model, vae.Codec)
  assert (model.temporal_stride, model.spatial_stride) == (4, 8)
  state = jax.eval_shape(lambda: model.start(1, 60, 104))
  shapes = [x.shape[1:] for x in jax.tree.leaves(state)]
  assert shapes == [  # docs/method.md, section 4.8
    *[(1, 60, 104, 256)] * 3,
    *[(1, 120, 208, 128)] * 3,
    *[(1, 240, 416, 64)] * 3,
  ]
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert size == 134_184_960


def test_bfloat16_is_within_its_rounding(seed: int) -> None:
  latents = tiny_model.normal(np.random.default_rng(seed), 1, 3, *_FRAME, 4)
  half, exact = (
    _decode(m, latents, m.start(1, *_FRAME))[0]
    for m in (
      _model(np.random.default_rng(seed), dtype=dtype, **_TWO)
      for dtype in ("bfloat16", "float32")
    )
  )
  assert half.dtype == exact.dtype == jnp.float32
  tolerances.assert_close(half, exact, "bfloat16_deep")


def test_config_survives_json() -> None:
  config = tiny_decoder.tiny(dtype="bfloat16")
  assert tiny_decoder.TinyDecoderConfig.from_dict(config.to_dict()) == config
  with pytest.raises(ValueError, match="convert it again"):
    tiny_decoder.TinyDecoderConfig.from_dict({**config.to_dict(), "depth": 3})
  with pytest.raises(ValueError, match="one entry per resolution, 3"):
    tiny_decoder.tiny(temporal=(True,))
  with pytest.raises(ValueError, match="must have 2 to 9 entries"):
    tiny_decoder.tiny(widths=(8,))
