"""The rollout: one video whatever way it is made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tiny_rollout
from tests import tolerances
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import wan

B, FRAME, WINDOW = tiny_rollout.B, tiny_rollout.FRAME, tiny_rollout.WINDOW
samplers = pytest.mark.parametrize("name", tiny_rollout.SAMPLERS)

_chunk_step = jax.jit(
  chunk_pass.chunk_step, static_argnames=("window", "sampler")
)
_commit = jax.jit(chunk_pass.commit, static_argnames="window")


@samplers
def test_video_equals_chunk_steps_by_hand(seed, name):
  model, text, keys, sampler = tiny_rollout.setup(seed, name)
  video = tiny_rollout.generate(model, text, keys, sampler, 12)
  cache = rollout.empty_cache(
    model, batch=text.shape[0], frame=FRAME, window=WINDOW, max_frames=12
  )
  for chunk in range(4):
    noise = sampling.chunk_noise(
      keys, jnp.asarray(chunk), shape=(3, *FRAME), sampler=sampler
    )
    latents, cache = _chunk_step(
      model, cache, noise, text, window=WINDOW, sampler=sampler
    )
    part = video[:, 3 * chunk : 3 * chunk + 3]
    tolerances.assert_close(part, latents, "float32_deep")
    assert jnp.isfinite(part).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 11])
def test_any_length_is_a_prefix_of_a_longer_video(seed, num_frames):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  short = tiny_rollout.generate(model, text, keys, sampler, num_frames)
  assert short.shape == (B, num_frames, *FRAME)
  long = tiny_rollout.generate(model, text, keys, sampler, 12)
  tolerances.assert_close(short, long[:, :num_frames], "float32_deep")


@samplers
def test_video_does_not_depend_on_the_others_of_its_batch(seed, name):
  model, text, keys, sampler = tiny_rollout.setup(seed, name)
  together = tiny_rollout.generate(model, text, keys, sampler, 9)
  for video in range(B):
    alone = tiny_rollout.generate(
      model, text[video::B], keys[video : video + 1], sampler, 9
    )
    tolerances.assert_close(together[video], alone[0], "float32_deep")


def test_videos_differ_by_key_and_by_prompt(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  same_text = jnp.broadcast_to(text[:1], text.shape)
  one_key = jnp.stack([keys[0], keys[0]])
  assert not np.allclose(
    *tiny_rollout.generate(model, same_text, keys, sampler, 3)
  )
  assert not np.allclose(
    *tiny_rollout.generate(model, text, one_key, sampler, 3)
  )
  tolerances.assert_close(
    *tiny_rollout.generate(model, same_text, one_key, sampler, 3),
    "float32_deep",
  )


def test_callers_keys_survive_the_donation_of_the_state(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  first = tiny_rollout.generate(model, text, keys, sampler, 6)
  np.testing.assert_array_equal(
    tiny_rollout.generate(model, text, keys, sampler, 6), first
  )
  jax.random.key_data(keys).block_until_ready()


def test_guidance_of_one_equals_no_guidance(seed):
  model, text, keys, _ = tiny_rollout.setup(seed, "guided")
  one = sampling.euler(2, shift=3.0, guidance=1.0)
  guided = tiny_rollout.generate(model, text, keys, one, 6)
  plain = tiny_rollout.generate(
    model, text[:B], keys, tiny_rollout.SAMPLERS["euler"], 6
  )
  tolerances.assert_close(guided, plain, "float32_deep")


def test_guidance_uses_the_unconditional_prompt(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed, "guided")
  other = text.at[B:].set(0.0)
  assert not np.allclose(
    tiny_rollout.generate(model, text, keys, sampler, 3),
    tiny_rollout.generate(model, other, keys, sampler, 3),
  )


@samplers
@pytest.mark.parametrize("given", [1, 3, 4, 6])
def test_context_stays_in_front_and_is_seen(seed, name, given):
  model, text, keys, sampler = tiny_rollout.setup(seed, name)
  context = tiny_model.normal(np.random.default_rng(seed + 1), B, given, *FRAME)
  run = functools.partial(
    tiny_rollout.generate, model, text, keys, sampler, given + 4
  )
  video = run(context=context)
  assert video.shape[1] == given + 4
  np.testing.assert_array_equal(video[:, :given], context)
  other = run(context=-context)
  assert not np.allclose(video[:, given:], other[:, given:])


@samplers
def test_continuation_equals_the_uninterrupted_rollout(seed, name):
  model, text, keys, sampler = tiny_rollout.setup(seed, name)
  whole = tiny_rollout.generate(model, text, keys, sampler, 15)
  state = rollout.start(
    model,
    text,
    keys,
    frame=FRAME,
    window=WINDOW,
    sampler=sampler,
    max_frames=15,
    context=whole[:, :9],
  )
  state = state._replace(chunk=jnp.asarray(3, jnp.int32))
  latents, state = rollout.scan_chunks(
    model, state, text, window=WINDOW, sampler=sampler, chunks=2, frame=FRAME
  )
  rest = jnp.concatenate(list(latents), axis=1)
  tolerances.assert_close(rest, whole[:, 9:], "float32_deep")
  assert int(state.chunk) == 5
  assert state.cache.next_frame.tolist() == [15] * text.shape[0]


@pytest.mark.parametrize(
  ("kind", "scan_blocks", "name"),
  [("latent", True, "guided"), ("dense", False, "few_step")],
)
def test_memory_is_spared_and_nothing_else(seed, kind, scan_blocks, name):
  videos = []
  for spare_memory in (True, False):
    model, text, keys, sampler = tiny_rollout.setup(
      seed, name, kind, scan_blocks=scan_blocks, spare_memory=spare_memory
    )
    videos.append(tiny_rollout.generate(model, text, keys, sampler, 9))
  tolerances.assert_close(*videos, "float32_deep")


def test_keys_of_the_text_are_made_once_unless_memory_is_spared(seed):
  model, text, _, _ = tiny_rollout.setup(seed)
  assert chunk_pass.with_keys_of_text(model, text) is text
  model, text, _, _ = tiny_rollout.setup(seed, spare_memory=False)
  made = chunk_pass.with_keys_of_text(model, text)
  attention = model.config.attention
  shape = (model.config.num_layers, *text.shape[:2], attention.num_heads)
  assert {x.shape for x in made} == {(*shape, attention.head_dim)}
  assert chunk_pass.with_keys_of_text(model, made) is made


def test_every_layer_takes_its_own_keys_of_the_text(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed, spare_memory=False)
  cache = rollout.empty_cache(
    model, batch=B, frame=FRAME, window=WINDOW, max_frames=9
  )
  noise = sampling.chunk_noise(
    keys, jnp.asarray(0), shape=(3, *FRAME), sampler=sampler
  )
  step = jax.jit(chunk_pass.chunk_step, static_argnames=("window", "sampler"))
  made = chunk_pass.with_keys_of_text(model, text)
  turned = jax.tree.map(lambda x: x[::-1], made)
  of_text, of_keys, of_others = (
    step(model, cache, noise, x, window=WINDOW, sampler=sampler)[0]
    for x in (text, made, turned)
  )
  tolerances.assert_close(of_text, of_keys, "float32_deep")
  assert tolerances.relative_error(of_others, of_keys) > 1e-3


@pytest.mark.parametrize(
  ("kind", "scan_blocks", "name", "cache_dtype"),
  [
    ("latent", True, "guided", None),
    ("latent", False, "few_step", "int8"),
    ("dense", True, "few_step", None),
  ],
)
def test_layers_apart_make_the_same_video(
  seed, kind, scan_blocks, name, cache_dtype
):
  model, text, keys, sampler = tiny_rollout.setup(
    seed, name, kind, scan_blocks=scan_blocks, spare_memory=False
  )
  given = tiny_model.normal(np.random.default_rng(seed), B, 1, *FRAME)
  expected, found = (
    tiny_rollout.generate(
      x, text, keys, sampler, 10, context=given, cache_dtype=cache_dtype
    )
    for x in (model, wan.with_layers_apart(model))
  )
  bound = f"{cache_dtype}_cache" if cache_dtype else "float32_deep"
  tolerances.assert_close(found, expected, bound)


def test_layers_apart_have_keys_of_the_text_apart(seed):
  model, text, _, _ = tiny_rollout.setup(seed, spare_memory=False)
  stacked = chunk_pass.with_keys_of_text(model, text)
  apart = chunk_pass.with_keys_of_text(wan.with_layers_apart(model), text)
  assert chunk_pass.with_keys_of_text(model, apart) is apart
  for layers, stack in zip(apart, stacked, strict=True):
    assert isinstance(layers, tuple)
    tolerances.assert_close(jnp.stack(layers), stack, "float32")


def test_two_short_scans_equal_one_long_scan(seed):
  model, text, keys, sampler = tiny_rollout.setup(seed)
  run = functools.partial(
    rollout.scan_chunks, model, window=WINDOW, sampler=sampler, frame=FRAME
  )
  start = functools.partial(
    rollout.start,
    model,
    text,
    frame=FRAME,
    window=WINDOW,
    sampler=sampler,
    max_frames=15,
  )
  whole, _ = run(start(jnp.copy(keys)), text, chunks=4)
  first, state = run(start(jnp.copy(keys)), text, chunks=2)
  second, _ = run(state, text, chunks=2)
  tolerances.assert_close(
    jnp.concatenate([first, second]), whole, "float32_deep"
  )


def test_prefill_donates_its_cache_and_returns_a_whole_one(seed):
  model, text, _, _ = tiny_rollout.setup(seed)
  rng = np.random.default_rng(seed)
  latents = tiny_model.normal(rng, B, 7, *FRAME)
  empty = functools.partial(
    rollout.empty_cache,
    model,
    batch=B,
    frame=FRAME,
    window=WINDOW,
    max_frames=12,
  )
  cache = rollout.prefill(model, empty(), latents, text, window=WINDOW)
  by_hand = empty()
  for piece in (slice(0, 1), slice(1, 4), slice(4, 7)):
    by_hand = _commit(model, by_hand, latents[:, piece], text, window=WINDOW)
  np.testing.assert_array_equal(cache.frame, by_hand.frame)
  jax.tree.map(tolerances.assert_close, cache.entries, by_hand.entries)


def test_raw_keys_are_keys_too(seed: int) -> None:
  raw, typed = jax.random.PRNGKey(seed), jax.random.key(seed)
  a, b = (sampling.split_keys(key, 3) for key in (raw, typed))
  assert a.shape == b.shape == (3,)
  assert (jax.random.key_data(a) == jax.random.key_data(b)).all()


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_eight_bit_cache_stays_near_float32(seed, kind, dtype):
  model, text, keys, sampler = tiny_rollout.setup(seed, kind=kind)
  plain = tiny_rollout.generate(model, text, keys, sampler, 12)
  small = tiny_rollout.generate(
    model, text, keys, sampler, 12, cache_dtype=dtype
  )
  # The first chunk has no history; later ones feel the rounding of the cache.
  np.testing.assert_array_equal(plain[:, :3], small[:, :3])
  assert (np.asarray(plain) != np.asarray(small)).any()
  tolerances.assert_close(small, plain, f"{dtype}_cache")
