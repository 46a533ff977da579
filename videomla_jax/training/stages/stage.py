"""What a stage of training is.

A stage is one value of `Stage` in a file of its own, and a row of `table`. The
loop, the data, the samples and the checks ask that value and never for a name.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float32, Int32, PyTree

from videomla_jax.diffusion import sampling
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib

Networks = dict[str, inputs.Network]  # by role
# A static argument of a step; each of its values is compiled once. None is the
# program of stages that have a single one.
Program = int | None


@runtime_checkable
class State(Protocol):
  """What a step changes, as far as the loop looks into it."""

  @property
  def model(self) -> PyTree:
    """Parameters of the network that the stage is about."""

  @property
  def ema(self) -> PyTree:
    """Exponential average of the parameters; it is handed on."""

  @property
  def step(self) -> Int32[Array, ""]:
    """Number of finished steps."""

  @property
  def skipped(self) -> Int32[Array, ""]:
    """Number of updates left out because they were not finite."""


# Keys that only Euler steps read, which models that are not distilled take.
EULER_KEYS = ("samples.num_steps", "samples.guidance")

# (state, batch, key, *, frozen, program) -> state, scalars
Step = Callable[..., tuple[State, optim.Metrics]]
# (model, batch, key, *, frozen) -> loss
HeldOutLoss = Callable[..., Float32[Array, ""]]


def _check_nothing(settings: settings_lib.Training) -> None:
  """Accepts every config of a stage."""


def _average_of_model(
  networks: Networks, settings: settings_lib.Training
) -> optim.TrainState:
  """Returns the first state of a stage that trains one network."""
  return optim.init(networks["model"], settings.optim)


def _euler(settings: settings_lib.Training) -> sampling.Sampler:
  """Returns guided Euler steps, for models that are not distilled."""
  samples = settings.samples
  # `unused.check` asks for both.
  assert samples.num_steps is not None
  assert samples.guidance is not None
  return sampling.euler(
    samples.num_steps,
    shift=settings.diffusion.shift,
    guidance=samples.guidance,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage[S: settings_lib.Training]:
  """A stage of training; its functions take its settings.

  Attributes:
    title: Name of the stage for people.
    settings: Class of the stage's config.
    starts_from: Role of each network -> what may have made its folder (see
      `origins.of`); the empty string allows random weights.
    make_step: Returns the step, a `Step`.
    trained: Roles of the networks that are trained; the others are frozen.
    scores: Roles of the networks that are bidirectional and dense, whatever the
      student is.
    reads_clips: Whether a batch holds clips, or prompts alone.
    causal: Whether videos are made chunk by chunk, or as a whole clip.
    check: Refuses what cannot be trained, before anything is loaded.
    init: Returns the state before the first step.
    held_out_loss: Returns a `HeldOutLoss`; None where there is nothing that
      held-out clips could be compared with.
    sampler: Returns the sampler that the trained model is made for; it is asked
      for when there are samples to make.
    sampler_keys: Keys that nothing but the sampler reads; those of a student
      that is distilled are not `EULER_KEYS`.
    program: Returns the program of a step, counted from 1.
    batches_per_step: Returns how many batches a step consumes, one for each
      update that has examples of its own.
    mean_trips: Returns how often loops whose length is drawn at random run on
      average; operations are counted with it.
  """

  title: str
  settings: type[S]
  starts_from: Mapping[str, tuple[str, ...]]
  make_step: Callable[[S], Step]
  # The rest has defaults: those of a regression of one causal network.
  trained: tuple[str, ...] = ("model",)
  scores: tuple[str, ...] = ()
  reads_clips: bool = True
  causal: bool = True
  check: Callable[[S], None] = _check_nothing
  init: Callable[[Networks, S], State] = _average_of_model
  held_out_loss: Callable[[S], HeldOutLoss] | None = None
  sampler: Callable[[S], sampling.Sampler] = _euler
  sampler_keys: tuple[str, ...] = EULER_KEYS
  program: Callable[[S, int], Program] = lambda settings, step: None
  batches_per_step: Callable[[S], int] = lambda settings: 1
  mean_trips: Callable[[S], float] = lambda settings: 1.0

  @property
  def distilled(self) -> bool:
    """Whether the model takes a few steps of its own, without guidance."""
    return not set(EULER_KEYS) & set(self.sampler_keys)

  def examples_per_step(self, settings: S) -> int:
    """Returns the number of examples that a step consumes.

    Args:
      settings: Settings of the stage.
    """
    return settings.data.batch_size * self.batches_per_step(settings)

  def frozen(self, networks: Mapping[str, inputs.Network]) -> Networks:
    """Returns the networks that are only read.

    Args:
      networks: All networks of the stage by role.
    """
    return {k: x for k, x in networks.items() if k not in self.trained}
