"""The updates of stage 3: one of the student, then several of the critic.

Each update has prompts and a self-rollout of its own. Where videos go on from
step to step (`long_tuning`), all updates of a step roll out the same segment.
The losses and their gradients are in `diffusion.dmd`; here they meet batches,
optimisers and networks that may own a word encoder. The method is described in
docs/method.md, section 12.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, PyTree

from videomla_jax.diffusion import dmd
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import self_rollout
from videomla_jax.training import inputs
from videomla_jax.training import long_tuning
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage

Scalar = Float32[Array, ""]


class DmdState(NamedTuple):
  """Everything that a step changes.

  Attributes:
    student: The causal network, its average and moments.
    critic: The bidirectional network that follows the student's clips, and its
      moments; nobody reads an average of it, so none is kept.
    stream: The videos that the next step goes on with; None if they end with
      their step. Saved states have this name.
  """

  student: optim.TrainState
  critic: optim.TrainState
  stream: long_tuning.Carry | None = None

  @property
  def model(self) -> PyTree:
    """The student's parameters after the last finished step."""
    return self.student.model

  @property
  def ema(self) -> PyTree:
    """The student's average, which is evaluated and handed on."""
    return self.student.ema

  @property
  def step(self) -> Int32[Array, ""]:
    """Number of finished steps."""
    return self.student.step

  @property
  def skipped(self) -> Int32[Array, ""]:
    """Number of updates, of both networks, that were not finite."""
    return self.student.skipped + self.critic.skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatching:
  """The updates of a step, with what stays the same over a run.

  Attributes:
    setup: Window, sampler, clip length and guidance of `diffusion.dmd`.
    optim: Optimiser of both networks; its learning rate is the student's.
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
      state: The state before the step.
      batch: Prompts of all updates, dealt out in turn to the student's and to
        each of the critic's; one batch for all where videos go on.
      key: Random key of this step.
      frozen: "real" -> the real score.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """
    first, rest = self._prompts(state, batch, program)
    loss, rolled, gradient = self._student_update(
      state, first, jax.random.fold_in(key, 0), frozen, program
    )
    student, scalars = optim.apply(state.student, gradient, loss, self.optim)
    # The critic follows the student as it is now.
    critic, losses, norms = self._critic_updates(
      state._replace(student=student), rest, key, program
    )
    scalars |= {
      "train/loss": loss,
      "train/loss_dmd": loss,
      "train/loss_critic": losses.mean(),
      "train/critic_grad_norm": norms.mean(),
      "train/skipped": student.skipped + critic.skipped,
    }
    carry = None  # A state without it has no leaves for it either.
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
        finite=jnp.isfinite(loss),
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
  ) -> tuple[tuple[Scalar, self_rollout.SelfRollout], PyTree]:
    """Returns the student's loss and rollout, and its gradient, Eq. (12.3).

    Args:
      state: Both networks, and the videos to go on with.
      batch: Prompts, one for each video.
      key: Random key of the rollout and of the noise that it is judged at.
      frozen: "real" -> the real score.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """
    student, critic = state.student.model, state.critic.model
    real, size = frozen["real"], inputs.num_examples(batch)
    segment = self._segment(state, size, program)
    key_rollout, key_score = jax.random.split(key)
    rollout_shape = (size, segment.frames, *self.frame)
    clip_shape = (size, self.setup.clip_frames, *self.frame)
    # Small video models own a word encoder each.
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
        self_rollout.draw(
          key_rollout,
          rollout_shape,
          window=self.setup.window,
          sampler=self.setup.sampler,
        ),
        dmd.draw_score(key_score, clip_shape, s=self.setup.shift),
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
  ) -> tuple[Scalar, PyTree]:
    """Returns the critic's loss on a new rollout, Eq. (12.4), and its gradient.

    Args:
      state: Both networks, and the videos to go on with.
      batch: Prompts, one for each video.
      key: Random key of the rollout and of the noise that it is judged at.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """
    student, critic = state.student.model, state.critic.model
    size = inputs.num_examples(batch)
    segment = self._segment(state, size, program)
    key_rollout, key_score = jax.random.split(key)
    shape = (size, segment.frames, *self.frame)
    window, sampler = self.setup.window, self.setup.sampler
    rolled = self_rollout.generate(
      inputs.dit(student),
      segment.cache,
      self_rollout.draw(key_rollout, shape, window=window, sampler=sampler),
      inputs.text(student, batch),
      window=window,
      sampler=sampler,
    )
    clip = dmd.clip_of(segment.video(rolled.latents), setup=self.setup)
    known = 0
    if segment.previous is not None:
      # The critic has learned the frames of the segment before in its step.
      known = self.setup.clip_frames - segment.frames
    loss, gradient = dmd.critic_gradients(
      inputs.dit(critic),
      clip,
      dmd.draw_score(key_score, clip.shape, s=self.setup.shift),
      inputs.text(critic, batch),
      counted=slice(known, None),
    )
    return loss, _whole_model(critic, gradient)

  def _segment(
    self, state: DmdState, size: int, program: stage.Program
  ) -> long_tuning.Segment:
    """Returns what a step rolls out.

    Args:
      state: The student, and the videos to go on with.
      size: Number of videos.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """
    student = state.student.model
    if self.tuning is not None:
      assert state.stream is not None
      return self.tuning.segment(state.stream, student, size, program)
    # Its rows are those of a microbatch, if there are several.
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
    """Returns the prompts of the student's update, and of the critic's.

    Args:
      state: The videos to go on with, and their prompts.
      batch: Prompts that were read for this step.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.

    Returns:
      One batch, and the critic's batches along a new first axis.
    """
    updates = self.critic_updates
    if self.tuning is None:
      # Each update has prompts of its own, as in the reference.
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
  ) -> tuple[Scalar, self_rollout.SelfRollout | None, PyTree]:
    """Returns the student's loss, rollout (if videos go on) and gradient.

    Args:
      state: Both networks, and the videos to go on with.
      batch: Prompts of this update.
      key: Random key of this update.
      frozen: "real" -> the real score.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """

    def gradients(
      batch: inputs.Batch, key: Array
    ) -> tuple[tuple[Scalar, self_rollout.SelfRollout], PyTree]:
      return self.student_gradients(
        state, batch, key, frozen=frozen, program=program
      )

    if self.tuning is not None:
      # The next step goes on with this rollout; a mean over microbatches would
      # be none, so `long_tuning.check` allows a single one.
      (loss, rolled), gradient = gradients(batch, key)
      return loss, rolled, gradient

    def without_rollout(
      batch: inputs.Batch, key: Array
    ) -> tuple[Scalar, PyTree]:
      (loss, _), gradient = gradients(batch, key)
      return loss, gradient

    loss, gradient = optim.accumulated(
      without_rollout, batch, key, microbatches=self.optim.accumulate
    )
    return loss, None, gradient

  def _critic_updates(
    self,
    state: DmdState,
    batches: inputs.Batch,
    key: Array,
    program: stage.Program,
  ) -> tuple[optim.TrainState, Float32[Array, "n"], Float32[Array, "n"]]:
    """Returns the critic after its updates, with their losses and norms.

    Args:
      state: The student, the critic, and the videos to go on with.
      batches: Prompts of each update along the first axis.
      key: Random key of the step.
      program: `BEGINS` or `GOES_ON` of `long_tuning`; None where it is off.
    """

    def update(
      critic: optim.TrainState, xs: tuple[inputs.Batch, Array]
    ) -> tuple[optim.TrainState, tuple[Scalar, Scalar]]:
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

    # Keys are folded with the index of the update; 0 is the student's.
    indices = 1 + jnp.arange(self.critic_updates)
    # A scan, so that the program holds one copy of the update.
    critic, (losses, norms) = jax.lax.scan(
      update, state.critic, (batches, indices)
    )
    return critic, losses, norms


def _whole_model(model: inputs.Network, gradient: PyTree) -> PyTree:
  """Returns the gradient of a model from the gradient of its DiT.

  A small video model also owns a word encoder and a codec, whose gradients are
  zero: prompts are constants here.

  Args:
    model: A small video model, or a bare DiT.
    gradient: Gradient to the parameters of the DiT.
  """
  if inputs.dit(model) is model:
    return gradient
  zeros = jax.tree.map(jnp.zeros_like, model)
  zeros.dit = gradient
  return zeros
