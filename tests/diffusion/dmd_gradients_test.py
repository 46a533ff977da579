"""Distribution matching: self-rollout and gradients chunk by chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import self_rollout
from videomla_jax.models import window as window_lib

B, CHUNK = 2, 2
_SAMPLER = sampling.few_step((1000, 500, 250))
_WINDOW = window_lib.Window(chunk_frames=CHUNK, sink_frames=1, local_frames=4)
_ROLL = dict(window=_WINDOW, sampler=_SAMPLER)
_SETUP = dmd.Setup(**_ROLL, clip_frames=6)


def _build(kind, rng, layers=1):
  return tiny_model.build(kind, rng, num_layers=layers)


def _text(rng, batch=B):
  return tiny_model.normal(rng, batch, *tiny_model.TEXT)


def _start(model, frames, window=_WINDOW):
  return rollout.empty_cache(
    model, batch=B, frame=tiny_model.FRAME, window=window, max_frames=frames
  )


def _draws(seed, chunks, exit_call):
  shape = (B, chunks * CHUNK, *tiny_model.FRAME)
  draws = self_rollout.draw(jax.random.key(seed), shape, **_ROLL)
  return draws._replace(exit_call=jnp.asarray(exit_call, jnp.int32))


_self_rollout = jax.jit(
  self_rollout.generate,
  static_argnames=("window", "sampler", "num_trained"),
)


def test_leaving_at_the_last_call_is_the_inference_rollout(seed):
  rng, chunks = np.random.default_rng(seed), 4
  model, text = _build("latent", rng), _text(rng)
  draws = _draws(seed, chunks, len(_SAMPLER.sigmas) - 1)
  rolled = _self_rollout(
    model, _start(model, 8), draws, text, **_ROLL, num_trained=4
  )
  keys = jax.random.split(jax.random.key(0), B)
  state = rollout.Rollout(_start(model, 8), keys, jnp.zeros((), jnp.int32))
  latents, state = rollout.scan_chunks(
    model,
    state,
    text,
    draws.noise,
    window=_WINDOW,
    sampler=_SAMPLER,
    chunks=chunks,
    frame=tiny_model.FRAME,
  )
  expected = np.concatenate(list(np.asarray(latents)), axis=1)
  tolerances.assert_close(rolled.latents, expected, "float32_deep")
  for a, b in zip(jax.tree.leaves(rolled.cache), jax.tree.leaves(state.cache)):
    tolerances.assert_close(a, b, "float32_deep")


_forward = jax.jit(chunk_pass.velocity_and_entries)
_commit = jax.jit(chunk_pass.commit, static_argnames="window")


def _by_hand(model, cache, draws, text, exit_call):
  """The whole rollout, differentiable; pieces are compiled, not the loop."""
  stop = jax.lax.stop_gradient
  frozen, outputs = stop(model), []
  for m in range(draws.noise.start.shape[0]):
    seen = stop(cache)
    positions = chunk_pass.positions_of(seen, CHUNK, window=_WINDOW)

    def x0_of(network, x, sigma):
      t = jnp.full((1,), 1000 * sigma, jnp.float32)
      v, _ = _forward(network, seen, x, t, text, positions)
      return x - sigma * v

    x = draws.noise.start[m]
    for k in range(exit_call):
      sigma = _SAMPLER.sigmas[k + 1]
      x0 = x0_of(frozen, x, _SAMPLER.sigmas[k])
      x = (1 - sigma) * x0 + sigma * draws.noise.fresh[m, k]
    x0 = x0_of(model, stop(x), _SAMPLER.sigmas[exit_call])
    outputs.append(x0)
    cache = _commit(frozen, seen, stop(x0), text, window=_WINDOW)
  return jnp.concatenate(outputs, axis=1)


def _assert_trees_close(ours, expected, kind="float32_gradient"):
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected)):
    tolerances.assert_close(a, b, kind)


def _inputs(seed, kind, exit_call, chunks=3, layers=1):
  rng = np.random.default_rng(seed)
  model, text = _build(kind, rng, layers), _text(rng)
  draws = _draws(seed, chunks, exit_call)
  cotangent = tiny_model.normal(rng, B, chunks * CHUNK, *tiny_model.FRAME)
  return model, text, draws, cotangent


@functools.partial(jax.jit, static_argnames="num_trained")
def _chunk_gradients(model, cache, draws, text, cotangent, *, num_trained):
  rolled = self_rollout.generate(
    model, cache, draws, text, **_ROLL, num_trained=num_trained
  )
  return rolled.latents, self_rollout.gradients(
    model, rolled, cotangent, draws.exit_call, text, **_ROLL
  )


@pytest.mark.parametrize(
  ("kind", "layers", "exit_call", "num_trained"),
  [("latent", 2, 1, 4), ("dense", 1, 0, 6)],
)
def test_gradients_by_chunk_equal_the_monolithic_gradient(
  seed, kind, layers, exit_call, num_trained
):
  model, text, draws, cotangent = _inputs(seed, kind, exit_call, layers=layers)
  cotangent = cotangent.at[:, : 6 - num_trained].set(0)
  cache = _start(model, 6)

  def monolithic(model):
    out, back = jax.vjp(
      lambda m: _by_hand(m, cache, draws, text, exit_call), model
    )
    return out, back(cotangent)[0]

  latents, expected = monolithic(model)
  ours, gradient = _chunk_gradients(
    model,
    cache,
    draws,
    text,
    cotangent[:, -num_trained:],
    num_trained=num_trained,
  )
  tolerances.assert_close(ours, latents, "float32_deep")
  _assert_trees_close(gradient, expected)


def test_nothing_flows_through_the_cache(seed):
  # Chunk 0's output reaches chunk 1 only through the cache.
  model, text, draws, cotangent = _inputs(seed, "latent", 0, chunks=2)
  cache = _start(model, 4)

  @jax.jit
  def gradients(model, start):
    rolled = self_rollout.generate(model, cache, draws, text, **_ROLL)
    sigma = jnp.asarray(_SAMPLER.sigmas[0], jnp.float32)

    def later(filled, start):
      x0 = self_rollout.predict(
        model, filled, start, sigma, text, window=_WINDOW
      )
      return (x0 * cotangent[:, :CHUNK]).sum()

    def leaking(filled, start):
      positions = chunk_pass.positions_of(filled, CHUNK, window=_WINDOW)
      level = 1000 * sigma
      v, _ = chunk_pass.velocity_and_entries(
        model, filled, start, level, text, positions
      )
      return (v * cotangent[:, :CHUNK]).sum()

    argnums = dict(argnums=(0, 1), allow_int=True)
    given = rolled.cache, start
    return [jax.grad(f, **argnums)(*given) for f in (later, leaking)]

  (stopped, own), (leak, _) = gradients(model, draws.noise.start[1])
  assert all((x == 0).all() for x in jax.tree.leaves(stopped.entries))
  assert (own != 0).any()
  assert all((x != 0).any() for x in jax.tree.leaves(leak.entries))


def test_rollout_itself_has_no_gradient(seed):
  model, text, draws, cotangent = _inputs(seed, "latent", 1, chunks=2)
  cache = _start(model, 4)

  def loss(model):
    rolled = self_rollout.generate(model, cache, draws, text, **_ROLL)
    return (rolled.latents * cotangent).sum()

  gradient = jax.jit(jax.grad(loss))(model)
  assert all((x == 0).all() for x in jax.tree.leaves(gradient))


def _gradient_bytes(chunks):
  """Temporary memory of the backward pass, from the compiled program."""
  model, text, draws, cotangent = _inputs(0, "latent", 0, chunks)
  rolled = jax.eval_shape(
    lambda: self_rollout.generate(
      model,
      _start(model, 64),
      draws,
      text,
      **_ROLL,
      num_trained=chunks * CHUNK,
    )
  )
  compiled = (
    jax.jit(self_rollout.gradients, static_argnames=("window", "sampler"))
    .lower(model, rolled, cotangent, draws.exit_call, text, **_ROLL)
    .compile()
  )
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_backward_pass_does_not_grow_with_length():
  short, long = _gradient_bytes(3), _gradient_bytes(24)
  # One copy of the cotangent, chunk axis first, is all that grows.
  growth, chunk = (long - short) / 21, 4 * B * CHUNK * np.prod(tiny_model.FRAME)
  assert growth <= 2 * chunk
  assert growth < 0.02 * short


def _scores(seed, kind="dense"):
  rng = np.random.default_rng(seed + 1)
  real, critic = (_build(kind, rng) for _ in range(2))
  return real, critic, dmd.Texts(*(_text(rng) for _ in range(4)))


_gradients = jax.jit(dmd.gradients, static_argnames=("setup", "image_latent"))


_bidirectional = jax.jit(bidirectional.velocity)


def _image_latent(prefix):
  return 0.5 * prefix[:, -1:] + 1.0


@pytest.mark.slow
def test_whole_step_equals_one_program_and_goes_on_from_a_clip(seed):
  chunks = 5  # two more than a clip, so the last-frames rule is at work
  student, _, roll, _ = _inputs(seed, "latent", 0, chunks)
  real, critic, texts = _scores(seed)
  rng = np.random.default_rng(seed)
  shape = (B, _SETUP.clip_frames, *tiny_model.FRAME)
  score = dmd.ScoreDraws(
    jnp.asarray(rng.uniform(0.1, 0.9, B), jnp.float32),
    tiny_model.normal(rng, *shape),
  )
  cache = _start(student, 10)
  (loss, rolled), ours = _gradients(
    student,
    real,
    critic,
    cache,
    (roll, score),
    texts,
    setup=_SETUP,
    image_latent=_image_latent,
  )

  @functools.partial(jax.value_and_grad, has_aux=True)
  def one_program(student):
    video = _by_hand(student, cache, roll, texts.student, 0)
    image = jax.lax.stop_gradient(0.5 * video[:, 4:5] + 1.0)
    x = jnp.concatenate([image, video[:, 5:]], axis=1)
    noisy = flow.add_noise(x, score.noise, score.sigma[:, None])
    sigma = score.sigma[:, None, None, None, None]

    def x0_of(model, text):
      v = _bidirectional(model, noisy, score.sigma, text)
      return noisy - sigma * v

    cond, neg = x0_of(real, texts.real), x0_of(real, texts.negative)
    r, f = cond + 3 * (cond - neg), x0_of(critic, texts.critic)
    p = jnp.abs(x - r).mean(axis=(1, 2, 3, 4), keepdims=True)
    goal = jax.lax.stop_gradient(x - (f - r) / p)
    return 0.5 * ((x - goal) ** 2)[:, CHUNK:].mean(), video

  (expected, video), gradient = one_program(student)
  tolerances.assert_close(rolled.latents, video, "float32_deep")
  tolerances.assert_close(loss, expected, "float32_deep")
  _assert_trees_close(ours, gradient, "float32_deep")

  # Three chunks, then in another call two that train the same frames.
  def part(chunks):
    noise = jax.tree.map(lambda x: x[chunks], roll.noise)
    return roll._replace(noise=noise)

  first = _self_rollout(student, cache, part(slice(3)), texts.student, **_ROLL)
  (later, rest), streamed = _gradients(
    student,
    real,
    critic,
    first.cache,
    (part(slice(3, None)), score),
    texts,
    previous=first.latents,
    setup=_SETUP,
    image_latent=_image_latent,
  )
  tolerances.assert_close(rest.latents, video[:, 6:], "float32_deep")
  tolerances.assert_close(later, expected, "float32_deep")
  _assert_trees_close(streamed, gradient, "float32_deep")


def test_draws_are_those_of_inference_with_any_exit(seed):
  exits = [
    int(
      self_rollout.draw(
        jax.random.fold_in(jax.random.key(seed), i),
        (1, CHUNK, 2, 2, 1),
        **_ROLL,
      ).exit_call
    )
    for i in range(60)
  ]
  assert set(exits) == {0, 1, 2}
  draws = _draws(seed, 3, 0)
  assert draws.noise.start.shape == (3, B, CHUNK, *tiny_model.FRAME)
  assert draws.noise.fresh.shape == (3, 2, B, CHUNK, *tiny_model.FRAME)
  score = dmd.draw_score(jax.random.key(seed), (4000, 1, 2, 2, 1), s=5.0)
  assert 0.02 <= score.sigma.min() < score.sigma.max() <= np.float32(0.98)
  assert float(jnp.median(score.sigma)) == pytest.approx(5 / 6, abs=0.03)


@pytest.mark.parametrize("known", [0, 3])
def test_critic_gradients_are_flow_matching_on_the_clip(seed, known):
  _, critic, texts = _scores(seed)
  rng = np.random.default_rng(seed)
  x = tiny_model.normal(rng, B, 4, *tiny_model.FRAME)
  draws = dmd.draw_score(jax.random.key(seed), x.shape, s=5.0)
  # Frames of an earlier segment are seen and not counted.
  counted = slice(known, None)
  gradients = jax.jit(functools.partial(dmd.critic_gradients, counted=counted))
  loss, gradient = gradients(critic, x, draws, texts.critic)

  @jax.jit
  @jax.value_and_grad
  def expected(critic):
    sigma = draws.sigma[:, None, None, None, None]
    noisy = (1 - sigma) * x + sigma * draws.noise
    v = dmd.whole(critic, texts.critic)(noisy, draws.sigma)
    return ((v - draws.noise + x) ** 2)[:, known:].mean()

  by_hand, other = expected(critic)
  tolerances.assert_close(loss, by_hand)
  _assert_trees_close(gradient, other)
