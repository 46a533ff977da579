"""Stage 3: distribution matching on the student's own rollouts.

spec/training.md section 4 (arXiv:2405.14867, arXiv:2506.08009). The student
generates chunk by chunk, as at inference, but leaves the few-step loop at a
random call e. Its clip X is noised, X_σ = (1-σ) X + σ ε, and two bidirectional
networks say where clean clips lie: real score r (frozen, guided) and critic f.

  g   = (f(X_σ) - r(X_σ)) / mean |X - r|            per example          (9)
  L_G = ½ mean (X - sg[X - g])²,  so dL_G/dX = g / numel                (10)
  L_C = mean (v_critic(X_σ) - (ε - X))²                                 (11)

Whatever is read from the cache is a constant, hence the gradient is a sum over
chunks m of gradients of single passes:

  dL_G/dθ = Σ_m J_m(θ)ᵀ (dL_G/dX)_m                                      (7)

So nothing is differentiated while generating; afterwards each chunk is computed
again and pulled back, with the activations of one chunk in memory.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PyTree
import numpy as np

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

Latents = Float[Array, "B T H W C"]
Text = Float[Array, "B M E"]
Scalar = Float32[Array, ""]
VelocityOf = Callable[[Latents, Float32[Array, "B"]], Latents]  # of x and σ
ImageLatent = Callable[[Latents], Array]
Counted = Bool[np.ndarray, "T"] | slice

SCORE_SIGMAS = 0.02, 0.98  # lowest and highest level of the scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What stays fixed over a training run.

  The scores see `clip_frames`, at levels warped by `shift`. `guidance` is w of
  the real score; the reference's 3.0 is added to the conditional, hence 4.0.
  """

  window: window_lib.Window
  sampler: sampling.Sampler
  clip_frames: int = 21
  guidance: float = 4.0
  shift: float = 5.0

  def __post_init__(self):
    rule, w = self.sampler.rule, self.sampler.guidance
    if rule != "renoise" or w is not None:
      raise ValueError(
        f"sampler has rule={rule!r} and guidance={w} but a student is rolled "
        "out with 'renoise' and no guidance; use sampling.few_step()."
      )


class ScoreDraws(NamedTuple):
  """At which noise a clip is judged: σ of each example, and ε."""

  sigma: Float32[Array, "B"]
  noise: Latents


class RolloutDraws(NamedTuple):
  """Noise of every chunk (leading axis); e - 1, one for chunks and examples."""

  noise: sampling.Noise
  exit_call: Int[Array, ""]


def score_sigma(raw: Int[Array, "B"], *, s: float) -> Float32[Array, "B"]:
  """Level of a drawn integer 0..999, spec/diffusion.md Eq. (17)."""
  level = flow.shift(raw.astype(jnp.float32) / flow.MAX_TIMESTEP, s)
  return jnp.clip(level, *SCORE_SIGMAS)


def draw_score(key: Array, shape: tuple[int, ...], *, s: float) -> ScoreDraws:
  """Draws for a clip of shape B, T, H, W, C."""
  key_level, key_noise = jax.random.split(key)
  raw = jax.random.randint(key_level, shape[:1], 0, int(flow.MAX_TIMESTEP))
  noise = jax.random.normal(key_noise, shape, jnp.float32)
  return ScoreDraws(score_sigma(raw, s=s), noise)


