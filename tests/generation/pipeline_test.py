"""Tests of the way from text to pixels with a tiny Wan."""

import dataclasses
import functools
import gc
from typing import Any
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.generation import pipeline
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import codecs

_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_FRAME = (4, 6, 4)  # H, W, C of a latent: 32 x 48 pixels
_SAMPLER = sampling.few_step((1000, 500))


@functools.cache  # One tree structure, so jit compiles once.
def _abstract(kind: str):
  dit = tiny_model.abstract(wan_config.tiny(kind=kind, text_tokens=6))
  return dit, vae.abstract(vae_coders.tiny_vae())


def _pipeline(rng: np.random.Generator, kind="latent") -> pipeline.Pipeline:
  dit, codec = (tiny_model.fill(m, rng) for m in _abstract(kind))
  return pipeline.Pipeline(dit=dit, codec=codec, frame=_FRAME, fps=16)


def _text(rng: np.random.Generator, batch: int) -> jax.Array:
  return tiny_model.normal(rng, batch, 6, 32)


def _roll_out(networks, text, key, **kwargs) -> np.ndarray:
  call = dict(window=_WINDOW, sampler=_SAMPLER, as_bytes=False) | kwargs
  return np.concatenate(
    [*pixel_stream.PixelStream(networks, text, key, **call)], axis=1
  )


def test_streamed_pixels_are_the_decoded_rollout(seed: int) -> None:
  rng = np.random.default_rng(seed)
  networks, text, key = _pipeline(rng), _text(rng, 1), jax.random.key(seed)
  frames = 30  # no multiple of the 4 that a latent frame makes
  pixels = _roll_out(networks, text, key, num_frames=frames)
  latents = rollout.generate(
    networks.dit,
    text,
    key,
    frame=_FRAME,
    num_frames=9,
    window=_WINDOW,
    sampler=_SAMPLER,
  )
  whole = jax.jit(lambda c, z: c.decode(z))(networks.codec, latents)
  assert pixels.shape == (1, frames, 32, 48, 3)
  assert whole.shape[1] == 33
  tolerances.assert_close(pixels, whole[:, :frames], "float32_deep")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """What the device is told and what the host waits for, in order."""
  recorded: list[str] = []

  def record(module: Any, function: str, event: str) -> None:
    run = getattr(module, function)

    def spy(*args: Any, **kwargs: Any) -> Any:
      recorded.append(event)
      return run(*args, **kwargs)

    monkeypatch.setattr(module, function, spy)

  record(stream, "_next_chunk", "denoise")
  record(pipeline, "_decode", "decode")
  record(pixels_lib, "start_copy", "copy")
  record(pixels_lib, "fetch", "fetch")
  return recorded


def _patches(networks: pipeline.Pipeline) -> pipeline.Pipeline:
  """The same network with a codec that compiles in no time."""
  return dataclasses.replace(networks, codec=codecs.PixelCodec(block=2))


def test_a_chunk_is_dispatched_before_the_host_waits_for_the_last_one(
  seed: int, events: list[str]
) -> None:
  rng = np.random.default_rng(seed)
  networks, text = _patches(_pipeline(rng)), _text(rng, 1)
  call = dict(key=jax.random.key(seed), num_frames=8)
  pixels = _roll_out(networks, text, **call, as_bytes=True)
  assert pixels.shape == (1, 8, 8, 12, 1)
  chunk = ["denoise", "decode", "copy"]
  assert events == [*chunk, *chunk, "fetch", *chunk, "fetch", "fetch"]
  floats = _roll_out(networks, text, **call)
  np.testing.assert_array_equal(pixels, pixels_lib.to_uint8(floats))


def test_pieces_of_a_clip_are_dispatched_one_ahead(
  seed: int, events: list[str]
) -> None:
  rng = np.random.default_rng(seed)
  pieces = pixel_stream.whole_clip(
    _patches(_pipeline(rng, "dense")),
    _text(rng, 1),
    jax.random.key(seed),
    sampler=sampling.unipc(2, shift=5.0, guidance=None),
    num_frames=5,
    frames_at_once=2,
  )
  assert [(x.shape[1], x.dtype) for x in pieces] == [
    (2, np.uint8),
    (2, np.uint8),
    (1, np.uint8),
  ]
  piece = ["decode", "copy"]
  assert events == [*piece, *piece, "fetch", *piece, "fetch", "fetch"]


