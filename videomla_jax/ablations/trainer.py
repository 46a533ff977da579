"""Trains several small models at once, in one compiled program.

Models of equal shapes are stacked along a first axis, and `jax.vmap` runs the
step of a stage over them: training seeds, and settings that differ in their
weights alone. Each model draws its own clips inside the program
(`traced_world`), and `jax.lax.scan` makes several steps per dispatch. What a
model sees depends on its seed and the number of the step alone, so two settings
with the same seed see the same clips and noise, and can be compared pair by
pair; and a model trained beside others is the one trained without them.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Key, PyTree
import numpy as np

from videomla_jax.ablations import forced_rank
from videomla_jax.ablations import real_clips
from videomla_jax.runtime import progress_bar
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import traced_world
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib

Model = model_lib.VideoModel


class Trained(NamedTuple):
  """What training gives of one model.

  Attributes:
    model: The averaged model.
    loss: Mean training loss of the last dispatch.
    skipped: Updates that were left out because they were not finite.
  """

  model: Model
  loss: float
  skipped: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
  """A stage, and how it is run.

  Attributes:
    stage: A stage of training.
    settings: Its settings; the seed is not read.
    forced: Whether the models have a rank that they may not exceed.
    dispatch: Steps of one call of the program.
  """

  stage: stage_lib.Stage
  settings: settings_lib.Training
  forced: bool
  dispatch: int

  def __call__(
    self,
    networks: Sequence[stage_lib.Networks],
    seeds: Sequence[int],
    ranks: Sequence[int],
    *,
    name: str,
    films: real_clips.Films | None = None,
  ) -> list[Trained]:
    """Trains models side by side, each from its own start.

    Args:
      networks: The networks of each model by role, of equal shapes.
      seeds: Seed of the clips and the noise of each model.
      ranks: Highest rank of each model; not read if none is forced.
      name: What the progress bar says.
      films: Films to train on; None draws moving digits.
    """
    steps = self.settings.optim.steps
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    limits = jnp.asarray(ranks, jnp.int32)
    together = stacked(networks)
    state = _start(together, limits, trainer=self)
    frozen = self.stage.frozen(together)
    losses = np.zeros(len(networks))
    with progress_bar.Progress(steps, name) as progress:
      for first in range(0, steps, self.dispatch):
        count = min(self.dispatch, steps - first)
        state, found = _steps(
          state, keys, limits, frozen, films, trainer=self, count=count
        )
        losses = np.asarray(found)
        progress.update(count, loss=float(losses.mean()))
    average, skipped = _finished(state, limits, trainer=self)
    return [
      Trained(model, float(loss), int(n))
      for model, loss, n in zip(
        unstacked(average), losses, np.asarray(skipped), strict=True
      )
    ]

  def step(
    self,
    state: stage_lib.State,
    key: Key[Array, ""],
    rank: Int[Array, ""],
    frozen: stage_lib.Networks,
    films: real_clips.Films | None = None,
  ) -> tuple[stage_lib.State, Float32[Array, ""]]:
    """Makes one step of one model, on clips of its own.

    Args:
      state: The state before the step.
      key: Random key of the model, which never changes.
      rank: Highest rank, if one is forced.
      frozen: Networks that are only read, by role.
      films: Films to train on; None draws moving digits.

    Returns:
      The state after the step, and its loss.
    """
    key_clips, key_step = jax.random.split(jax.random.fold_in(key, state.step))
    batch = self.batch(key_clips, films)
    state, scalars = self.stage.make_step(self.settings)(
      state, batch, key_step, frozen=frozen, program=None
    )
    if self.forced:
      assert isinstance(state, optim.TrainState)  # one network is trained
      state = state._replace(model=forced_rank.project(state.model, rank))
    return state, scalars["train/loss"]

  def batch(
    self,
    key: Key[Array, ""],
    films: real_clips.Films | None,
    *,
    split: str = "train",
  ) -> inputs.Batch:
    """Draws clips and prompts of a step, or of one held-out loss.

    Held-out prompts stay whole. What a stage does not read is never computed.

    Args:
      key: Random key.
      films: Films; None draws moving digits.
      split: "train" or "test".
    """
    data = self.settings.data
    assert isinstance(data, settings_lib.MovingDigits)
    num_frames, training = data.num_frames, split == "train"
    size = data.batch_size
    if training:
      size = self.stage.examples_per_step(self.settings)
    if films is not None:
      return real_clips.batch(
        films, key, size=size, num_frames=num_frames, split=split
      )
    return traced_world.batch(
      key,
      size=size,
      num_frames=num_frames,
      split=split,
      prompt_dropout=data.prompt_dropout if training else 0.0,
      word_dropout=data.word_dropout if training else 0.0,
    )

  # Programs are kept by what they depend on.
  def __hash__(self) -> int:
    return hash((self.stage.title, repr(self.settings), self.forced))


def stacked[T](trees: Sequence[T]) -> T:
  """Joins models, or their networks, of equal shapes along a new first axis.

  Args:
    trees: At least one.
  """
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstacked(models: Model) -> list[Model]:
  """Takes apart what `stacked` joined.

  Args:
    models: Models along a first axis.
  """
  count = len(jax.tree.leaves(models)[0])
  return [jax.tree.map(lambda x, i=i: x[i], models) for i in range(count)]


@functools.partial(jax.jit, static_argnames="trainer")
def _start(
  networks: stage_lib.Networks, ranks: Int[Array, "n"], *, trainer: Trainer
) -> PyTree:
  """Returns the states before the first step."""

  def start(
    networks: stage_lib.Networks, rank: Int[Array, ""]
  ) -> stage_lib.State:
    if trainer.forced:
      model = forced_rank.project(networks["model"], rank)
      networks = networks | {"model": model}
    return trainer.stage.init(networks, trainer.settings)

  return jax.vmap(start)(networks, ranks)


@functools.partial(
  jax.jit, static_argnames=("trainer", "count"), donate_argnames="state"
)
def _steps(
  state: PyTree,
  keys: Key[Array, "n"],
  ranks: Int[Array, "n"],
  frozen: stage_lib.Networks,
  films: real_clips.Films | None,
  *,
  trainer: Trainer,
  count: int,
) -> tuple[PyTree, Float32[Array, "n"]]:
  """Makes some steps of all models; returns states and mean losses."""

  def body(state: PyTree, _: None) -> tuple[PyTree, Float32[Array, "n"]]:
    step = jax.vmap(trainer.step, in_axes=(0, 0, 0, 0, None))
    return step(state, keys, ranks, frozen, films)

  state, losses = jax.lax.scan(body, state, None, length=count)
  return state, losses.mean(0)


@functools.partial(jax.jit, static_argnames="trainer")
def _finished(
  state: PyTree, ranks: Int[Array, "n"], *, trainer: Trainer
) -> tuple[PyTree, Int32[Array, "n"]]:
  """Returns averages, and the numbers of updates that were left out."""

  def finished(
    state: stage_lib.State, rank: Int[Array, ""]
  ) -> tuple[Model, Int32[Array, ""]]:
    model = state.ema
    # A sum of matrices of rank r has a higher rank.
    if trainer.forced:
      model = forced_rank.project(model, rank)
    return model, state.skipped

  return jax.vmap(finished)(state, ranks)
