"""Stage 3: distribution matching on own rollouts, spec/training.md section 4.

A step is one update of the student and then `critic_updates` updates of the
critic, each on prompts and a rollout of its own; where videos go on from step
to step (`streaming`), all on the same segment. Only prompts are needed. The
real score is frozen; it and the critic are bidirectional.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib
from videomla_jax.training import inputs
from videomla_jax.training import long_tuning
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
    stream: The videos that the next step goes on with, if they do.
  """

  student: optim.TrainState
  critic: optim.TrainState
  stream: long_tuning.Stream | None = None

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
  window = window_lib.Window(**config.window)
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
  long_tuning.check(config)
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


def student_gradients(
  state: DmdState,
  batch: inputs.Batch,
  key: Array,
  *,
  frozen: dict[str, Any],
  config: Any,
  variant: int | None = None,
) -> tuple[tuple[Array, dmd.SelfRollout], PyTree]:
  """Loss and rollout, and the gradient to the parameters of the student."""
  student, critic = state.student.model, state.critic.model
  real = frozen["real"]
  fixed = setup(config)
  size = inputs.num_examples(batch)
  part = long_tuning.segment(state.stream, student, size, config, variant)
  key_rollout, key_score = jax.random.split(key)
  rolled = (size, part.frames, *config.data.latent_shape)
  judged = (size, fixed.clip_frames, *config.data.latent_shape)
  texts = dmd.Texts(
    student=inputs.text(student, batch),
    real=inputs.text(real, batch),
    negative=inputs.negative(real, batch),
    critic=inputs.text(critic, batch),
  )
  made, gradient = dmd.gradients(
    inputs.dit(student),
    inputs.dit(real),
    inputs.dit(critic),
    part.cache,
    (
      dmd.draw_rollout(key_rollout, rolled, setup=fixed),
      dmd.draw_score(key_score, judged, s=fixed.shift),
    ),
    texts,
    setup=fixed,
    previous=part.previous,
  )
  return made, _whole_model(student, gradient)


def _whole_model(model: Any, gradient: PyTree) -> PyTree:
  """Gradient of a model whose other parts have none: words, codec."""
  if inputs.dit(model) is model:
    return gradient
  zeros = jax.tree.map(jnp.zeros_like, model)
  zeros.dit = gradient
  return zeros


def critic_gradients(
  state: DmdState,
  batch: inputs.Batch,
  key: Array,
  *,
  config: Any,
  variant: int | None = None,
) -> tuple[Array, PyTree]:
  """Loss on a new rollout, and its gradient to the critic's parameters."""
  student, critic = state.student.model, state.critic.model
  fixed = setup(config)
  size = inputs.num_examples(batch)
  part = long_tuning.segment(state.stream, student, size, config, variant)
  key_rollout, key_score = jax.random.split(key)
  shape = (size, part.frames, *config.data.latent_shape)
  rolled = dmd.self_rollout(
    inputs.dit(student),
    part.cache,
    dmd.draw_rollout(key_rollout, shape, setup=fixed),
    inputs.text(student, batch),
    setup=fixed,
  )
  clip = dmd.clip_of(long_tuning.video(part, rolled.latents), setup=fixed)
  known = 0 if part.previous is None else fixed.clip_frames - part.frames
  value, gradient = dmd.critic_gradients(
    inputs.dit(critic),
    clip,
    dmd.draw_score(key_score, clip.shape, s=fixed.shift),
    inputs.text(critic, batch),
    counted=slice(known, None),
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
    batch: Prompts of all updates: the student's, then each of the critic's;
      the same for all where videos go on from step to step.
    key: Of this step.
    frozen: "real".
    config: See configs/dmd.py.
    variant: Whether videos begin or go on, see `streaming`.
  """
  updates = config.optim.critic_updates
  first, rest = _turns(state, batch, config, variant)
  value, rolled, gradient = _student_update(
    state, first, jax.random.fold_in(key, 0), frozen, config, variant
  )
  student, scalars = optim.apply(state.student, gradient, value, config.optim)

  def update_critic(critic, xs):
    batch, index = xs
    now = DmdState(student, critic, state.stream)
    loss, gradient = optim.accumulated(
      lambda batch, key: critic_gradients(
        now, batch, key, config=config, variant=variant
      ),
      batch,
      jax.random.fold_in(key, index),
      parts=config.optim.accumulate,
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
  stream = _next_stream(state, first, rolled, value, config, variant)
  return DmdState(student, critic, stream), scalars


def _turns(
  state: DmdState, batch: inputs.Batch, config: Any, variant: int | None
) -> tuple[inputs.Batch, inputs.Batch]:
  """Prompts of the student's update, and of each of the critic's."""
  updates = config.optim.critic_updates
  if not long_tuning.is_on(config):
    turns = inputs.split(batch, 1 + updates)
    first = jax.tree.map(lambda x: x[0], turns)
    return first, jax.tree.map(lambda x: x[1:], turns)
  if variant == long_tuning.GOES_ON:
    assert state.stream is not None
    batch = state.stream.batch
  again = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (updates, *x.shape)), batch
  )
  return batch, again


def _student_update(state, batch, key, frozen, config, variant):
  """Loss, rollout (if videos go on) and gradient of the student."""

  def gradients(batch, key):
    return student_gradients(
      state, batch, key, frozen=frozen, config=config, variant=variant
    )

  if long_tuning.is_on(config):
    (value, rolled), gradient = gradients(batch, key)
    return value, rolled, gradient

  def without_rollout(batch, key):
    (value, _), gradient = gradients(batch, key)
    return value, gradient

  value, gradient = optim.accumulated(
    without_rollout, batch, key, parts=config.optim.accumulate
  )
  return value, None, gradient


def _next_stream(state, batch, rolled, value, config, variant):
  """The videos after a step; as before it where the step was not finite."""
  if not long_tuning.is_on(config):
    return None
  size, clip = inputs.num_examples(batch), config.data.num_frames
  part = long_tuning.segment(
    state.stream, state.student.model, size, config, variant
  )
  latents = long_tuning.video(part, rolled.latents)[:, -clip:]
  new = long_tuning.Stream(rolled.cache, latents, batch)
  return jax.tree.map(
    lambda a, b: jnp.where(jnp.isfinite(value), a, b), new, state.stream
  )
