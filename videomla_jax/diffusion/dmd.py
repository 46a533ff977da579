"""Stage 3: distribution matching on the student's own rollouts.

docs/method.md, section 12 (arXiv:2405.14867). The clip X that the student made
(`self_rollout`) is noised, X_σ = (1-σ) X + σ ε, and two bidirectional networks
say where clean clips lie: real score r (frozen, guided) and critic f.

  g   = (f(X_σ) - r(X_σ)) / mean |X - r|            per row            (12.1)
  L_G = ½ mean (X - sg[X - g])²,  so dL_G/dX = g / numel               (12.2)
  L_C = mean (v_critic(X_σ) - (ε - X))²                                (12.4)
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key
import numpy as np

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import self_rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

Latents = Float[Array, "B T H W C"]
Text = Float[Array, "B M E"]
Scalar = Float32[Array, ""]
# (noisy latents, σ of each row) -> velocity.
VelocityOf = Callable[[Latents, Float32[Array, "B"]], Latents]
# Latents of a video -> its last pixel frame as the latent of an image.
ImageLatent = Callable[[Latents], Array]
Counted = Bool[np.ndarray, "T"] | slice  # frames that a mean goes over

SCORE_SIGMAS = 0.02, 0.98  # lowest and highest level of the scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What stays fixed over a training run.

  Attributes:
    window: Which frames the student sees.
    sampler: The student's few-step sampler.
    clip_frames: Latent frames that the scores see.
    guidance: w of the real score in `uncond + w (cond - uncond)`. The reference
      implementation adds its 3.0 to the conditional, hence 4.0.
    shift: Warp of the noise levels at which clips are judged.
  """

  window: window_lib.Window
  sampler: sampling.Sampler
  clip_frames: int = 21
  guidance: float = 4.0
  shift: float = 5.0

  def __post_init__(self) -> None:
    rule, w = self.sampler.rule, self.sampler.guidance
    if not self.sampler.step_rule.adds_noise or w is not None:
      raise ValueError(
        f"sampler has rule={rule!r} and guidance={w} but a student is rolled "
        "out with 'renoise' and no guidance; use sampling.few_step()."
      )


class ScoreDraws(NamedTuple):
  """Noise at which a clip is judged.

  Attributes:
    sigma: Noise level σ of each row.
    noise: Gaussian noise ε.
  """

  sigma: Float32[Array, "B"]
  noise: Latents


def score_sigma(raw: Int[Array, "B"], *, s: float) -> Float32[Array, "B"]:
  """Returns the level of an integer 0..999, docs/method.md, Eq. (6.12)."""
  # The ends are cut off: a clip without noise, or of noise only, says nothing.
  level = flow.shift(raw.astype(jnp.float32) / wan_config.MAX_TIMESTEP, s)
  return jnp.clip(level, *SCORE_SIGMAS)


def draw_score(
  key: Key[Array, ""], shape: tuple[int, ...], *, s: float
) -> ScoreDraws:
  """Draws the noise at which a clip is judged.

  Args:
    key: Random key.
    shape: B, T, H, W, C of the clip.
    s: Warp of the noise level.
  """
  key_level, key_noise = jax.random.split(key)
  raw = jax.random.randint(
    key_level, shape[:1], 0, int(wan_config.MAX_TIMESTEP)
  )
  noise = jax.random.normal(key_noise, shape, jnp.float32)
  return ScoreDraws(score_sigma(raw, s=s), noise)


class Texts(NamedTuple):
  """Embedded prompts as each network reads them.

  Attributes:
    student: Prompts of the student.
    real: Prompts of the real score.
    negative: Negative prompt of the real score.
    critic: Prompts of the critic.
  """

  student: Text
  real: Text
  negative: Text
  critic: Text


def num_trained(new_frames: int, total_frames: int, *, setup: Setup) -> int:
  """Returns how many frames of a rollout get a gradient, always its last ones.

  A video as long as a clip counts in full. Of a longer one, the clip's first
  chunk does not, nor do frames of earlier steps.

  Args:
    new_frames: Frames of this rollout.
    total_frames: Frames of the video, earlier ones included.
    setup: Sizes of clip and chunk.

  Raises:
    ValueError: If the lengths do not fit each other.
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
  """Returns the last frames as a clip of its own, docs/method.md, Eq. (12.5).

  Args:
    latents: Latents of the video.
    setup: Sets the length of the clip.
    image_latent: Decodes the frames up to the clip's first and encodes the last
      pixel frame as an image; codecs of single frames need none.
  """
  # A VAE makes the first latent of a clip from one pixel frame, later ones from
  # four; the scores know no clip that begins in the middle.
  start = latents.shape[1] - setup.clip_frames
  if not start or image_latent is None:
    return latents[:, start:]
  first = image_latent(latents[:, : start + 1])
  return jnp.concatenate([first, latents[:, start + 1 :]], axis=1)


def score_gradient(x: Latents, real: Latents, fake: Latents) -> Latents:
  """Returns g of Eq. (12.1), made finite, from a clip and the scores' x0."""
  # Dividing by the distance to the real score gives every row the same weight,
  # whatever its noise level (arXiv:2311.18828).
  p = jnp.abs(x - real).mean(axis=(1, 2, 3, 4), keepdims=True)
  # A clip that the real score leaves as it is would be divided by 0.
  return jnp.nan_to_num((fake - real) / p)


