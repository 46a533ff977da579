"""What a stage of training is.

A stage is one value of `Stage` in a file of its own, and a row of `table`. The
loop, the data, the samples and the checks ask that value and never for a name.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float32, Int32, PyTree

from videomla_jax.diffusion import sampling
from videomla_jax.training import inputs
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib

# Role -> network.
Networks = dict[str, inputs.Network]
# Which of the compiled programs of a stage a step runs, see `Stage.program`.
Program = int | None


@runtime_checkable
class State(Protocol):
  """What a step changes, as far as the loop looks into it."""

  @property
  def model(self) -> PyTree:
    """The network that the stage is about."""

  @property
  def ema(self) -> PyTree:
    """Its exponential average, which is evaluated and handed on."""

  @property
  def step(self) -> Int32[Array, ""]:
    """Finished steps."""

  @property
  def skipped(self) -> Int32[Array, ""]:
    """Updates left out because they were not finite."""


# (state, batch, key, *, frozen, program) -> state, scalars
Step = Callable[..., tuple[Any, optim.Metrics]]
# (model, batch, key, *, frozen) -> loss
HeldOutLoss = Callable[..., Float32[Array, ""]]


def _check_nothing(settings: settings_lib.Training) -> None:
  """Accepts every config."""


def _average_of_model(
  networks: Networks, settings: settings_lib.Training
) -> optim.TrainState:
  """Returns the state of a stage that trains one network."""
  return optim.init(networks["model"], settings.optim)


def _euler(settings: settings_lib.Training) -> sampling.Sampler:
  """Returns guided Euler steps, the sampler of a model that is no student."""
  samples = settings.samples
  return sampling.euler(
    samples.num_steps,
    shift=settings.diffusion.shift,
    guidance=samples.guidance,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage[S: settings_lib.Training]:
  """A stage of training; functions take its settings.

  Attributes:
    title: A word or two for people.
    settings: Class of the config, with the fields that this stage adds.
    starts_from: Role of each network -> what its folder may be made by, see
      `origins.of`; the empty string allows random weights.
    make_step: Returns the step, see `Step`.
    trained: Roles of the networks that are trained; the others are frozen.
    scores: Roles of the networks that are bidirectional and dense whatever the
      student is.
    reads_clips: Whether a batch holds clips, or prompts alone.
    causal: Whether videos are made chunk by chunk, or as a whole clip.
    check: Refuses what cannot be trained, before anything is loaded.
    init: Returns the state before the first step.
    held_out_loss: Returns the loss of held-out clips, see `HeldOutLoss`; None
      where there is nothing that held-out clips could be compared with.
    sampler: Returns the sampler that the stage's model is made for.
    program: Returns which program a step, counted from 1, runs. A static
      argument of the step; each value is compiled once.
    batches_per_step: Returns the batches that a step consumes.
    mean_trips: Returns the mean number of trips of loops whose length is drawn
      at random, for counting operations.
  """

  title: str
  settings: type[S]
  starts_from: Mapping[str, tuple[str, ...]]
  make_step: Callable[[S], Step]
  trained: tuple[str, ...] = ("model",)
  scores: tuple[str, ...] = ()
  reads_clips: bool = True
  causal: bool = True
  check: Callable[[S], None] = _check_nothing
  init: Callable[[Networks, S], State] = _average_of_model
  held_out_loss: Callable[[S], HeldOutLoss] | None = None
  sampler: Callable[[S], sampling.Sampler] = _euler
  program: Callable[[S, int], Program] = lambda settings, step: None
  batches_per_step: Callable[[S], int] = lambda settings: 1
  mean_trips: Callable[[S], float] = lambda settings: 1.0

  def examples_per_step(self, settings: S) -> int:
    """Returns the examples that a step consumes, those of all its updates."""
    return settings.data.batch_size * self.batches_per_step(settings)

  def frozen(self, networks: Mapping[str, inputs.Network]) -> Networks:
    """Returns the networks that are only read."""
    return {k: x for k, x in networks.items() if k not in self.trained}