def draw_rollout(
  key: Array, shape: tuple[int, ...], *, setup: Setup
) -> RolloutDraws:
  """Draws for a rollout of shape B, T, H, W, C; T is rounded up to chunks."""
  key_noise, key_exit = jax.random.split(key)
  length, sampler = setup.window.chunk_frames, setup.sampler
  keys = rollout.split_keys(key_noise, shape[0])
  given = dict(shape=(length, *shape[2:]), sampler=sampler)
  chunks = jnp.arange(-(-shape[1] // length))
  noise = jax.vmap(lambda m: sampling.chunk_noise(keys, m, **given))(chunks)
  exit_call = jax.random.randint(key_exit, (), 0, len(sampler.sigmas))
  return RolloutDraws(noise, exit_call)


class Texts(NamedTuple):
  """Prompts as each network reads them, and the negative prompt."""

  student: Text
  real: Text
  negative: Text
  critic: Text


class SelfRollout(NamedTuple):
  """A rollout and what its gradient needs."""

  latents: Latents  # predictions at the exit call
  record: PyTree  # exit input and clean entries of each trained (last) chunk
  before: cache_lib.Cache  # the cache before the first trained chunk
  cache: cache_lib.Cache  # the cache after all, to continue from


def predict(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  x: Latents,
  sigma: Scalar,
  text: Text,
  *,
  window: window_lib.Window,
) -> Latents:
  """x0 of a chunk, the one pass that has a gradient; the cache has none."""
  cache = jax.lax.stop_gradient(cache)
  positions = chunk_pass.positions_of(cache, x.shape[1], window=window)
  t = sigma * flow.MAX_TIMESTEP
  velocity, _ = chunk_pass.forward(model, cache, x, t, text, positions)
  return flow.x0_from_velocity(x, velocity, sigma[None])


def _roll_chunk(model, cache, noise, exit_call, text, setup):
  """One chunk: the next cache, the exit prediction and its record."""
  calls = sampling.calls(setup.sampler, noise)
  positions = chunk_pass.positions_of(
    cache, noise.start.shape[1], window=setup.window
  )

  def one_call(k, state):
    call = jax.tree.map(lambda leaf: leaf[k], calls)
    t = call.sigma * flow.MAX_TIMESTEP
    answer, _ = chunk_pass.forward(model, cache, state.x, t, text, positions)
    return sampling.step(setup.sampler, state, answer, call)

  state = sampling.start(setup.sampler, noise)
  x = jax.lax.fori_loop(0, exit_call, one_call, state).x
  x0 = predict(
    model, cache, x, calls.sigma[exit_call, 0], text, window=setup.window
  )
  t = jnp.zeros((), jnp.float32)
  _, entries = chunk_pass.forward(model, cache, x0, t, text, positions)
  cache = cache_lib.append(cache, entries, window=setup.window)
  return cache, x0, (x, entries)


def self_rollout(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  draws: RolloutDraws,
  text: Text,
  *,
  setup: Setup,
  num_trained: int = 0,
) -> SelfRollout:
  """Generates as at inference up to the exit call; has no gradient.

  The cache is empty, or what an earlier rollout left (streaming). The last
  `num_trained` frames, whole chunks, are recorded for `chunk_gradients`.
  """
  model, cache, text = jax.lax.stop_gradient((model, cache, text))

  def run(cache, part, record):
    def step(cache, noise):
      out = _roll_chunk(model, cache, noise, draws.exit_call, text, setup)
      return out[0], (out[1], out[2] if record else None)

    part = jax.tree.map(lambda leaf: leaf[part], draws.noise)
    return jax.lax.scan(step, cache, part)

  chunks, record = draws.noise.start.shape[0], None
  first = chunks - num_trained // setup.window.chunk_frames
  before, pieces = cache, []
  if first:
    before, (x0, _) = run(cache, slice(first), False)
    pieces.append(x0)
  cache = before
  if first < chunks:
    cache, (x0, record) = run(cache, slice(first, None), True)
    pieces.append(x0)
  latents = jnp.moveaxis(jnp.concatenate(pieces), 0, 1)
  latents = latents.reshape(latents.shape[0], -1, *latents.shape[3:])
  return SelfRollout(latents, record, before, cache)


def chunk_gradients(
  model: wan.WanDiT,
  rolled: SelfRollout,
  cotangent: Latents,
  exit_call: Int[Array, ""],
  text: Text,
  *,
  setup: Setup,
) -> wan.WanDiT:
  """Pulls `cotangent`, of the trained frames, back and sums, Eq. (7)."""
  sigma = jnp.asarray(setup.sampler.sigmas, jnp.float32)[exit_call]
  chunks, batch, length = rolled.record[0].shape[:3]
  pulls = cotangent.reshape(batch, chunks, length, *cotangent.shape[2:])

  def step(carry, chunk):
    cache, total = carry
    (x, entries), pull = chunk
    _, back = jax.vjp(
      lambda m: predict(m, cache, x, sigma, text, window=setup.window), model
    )
    total = jax.tree.map(jnp.add, total, back(pull)[0])
    cache = cache_lib.append(cache, entries, window=setup.window)
    return (cache, total), None

  start = rolled.before, jax.tree.map(jnp.zeros_like, model)
  xs = rolled.record, jnp.moveaxis(pulls, 1, 0)
  return jax.lax.scan(step, start, xs)[0][1]


def num_trained(new_frames: int, total_frames: int, *, setup: Setup) -> int:
  """Frames of a rollout that get a gradient, always its last ones.

  A video as long as a clip counts in full. Of a longer one, the clip's first
  chunk does not, nor do frames of earlier calls.
  """
  clip, chunk = setup.clip_frames, setup.window.chunk_frames
  trained = min(new_frames, clip if total_frames == clip else clip - chunk)
  if new_frames % chunk or clip % chunk or total_frames < clip or trained < 1:
    raise ValueError(
      f"new_frames={new_frames} and clip_frames={clip} must be multiples of "
      f"chunk_frames={chunk} and total_frames={total_frames} at least a clip, "
      "which is more than a chunk; roll out more frames."
    )
  return trained


def clip_of(
  latents: Latents, *, setup: Setup, image_latent: ImageLatent | None = None
) -> Float[Array, "B K H W C"]:
  """What the scores see: the last frames as a clip of its own, Eq. (8).

  `image_latent` decodes the frames up to the clip's first and encodes the last
  pixel frame as an image; codecs of single frames need none.
  """
  start = latents.shape[1] - setup.clip_frames
  if not start or image_latent is None:
    return latents[:, start:]
  first = image_latent(latents[:, : start + 1])
  return jnp.concatenate([first, latents[:, start + 1 :]], axis=1)


def score_gradient(x: Latents, real: Latents, fake: Latents) -> Latents:
  """The g of Eq. (9) from a clip and the scores' x0; no epsilon, but finite."""
  p = jnp.abs(x - real).mean(axis=(1, 2, 3, 4), keepdims=True)
  return jnp.nan_to_num((fake - real) / p)


def generator_loss(
  x: Latents, gradient: Latents, counted: Counted = slice(None)
) -> Scalar:
  """Eq. (10) over counted frames, as ½ (g + x - sg x)² to lose no digits."""
  gradient = jax.lax.stop_gradient(gradient)
  error = gradient + (x - jax.lax.stop_gradient(x))
  return 0.5 * (error**2)[:, counted].mean()


def critic_loss(
  critic: VelocityOf,
  x: Latents,
  draws: ScoreDraws,
  counted: Counted = slice(None),
) -> Scalar:
  """L_C of Eq. (11) for a clip of the student, which is a constant."""
  x = jax.lax.stop_gradient(x)
  noisy = flow.add_noise(x, draws.noise, draws.sigma[:, None])
  error = critic(noisy, draws.sigma) - flow.velocity_target(x, draws.noise)
  return (error**2)[:, counted].mean()


def compare(
  real: VelocityOf, fake: VelocityOf, x: Latents, draws: ScoreDraws
) -> Latents:
  """The g of a clip; the real score is guided already."""
  sigma = draws.sigma[:, None]
  noisy = flow.add_noise(x, draws.noise, sigma)
  real, fake = (
    flow.x0_from_velocity(noisy, network(noisy, draws.sigma), sigma)
    for network in (real, fake)
  )
  return score_gradient(x, real, fake)


def whole(model: wan.WanDiT, text: Text) -> VelocityOf:
  """A network that sees a clip at once."""
  return lambda x, sigma: bidirectional.velocity(model, x, sigma, text)


def critic_gradients(
  critic: wan.WanDiT,
  x: Latents,
  draws: ScoreDraws,
  text: Text,
  counted: Counted = slice(None),
) -> tuple[Scalar, wan.WanDiT]:
  """Critic loss and its gradient to the critic's parameters."""
  loss = lambda critic: critic_loss(whole(critic, text), x, draws, counted)
  return jax.value_and_grad(loss)(critic)


def gradients(
  student: wan.WanDiT,
  real: wan.WanDiT,
  critic: wan.WanDiT,
  cache: cache_lib.Cache,
  draws: tuple[RolloutDraws, ScoreDraws],
  texts: Texts,
  *,
  setup: Setup,
  previous: Latents | None = None,
  image_latent: ImageLatent | None = None,
) -> tuple[tuple[Scalar, SelfRollout], wan.WanDiT]:
  """Generator loss and rollout, and the gradient to the student's parameters.

  The cache is empty, or of the rollout that made the `previous` frames.
  """
  roll, score = draws
  new = length = roll.noise.start.shape[0] * setup.window.chunk_frames
  length += 0 if previous is None else previous.shape[1]
  trained = num_trained(new, length, setup=setup)
  rolled = self_rollout(
    student, cache, roll, texts.student, setup=setup, num_trained=trained
  )
  video = rolled.latents
  if previous is not None:
    video = jnp.concatenate([previous, video], axis=1)
  x = clip_of(video, setup=setup, image_latent=image_latent)

  def guided(x, sigma):
    pair = (whole(real, t)(x, sigma) for t in (texts.real, texts.negative))
    return flow.guide(*pair, setup.guidance)

  g = compare(guided, whole(critic, texts.critic), x, score)
  counted = slice(x.shape[1] - trained, None)
  loss, cotangent = jax.value_and_grad(generator_loss)(x, g, counted)
  pull, given = cotangent[:, -trained:], (roll.exit_call, texts.student)
  total = chunk_gradients(student, rolled, pull, *given, setup=setup)
  return (loss, rolled), total