def generator_loss(
  x: Latents, gradient: Latents, counted: Counted = slice(None)
) -> Scalar:
  """Returns L_G of Eq. (12.2), the mean over counted frames."""
  # ½ (g + x - sg x)² is the same and loses no digits in x - sg[x - g].
  gradient = jax.lax.stop_gradient(gradient)
  error = gradient + (x - jax.lax.stop_gradient(x))
  return 0.5 * (error**2)[:, counted].mean()


def critic_loss(
  critic: VelocityOf,
  x: Latents,
  draws: ScoreDraws,
  counted: Counted = slice(None),
) -> Scalar:
  """Returns L_C of Eq. (12.4) for a clip, which is a constant."""
  # No gradient may reach the student from the loss of the critic.
  x = jax.lax.stop_gradient(x)
  noisy = flow.add_noise(x, draws.noise, draws.sigma[:, None])
  error = critic(noisy, draws.sigma) - flow.velocity_target(x, draws.noise)
  return (error**2)[:, counted].mean()


def compare(
  real: VelocityOf, fake: VelocityOf, x: Latents, draws: ScoreDraws
) -> Latents:
  """Returns g of Eq. (12.1) for a clip; the real score is guided already."""
  sigma = draws.sigma[:, None]
  noisy = flow.add_noise(x, draws.noise, sigma)
  real, fake = (
    flow.x0_from_velocity(noisy, network(noisy, draws.sigma), sigma)
    for network in (real, fake)
  )
  return score_gradient(x, real, fake)


def whole(model: wan.WanDiT, text: Text) -> VelocityOf:
  """Returns the velocity of a network that sees a clip at once."""
  return lambda x, sigma: bidirectional.velocity(model, x, sigma, text)


def _guided(real: wan.WanDiT, texts: Texts, *, weight: float) -> VelocityOf:
  """Returns the guided velocity of the real score.

  The prompts run one after the other, as two batches need twice the memory.
  """
  conditional = whole(real, texts.real)
  unconditional = whole(real, texts.negative)

  def guide(x: Latents, sigma: Float32[Array, "B"]) -> Latents:
    return flow.guide(conditional(x, sigma), unconditional(x, sigma), weight)

  return guide


def critic_gradients(
  critic: wan.WanDiT,
  x: Latents,
  draws: ScoreDraws,
  text: Text,
  counted: Counted = slice(None),
) -> tuple[Scalar, wan.WanDiT]:
  """Returns the critic's loss and its gradient to the critic's parameters."""

  def loss(critic: wan.WanDiT) -> Scalar:
    return critic_loss(whole(critic, text), x, draws, counted)

  return jax.value_and_grad(loss)(critic)


def gradients(
  student: wan.WanDiT,
  real: wan.WanDiT,
  critic: wan.WanDiT,
  cache: cache_lib.Cache,
  draws: tuple[self_rollout.Draws, ScoreDraws],
  texts: Texts,
  *,
  setup: Setup,
  previous: Latents | None = None,
  image_latent: ImageLatent | None = None,
) -> tuple[tuple[Scalar, self_rollout.SelfRollout], wan.WanDiT]:
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
    image_latent: Encodes a frame as an image, see `clip_of`.

  Returns:
    Loss and rollout; the gradient to the student's parameters.
  """
  rollout_draws, score_draws = draws
  new = rollout_draws.noise.start.shape[0] * setup.window.chunk_frames
  total = new + (0 if previous is None else previous.shape[1])
  trained = num_trained(new, total, setup=setup)
  rolled = self_rollout.generate(
    student,
    cache,
    rollout_draws,
    texts.student,
    window=setup.window,
    sampler=setup.sampler,
    num_trained=trained,
  )
  video = rolled.latents
  if previous is not None:
    video = jnp.concatenate([previous, video], axis=1)
  clip = clip_of(video, setup=setup, image_latent=image_latent)
  guided = _guided(real, texts, weight=setup.guidance)
  gradient = compare(guided, whole(critic, texts.critic), clip, score_draws)
  counted = slice(clip.shape[1] - trained, None)
  # Only to the clip: through the rollout it would keep all chunks' activations.
  loss, cotangent = jax.value_and_grad(generator_loss)(clip, gradient, counted)
  student_gradient = self_rollout.gradients(
    student,
    rolled,
    cotangent[:, -trained:],
    rollout_draws.exit_call,
    texts.student,
    window=setup.window,
    sampler=setup.sampler,
  )
  return (loss, rolled), student_gradient
