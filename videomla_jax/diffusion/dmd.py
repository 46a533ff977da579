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
from videomla_jax.models import wan_config
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
  """What a rollout draws at random.

  Attributes:
    noise: Noise of every chunk, leaves with a leading chunk axis.
    exit_call: Network calls before the exit call, 0 to K - 1, the same for all
      chunks and rows.
  """

  noise: sampling.Noise
  exit_call: Int[Array, ""]


def score_sigma(raw: Int[Array, "B"], *, s: float) -> Float32[Array, "B"]:
  """Level of a drawn integer 0..999, spec/diffusion.md Eq. (17)."""
  level = flow.shift(raw.astype(jnp.float32) / wan_config.MAX_TIMESTEP, s)
  return jnp.clip(level, *SCORE_SIGMAS)


def draw_score(key: Array, shape: tuple[int, ...], *, s: float) -> ScoreDraws:
  """Draws for a clip of shape B, T, H, W, C."""
  key_level, key_noise = jax.random.split(key)
  raw = jax.random.randint(
    key_level, shape[:1], 0, int(wan_config.MAX_TIMESTEP)
  )
  noise = jax.random.normal(key_noise, shape, jnp.float32)
  return ScoreDraws(score_sigma(raw, s=s), noise)


def draw_rollout(
  key: Array, shape: tuple[int, ...], *, setup: Setup
) -> RolloutDraws:
  """Draws for a rollout of shape B, T, H, W, C; T is rounded up to chunks."""
  key_noise, key_exit = jax.random.split(key)
  length, sampler = setup.window.chunk_frames, setup.sampler
  keys = rollout.split_keys(key_noise, shape[0])
  chunks = jnp.arange(-(-shape[1] // length))

  def draw(chunk: Array) -> sampling.Noise:
    return sampling.chunk_noise(
      keys, chunk, shape=(length, *shape[2:]), sampler=sampler
    )

  noise = jax.vmap(draw)(chunks)
  exit_call = jax.random.randint(key_exit, (), 0, len(sampler.sigmas))
  return RolloutDraws(noise, exit_call)


class Texts(NamedTuple):
  """Prompts as each network reads them, and the negative prompt."""

  student: Text
  real: Text
  negative: Text
  critic: Text


class Trained(NamedTuple):
  """What the gradient of a chunk needs; with a leading axis, of several.

  Attributes:
    exit_input: Noisy latents that the exit call saw.
    entries: Entries of the clean chunk, leaves `[layers, B, T, P, ...]`.
  """

  exit_input: Float[Array, "*m B T H W C"]
  entries: PyTree


class SelfRollout(NamedTuple):
  """A rollout and what its gradient needs.

  Attributes:
    latents: Predictions at the exit call.
    trained: The trained chunks, which are the last ones; None if none are.
    before: The cache before the first trained chunk.
    cache: The cache after all chunks, to continue from.
  """

  latents: Latents
  trained: Trained | None
  before: cache_lib.Cache
  cache: cache_lib.Cache


def predict(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  x: Latents,
  sigma: Scalar,
  text: Text,
  *,
  window: window_lib.Window,
) -> Latents:
  """Predicts x0 of a chunk, the one pass with a gradient; the cache has none.

  Args:
    model: The student.
    cache: The cache before the chunk.
    x: The chunk at noise level `sigma`.
    sigma: Noise level, 0..1.
    text: Text embeddings.
    window: The window that the cache was made for.

  Returns:
    Predicted clean latents.
  """
  velocity = _velocity(model, jax.lax.stop_gradient(cache), text, window=window)
  return flow.x0_from_velocity(x, velocity(x, sigma), sigma[None])


def _velocity(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  text: Text,
  *,
  window: window_lib.Window,
) -> Callable[[Latents, Array], Latents]:
  """Returns the network as a function of the next chunk and its level."""

  def velocity_of(x: Latents, sigma: Array) -> Latents:
    positions = chunk_pass.positions_of(cache, x.shape[1], window=window)
    level = sigma * wan_config.MAX_TIMESTEP
    return chunk_pass.velocity_and_entries(
      model, cache, x, level, text, positions
    )[0]

  return velocity_of


def _roll_chunk(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  exit_call: Int[Array, ""],
  text: Text,
  setup: Setup,
) -> tuple[cache_lib.Cache, Latents, Trained]:
  """Returns the cache after a chunk, its exit prediction and its record."""
  window, sampler = setup.window, setup.sampler
  network = _velocity(model, cache, text, window=window)
  x = sampling.solve(network, noise, sampler=sampler, num_calls=exit_call)
  sigma = jnp.asarray(sampler.sigmas, jnp.float32)[exit_call]
  x0 = predict(model, cache, x, sigma, text, window=window)
  entries = chunk_pass.clean_entries(model, cache, x0, text, window=window)
  after = cache_lib.append(cache, entries, window=window)
  return after, x0, Trained(x, entries)


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

  Args:
    model: The student.
    cache: An empty cache, or what an earlier rollout left (long tuning).
    draws: Noise of every chunk and the exit call.
    text: Text embeddings.
    setup: Window and sampler.
    num_trained: The last frames, whole chunks, that `chunk_gradients` needs.

  Returns:
    Latents of all chunks and what the gradient of the last ones needs.
  """
  model, cache, text = jax.lax.stop_gradient((model, cache, text))
  chunks = draws.noise.start.shape[0]
  first = chunks - num_trained // setup.window.chunk_frames

  def run(
    cache: cache_lib.Cache, some: slice, *, keep: bool
  ) -> tuple[cache_lib.Cache, tuple[Latents, Trained | None]]:
    """Rolls some chunks; keeps what their gradient needs if asked to."""

    def step(cache: cache_lib.Cache, noise: sampling.Noise) -> PyTree:
      after, x0, trained = _roll_chunk(
        model, cache, noise, draws.exit_call, text, setup
      )
      return after, (x0, trained if keep else None)

    return jax.lax.scan(
      step, cache, jax.tree.map(lambda leaf: leaf[some], draws.noise)
    )

  before, clips, trained = cache, [], None
  if first:
    before, (x0, _) = run(cache, slice(first), keep=False)
    clips.append(x0)
  after = before
  if first < chunks:
    after, (x0, trained) = run(before, slice(first, None), keep=True)
    clips.append(x0)
  latents = jnp.moveaxis(jnp.concatenate(clips), 0, 1)
  latents = latents.reshape(latents.shape[0], -1, *latents.shape[3:])
  return SelfRollout(latents, trained, before, after)


def chunk_gradients(
  model: wan.WanDiT,
  rolled: SelfRollout,
  cotangent: Latents,
  exit_call: Int[Array, ""],
  text: Text,
  *,
  setup: Setup,
) -> wan.WanDiT:
  """Sums the gradients of all trained chunks, Eq. (7).

  Args:
    model: The student.
    rolled: Its rollout.
    cotangent: Gradient of the loss to the latents of the trained frames.
    exit_call: The call whose predictions the latents are.
    text: Text embeddings.
    setup: Window and sampler.

  Returns:
    The gradient to the student's parameters.
  """
  assert rolled.trained is not None
  window = setup.window
  sigma = jnp.asarray(setup.sampler.sigmas, jnp.float32)[exit_call]
  chunks, batch, length = rolled.trained.exit_input.shape[:3]
  pulls = cotangent.reshape(batch, chunks, length, *cotangent.shape[2:])

  def step(carry: PyTree, chunk: tuple[Trained, Array]) -> PyTree:
    cache, total = carry
    trained, pull = chunk

    def x0_of(model: wan.WanDiT) -> Latents:
      x = trained.exit_input
      return predict(model, cache, x, sigma, text, window=window)

    _, back = jax.vjp(x0_of, model)
    total = jax.tree.map(jnp.add, total, back(pull)[0])
    cache = cache_lib.append(cache, trained.entries, window=window)
    return (cache, total), None

  zeros = jax.tree.map(jnp.zeros_like, model)
  every_chunk = (rolled.trained, jnp.moveaxis(pulls, 1, 0))
  (_, total), _ = jax.lax.scan(step, (rolled.before, zeros), every_chunk)
  return total


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
  """Computes the generator's loss, its rollout and the student's gradient.

  Args:
    student: The network that is trained.
    real: The frozen real score, bidirectional.
    critic: The critic, bidirectional.
    cache: An empty cache, or that of the rollout that made `previous`.
    draws: Noise of the rollout, and of the clip that is judged.
    texts: Prompts as each network reads them.
    setup: What stays fixed over a run.
    previous: Frames before this rollout, if it goes on with a video.
    image_latent: See `clip_of`.

  Returns:
    Loss and rollout; the gradient to the student's parameters.
  """
  rollout_draws, score_draws = draws
  new = rollout_draws.noise.start.shape[0] * setup.window.chunk_frames
  total = new + (0 if previous is None else previous.shape[1])
  trained = num_trained(new, total, setup=setup)
  rolled = self_rollout(
    student,
    cache,
    rollout_draws,
    texts.student,
    setup=setup,
    num_trained=trained,
  )
  video = rolled.latents
  if previous is not None:
    video = jnp.concatenate([previous, video], axis=1)
  clip = clip_of(video, setup=setup, image_latent=image_latent)

  def guided_real(x: Latents, sigma: Array) -> Latents:
    conditional = whole(real, texts.real)(x, sigma)
    unconditional = whole(real, texts.negative)(x, sigma)
    return flow.guide(conditional, unconditional, setup.guidance)

  fake = whole(critic, texts.critic)
  gradient = compare(guided_real, fake, clip, score_draws)
  counted = slice(clip.shape[1] - trained, None)
  loss, cotangent = jax.value_and_grad(generator_loss)(clip, gradient, counted)
  student_gradient = chunk_gradients(
    student,
    rolled,
    cotangent[:, -trained:],
    rollout_draws.exit_call,
    texts.student,
    setup=setup,
  )
  return (loss, rolled), student_gradient