def test_given_frames_are_encoded_by_what_is_loaded_for_it(seed: int) -> None:
  rng = np.random.default_rng(seed)
  whole, loads = _patches(_pipeline(rng)), []

  def load() -> vae.Codec:
    loads.append(1)
    return whole.codec

  tiny = tiny_decoder.abstract(tiny_decoder.tiny())
  networks = dataclasses.replace(whole, codec=tiny, load_encoder=load)
  clip = rng.integers(0, 256, (1, 5, 8, 12, 1), dtype=np.uint8)
  latents = pipeline.encode(networks, clip)
  np.testing.assert_array_equal(latents, pipeline.encode(whole, clip))
  assert loads == [1]


@pytest.mark.parametrize("given", [1, 5])
def test_given_frames_continue_in_pixels_and_latents(given, seed) -> None:
  rng = np.random.default_rng(seed)
  networks, text, key = _pipeline(rng), _text(rng, 2), jax.random.key(seed)
  clip = rng.integers(0, 256, (given, 32, 48, 3), dtype=np.uint8)
  pixels = _roll_out(networks, text, key, num_frames=given + 12, given=clip)
  known = np.repeat(clip[None], 2, axis=0)
  context = jax.jit(lambda c, x: c.encode(x))(
    networks.codec, jnp.asarray(known)
  )
  latents = rollout.generate(
    networks.dit,
    text,
    key,
    frame=_FRAME,
    num_frames=context.shape[1] + 3,
    window=_WINDOW,
    sampler=_SAMPLER,
    context=context,
  )
  whole = jax.jit(lambda c, z: c.decode(z))(networks.codec, latents)
  assert pixels.shape == (2, 12, 32, 48, 3)
  tolerances.assert_close(pixels, whole[:, given:], "float32_deep")


def test_whole_clips_do_not_depend_on_the_pieces_decoded(seed: int) -> None:
  rng = np.random.default_rng(seed)
  networks, text = _pipeline(rng, "dense"), _text(rng, 2)
  steps: list[None] = []

  def run(at_once: int) -> np.ndarray:
    pieces = pixel_stream.whole_clip(
      networks,
      text,
      jax.random.key(seed),
      sampler=sampling.unipc(3, shift=5.0, guidance=2.0),
      num_frames=18,
      on_step=lambda: steps.append(None),
      frames_at_once=at_once,
    )
    return np.concatenate([*pieces], axis=1)

  a, b = run(2), run(3)
  assert a.shape == (1, 18, 32, 48, 3) and len(steps) == 6
  np.testing.assert_array_equal(a, b)


def test_videos_of_a_batch_are_those_made_alone(seed: int) -> None:
  rng = np.random.default_rng(seed)
  networks, text = _pipeline(rng), _text(rng, 2)
  keys = jax.random.split(jax.random.key(seed), 2)
  both = _roll_out(networks, text, keys, num_frames=9)
  for i in range(2):
    alone = _roll_out(networks, text[i : i + 1], keys[i : i + 1], num_frames=9)
    tolerances.assert_close(alone[0], both[i], "float32_deep")


@pytest.mark.parametrize(
  ("given", "frames", "used"),
  [
    (1, 9, [0]),
    (4, 9, [3]),
    (5, 9, [0, 1, 2, 3, 4]),
    (7, 9, [2, 3, 4, 5, 6]),
    (30, 9, list(range(21, 30))),
  ],
)
def test_clips_are_cut_at_their_start(given, frames, used) -> None:
  clip = np.arange(given, dtype=np.uint8).reshape(-1, 1, 1, 1)
  networks = _pipeline(np.random.default_rng(0))
  cut = pipeline.usable_clip(clip, networks, most=frames)
  assert cut.ravel().tolist() == used


def test_decoder_frees_the_memory_it_has_used(seed: int) -> None:
  networks = _pipeline(np.random.default_rng(seed))
  decoder = pipeline.Decoder(networks, batch=1)
  latents = jnp.zeros((1, 3, *_FRAME))
  decoder(latents)
  held = [weakref.ref(x) for x in jax.tree.leaves(decoder._state)]
  decoder(latents)
  gc.collect()
  assert all(x() is None or x().is_deleted() for x in held)
