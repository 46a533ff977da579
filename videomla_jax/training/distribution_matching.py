"""Stage 3: distribution matching on own rollouts, spec/training.md section 4.

A step is one update of the student and then `critic_updates` updates of the
critic, each on prompts and a rollout of its own. Only prompts are needed. The
real score is frozen; it and the critic are bidirectional.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache
from videomla_jax.training import inputs
from videomla_jax.training import optim

TITLE = "distribution matching"
STARTS_FROM = {
  "model": ("consistency", "dmd"),
  "real": ("pretraining", "release"),
  "critic": ("pretraining", "release"),
}


class DmdState(NamedTuple):
  """What a step changes.

  Attributes:
    student: The causal network, its average and moments.
    critic: The bidirectional network that follows the student's clips; its
      average is not used and not kept.
  """

  student: optim.TrainState
  critic: optim.TrainState

  @property
  def model(self) -> PyTree:
    """The student."""
    return self.student.model

  @property
  def ema(self) -> PyTree:
    """The average of the student, which is evaluated and handed on."""
    return self.student.ema

  @property
  def step(self) -> Int32[Array, ""]:
    """Finished steps."""
    return self.student.step


def setup(config: Any) -> dmd.Setup:
  """What stays fixed over a run.

  Raises:
    ValueError: If window, schedule or clip do not fit each other.
  """
  window = cache.Window(**config.window)
  sampler = sampling.few_step(
    tuple(config.diffusion.timesteps), shift=config.diffusion.shift
  )
  made = dmd.Setup(
    window=window,
    sampler=sampler,
    clip_frames=config.data.num_frames,
    guidance=config.diffusion.guidance,
    shift=config.diffusion.shift,
  )
  dmd.num_trained(
    config.rollout.num_frames, config.rollout.num_frames, setup=made
  )
  return made


def check(config: Any) -> None:
  """Refuses configs of this stage that cannot be trained."""
  setup(config)
  if config.optim.critic_updates < 1:
    raise ValueError(
      f"optim.critic_updates={config.optim.critic_updates} must be at least 1; "
      "use 5."
    )
  if not config.optim.critic_learning_rate > 0:
    raise ValueError(
      f"optim.critic_learning_rate={config.optim.critic_learning_rate} must be "
      "positive; the paper's is 4e-7."
    )


def _cache(model, batch: int, config) -> cache.Cache:
  """An empty cache of a rollout."""
  return rollout.empty_cache(
    inputs.dit(model),
    batch=batch,
    frame=tuple(config.data.latent_shape),
    window=cache.Window(**config.window),
    max_frames=config.rollout.num_frames,
  )


def student_gradients(
  state: DmdState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
) -> tuple[Array, PyTree]:
  """Loss, and its gradient to the parameters of the student."""
  student, critic = state.student.model, state.critic.model
  real = frozen["real"]
  fixed = setup(config)
  size = inputs.num_examples(batch)
  key_rollout, key_score = jax.random.split(key)
  rolled = (size, config.rollout.num_frames, *config.data.latent_shape)
  judged = (size, fixed.clip_frames, *config.data.latent_shape)
  texts = dmd.Texts(
    student=inputs.text(student, batch),
    real=inputs.text(real, batch),
    negative=inputs.negative(real, batch),
    critic=inputs.text(critic, batch),
  )
  (value, _), gradient = dmd.gradients(
    inputs.dit(student),
    inputs.dit(real),
    inputs.dit(critic),
    _cache(student, size, config),
    (
      dmd.draw_rollout(key_rollout, rolled, setup=fixed),
      dmd.draw_score(key_score, judged, s=fixed.shift),
    ),
    texts,
    setup=fixed,
  )
  return value, _whole_model(student, gradient)


def _whole_model(model: Any, gradient: PyTree) -> PyTree:
  """Gradient of a model whose other parts have none: words, codec."""
  if inputs.dit(model) is model:
    return gradient
  zeros = jax.tree.map(jnp.zeros_like, model)
  zeros.dit = gradient
  return zeros


def critic_gradients(
  state: DmdState, batch: inputs.Batch, key: Array, *, config: Any
) -> tuple[Array, PyTree]:
  """Loss on a new rollout, and its gradient to the critic's parameters."""
  student, critic = state.student.model, state.critic.model
  fixed = setup(config)
  size = inputs.num_examples(batch)
  key_rollout, key_score = jax.random.split(key)
  shape = (size, config.rollout.num_frames, *config.data.latent_shape)
  rolled = dmd.self_rollout(
    inputs.dit(student),
    _cache(student, size, config),
    dmd.draw_rollout(key_rollout, shape, setup=fixed),
    inputs.text(student, batch),
    setup=fixed,
  )
  clip = dmd.clip_of(rolled.latents, setup=fixed)
  value, gradient = dmd.critic_gradients(
    inputs.dit(critic),
    clip,
    dmd.draw_score(key_score, clip.shape, s=fixed.shift),
    inputs.text(critic, batch),
  )
  return value, _whole_model(critic, gradient)


def step(
  state: DmdState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  variant: int | None,
) -> tuple[DmdState, optim.Metrics]:
  """One update of the student, then several of the critic.

  Args:
    state: Before the step.
    batch: Prompts of all updates: the student's, then each of the critic's.
    key: Of this step.
    frozen: "real".
    config: See configs/dmd.py.
    variant: Not used: a rollout starts from noise.
  """
  del variant
  parts, updates = config.optim.accumulate, config.optim.critic_updates
  turns = inputs.split(batch, 1 + updates)
  first = jax.tree.map(lambda x: x[0], turns)
  rest = jax.tree.map(lambda x: x[1:], turns)
  value, gradient = optim.accumulated(
    lambda batch, key: student_gradients(
      state, batch, key, frozen=frozen, config=config
    ),
    first,
    jax.random.fold_in(key, 0),
    parts=parts,
  )
  student, scalars = optim.apply(state.student, gradient, value, config.optim)

  def update_critic(critic, xs):
    batch, index = xs
    now = DmdState(student, critic)
    loss, gradient = optim.accumulated(
      lambda batch, key: critic_gradients(now, batch, key, config=config),
      batch,
      jax.random.fold_in(key, index),
      parts=parts,
    )
    critic, own = optim.apply(
      critic,
      gradient,
      loss,
      config.optim,
      learning_rate=config.optim.critic_learning_rate,
    )
    return critic, (loss, own["train/grad_norm"])

  critic, (losses, norms) = jax.lax.scan(
    update_critic, state.critic, (rest, 1 + jnp.arange(updates))
  )
  scalars |= {
    "train/loss": value,
    "train/loss_dmd": value,
    "train/loss_critic": losses.mean(),
    "train/critic_grad_norm": norms.mean(),
    "train/skipped": student.skipped + critic.skipped,
  }
  return DmdState(student, critic), scalars
