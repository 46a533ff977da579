"""The updates of stage 3: one of the student, then several of the critic.

Each update is on prompts and a rollout of its own; where videos go on from step
to step (`long_tuning`), all are on the same segment. The losses themselves are
in `diffusion.dmd`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, PyTree

from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import rollout
from videomla_jax.training import inputs
from videomla_jax.training import long_tuning
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage


class DmdState(NamedTuple):
  """What a step changes.

  Attributes:
    student: The causal network, its average and moments.
    critic: The bidirectional network that follows the student's clips; its
      average is not used and not kept.
    stream: The videos that the next step goes on with, if they do; the name is
      that of saved states.
  """

  student: optim.TrainState
  critic: optim.TrainState
  stream: long_tuning.Carry | None = None

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

  @property
  def skipped(self) -> Int32[Array, ""]:
    """Updates of both networks that were not finite."""
    return self.student.skipped + self.critic.skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatching:
  """The updates of a step, with what stays the same over a run.

  Attributes:
    setup: What the losses read.
    optim: Optimiser of both networks, with the student's learning rate.
    critic_updates: Updates of the critic for each one of the student.
    critic_learning_rate: Highest learning rate of the critic.
    frame: Rows, columns and channels of a latent frame.
    num_frames: Latent frames of a rollout that ends with its step.
    tuning: How videos go on from step to step; None if they do not.
  """

  setup: dmd.Setup
  optim: settings_lib.Optim
  critic_updates: int
  critic_learning_rate: float
  frame: tuple[int, int, int]
  num_frames: int
  tuning: long_tuning.LongTuning | None

  def step(
    self,
    state: DmdState,
    batch: inputs.Batch,
    key: Array,
    *,
    frozen: stage.Networks,
    program: stage.Program,
  ) -> tuple[DmdState, optim.Metrics]:
    """Returns the state after one update of the student and the critic's.

    Args:
      state: Before the step.
      batch: Prompts of all updates: the student's, then each of the critic's;
        the same for all where videos go on from step to step.
      key: Random key of this step.
      frozen: "real", the real score.
      program: Whether videos begin or go on, see `long_tuning`.
    """
    first, rest = self._prompts(state, batch, program)
    value, rolled, gradient = self._student_update(
      state, first, jax.random.fold_in(key, 0), frozen, program
    )
    student, scalars = optim.apply(state.student, gradient, value, self.optim)
    critic, losses, norms = self._critic_updates(
      state._replace(student=student), rest, key, program
    )
    scalars |= {
      "train/loss": value,
      "train/loss_dmd": value,
      "train/loss_critic": losses.mean(),
      "train/critic_grad_norm": norms.mean(),
      "train/skipped": student.skipped + critic.skipped,
    }
    carry = None
    if self.tuning is not None:
      assert state.stream is not None
      assert rolled is not None
      size = inputs.num_examples(first)
      carry = self.tuning.next_carry(
        state.stream,
        self._segment(state, size, program),
        rolled.latents,
        rolled.cache,
        first,
        finite=jnp.isfinite(value),
      )
    return DmdState(student, critic, carry), scalars

  def student_gradients(
    self,
    state: DmdState,
    batch: inputs.Batch,
    key: Array,
    *,
    frozen: stage.Networks,
    program: stage.Program = None,
  ) -> tuple[tuple[Float32[Array, ""], dmd.SelfRollout], PyTree]:
    """Returns the student's loss and rollout, and its gradient.

    Args:
      state: Both networks, and the videos to go on with.
      batch: Prompts.
      key: Random key.
      frozen: "real", the real score.
      program: Whether videos begin or go on.
    """
    student, critic = state.student.model, state.critic.model
    real, size = frozen["real"], inputs.num_examples(batch)
    segment = self._segment(state, size, program)
    key_rollout, key_score = jax.random.split(key)
    rolled = (size, segment.frames, *self.frame)
    judged = (size, self.setup.clip_frames, *self.frame)
    texts = dmd.Texts(
      student=inputs.text(student, batch),
      real=inputs.text(real, batch),
      negative=inputs.negative(real, batch),
      critic=inputs.text(critic, batch),
    )
    values, gradient = dmd.gradients(
      inputs.dit(student),
      inputs.dit(real),
      inputs.dit(critic),
      segment.cache,
      (
        dmd.draw_rollout(key_rollout, rolled, setup=self.setup),
        dmd.draw_score(key_score, judged, s=self.setup.shift),
      ),
      texts,
      setup=self.setup,
      previous=segment.previous,
    )
    return values, _whole_model(student, gradient)

  def critic_gradients(
    self,
    state: DmdState,
    batch: inputs.Batch,
    key: Array,
    *,
    program: stage.Program = None,
  ) -> tuple[Float32[Array, ""], PyTree]:
    """Returns the critic's loss on a new rollout, and its gradient.

    Args:
      state: Both networks, and the videos to go on with.
      batch: Prompts.
      key: Random key.
      program: Whether videos begin or go on.
    """
    student, critic = state.student.model, state.critic.model
    size = inputs.num_examples(batch)
    segment = self._segment(state, size, program)
    key_rollout, key_score = jax.random.split(key)
    shape = (size, segment.frames, *self.frame)
    rolled = dmd.self_rollout(
      inputs.dit(student),
      segment.cache,
      dmd.draw_rollout(key_rollout, shape, setup=self.setup),
      inputs.text(student, batch),
      setup=self.setup,
    )
    clip = dmd.clip_of(segment.video(rolled.latents), setup=self.setup)
    known = 0
    if segment.previous is not None:
      known = self.setup.clip_frames - segment.frames
    value, gradient = dmd.critic_gradients(
      inputs.dit(critic),
      clip,
      dmd.draw_score(key_score, clip.shape, s=self.setup.shift),
      inputs.text(critic, batch),
      counted=slice(known, None),
    )
    return value, _whole_model(critic, gradient)

  def _segment(
    self, state: DmdState, size: int, program: stage.Program
  ) -> long_tuning.Segment:
    """Returns what a step rolls out for `size` examples."""
    student = state.student.model
    if self.tuning is not None:
      assert state.stream is not None
      return self.tuning.segment(state.stream, student, size, program)
    cache = rollout.empty_cache(
      inputs.dit(student),
      batch=size,
      frame=self.frame,
      window=self.setup.window,
      max_frames=self.num_frames,
    )
    return long_tuning.Segment(cache, None, self.num_frames)

  def _prompts(
    self, state: DmdState, batch: inputs.Batch, program: stage.Program
  ) -> tuple[inputs.Batch, inputs.Batch]:
    """Returns the prompts of the student's update, and of each critic's."""
    updates = self.critic_updates
    if self.tuning is None:
      dealt = inputs.split(batch, 1 + updates)
      first = jax.tree.map(lambda x: x[0], dealt)
      return first, jax.tree.map(lambda x: x[1:], dealt)
    assert state.stream is not None
    batch = self.tuning.prompts(state.stream, batch, program)
    repeat = lambda x: jnp.broadcast_to(x, (updates, *x.shape))
    return batch, jax.tree.map(repeat, batch)

  def _student_update(
    self,
    state: DmdState,
    batch: inputs.Batch,
    key: Array,
    frozen: stage.Networks,
    program: stage.Program,
  ) -> tuple[Float32[Array, ""], dmd.SelfRollout | None, PyTree]:
    """Returns loss, rollout (if videos go on) and gradient of the student."""

    def gradients(
      batch: inputs.Batch, key: Array
    ) -> tuple[tuple[Float32[Array, ""], dmd.SelfRollout], PyTree]:
      return self.student_gradients(
        state, batch, key, frozen=frozen, program=program
      )

    if self.tuning is not None:  # Its check allows no microbatches.
      (value, rolled), gradient = gradients(batch, key)
      return value, rolled, gradient

    def without_rollout(
      batch: inputs.Batch, key: Array
    ) -> tuple[Float32[Array, ""], PyTree]:
      (value, _), gradient = gradients(batch, key)
      return value, gradient

    value, gradient = optim.accumulated(
      without_rollout, batch, key, microbatches=self.optim.accumulate
    )
    return value, None, gradient

  def _critic_updates(
    self,
    state: DmdState,
    batches: inputs.Batch,
    key: Array,
    program: stage.Program,
  ) -> tuple[optim.TrainState, Float32[Array, "n"], Float32[Array, "n"]]:
    """Returns the critic after its updates, their losses and norms."""

    def update(
      critic: optim.TrainState, xs: tuple[inputs.Batch, Array]
    ) -> tuple[optim.TrainState, tuple[Array, Array]]:
      batch, index = xs
      loss, gradient = optim.accumulated(
        lambda batch, key: self.critic_gradients(
          state._replace(critic=critic), batch, key, program=program
        ),
        batch,
        jax.random.fold_in(key, index),
        microbatches=self.optim.accumulate,
      )
      critic, scalars = optim.apply(
        critic,
        gradient,
        loss,
        self.optim,
        learning_rate=self.critic_learning_rate,
      )
      return critic, (loss, scalars["train/grad_norm"])

    # Index 0 is the student's update.
    indices = 1 + jnp.arange(self.critic_updates)
    critic, (losses, norms) = jax.lax.scan(
      update, state.critic, (batches, indices)
    )
    return critic, losses, norms


def _whole_model(model: inputs.Network, gradient: PyTree) -> PyTree:
  """Returns the gradient of a model from that of its DiT.

  The other parts of a small video model, words and codec, have none.
  """
  if inputs.dit(model) is model:
    return gradient
  zeros = jax.tree.map(jnp.zeros_like, model)
  zeros.dit = gradient
  return zeros
