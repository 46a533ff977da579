"""The whole way: VAE, stage 0, conversion, stages 1 to 3, within a time.

Before a part begins, some of its steps are timed in a folder that is removed
again, and as many steps are planned as fit into its share of the time that is
left. So learning rates fall to their end, however fast the machine is. The plan
is on disk: a run that was stopped goes on with the same steps.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import pathlib
import shutil
import time

from absl import logging
import jax
import ml_collections

from videomla_jax.chain import parts as parts_lib
from videomla_jax.chain import progress as progress_lib
from videomla_jax.chain import settings as settings_lib
from videomla_jax.conversion import to_latent
from videomla_jax.models import wan_config
from videomla_jax.runtime import metrics
from videomla_jax.runtime import scheduler
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import worlds
from videomla_jax.storage import model_folder

Train = Callable[[ml_collections.ConfigDict, str], object]

_STEPS_ON_GPU = 10  # of a call
MODEL = "model"  # folder of the finished student
_TIMING = ".timing"  # folder of steps that are only timed, removed afterwards


def check_alone(environment: Mapping[str, str]) -> None:
  """Refuses several processes, whose clocks would plan other steps each.

  Args:
    environment: Names and values, by which a scheduler tells of a group.

  Raises:
    ValueError: If there is more than one process.
  """
  group = scheduler.find(environment)
  if group is not None and group.num_processes != 1:
    raise ValueError(
      f"stage={settings_lib.STAGE!r} plans by the clock of one process, but "
      f"this is one of {group.num_processes or 'several'} ({group.source}); "
      "start one, or each stage by its own config."
    )


def check_vae(settings: settings_lib.Settings) -> None:
  """Refuses a finished VAE that is missing or does not fit.

  Args:
    settings: Settings of the run.

  Raises:
    ValueError: With the way out.
  """
  if settings.finished_vae:
    vae = codecs.open_vae(settings.finished_vae)
    world = worlds.WORLDS[worlds.COLOUR_WORLD]
    world.check_vae(vae, name="finished_vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """One run of the whole way; call it to train to the end.

  Attributes:
    settings: Settings of the run.
    parts: Config of each part by its name, in the order of `settings.PARTS`;
      there is none of a VAE that is finished.
    root: Folder of the run.
    train: What trains each part, given its config and folder.
  """

  settings: settings_lib.Settings
  parts: Mapping[str, ml_collections.ConfigDict]
  root: pathlib.Path
  train: Mapping[str, Train]

  def __call__(self) -> pathlib.Path:
    """Trains all parts that are not finished, in their order.

    Returns:
      The folder of the finished student, its VAE included.

    Raises:
      ValueError: If a part cannot be trained.
      SystemExit: After a signal, when the state of the part is on disk.
    """
    for name in self.parts:
      if name == "teacher_forcing":
        self._convert()
      if not model_folder.is_model_folder(parts_lib.model(self.root, name)):
        self._run(name)
    return self._hand_on()

  @property
  def dispatch(self) -> int:
    """Number of steps of one call of a program."""
    if self.settings.dispatch:
      return self.settings.dispatch
    return 1 if jax.default_backend() == "cpu" else _STEPS_ON_GPU

  def _run(self, name: str) -> None:
    """Plans and trains one part."""
    started = time.monotonic()
    config = parts_lib.placed(
      self.parts[name],
      name,
      self.root,
      vae=self.settings.finished_vae or parts_lib.model(self.root, "vae"),
    )
    progress = progress_lib.read(self.root)
    if name not in progress.steps:
      progress = self._planned(name, config, progress)
      progress_lib.write(self.root, progress)
    steps = progress.steps[name]
    logging.info("%s: %d steps", name, steps)
    config = parts_lib.with_steps(config, name, steps, dispatch=self.dispatch)
    begun = time.monotonic()
    self.train[name](config, str(self.root / name))
    now = time.monotonic()
    extra = _beside_steps(self.root / name, steps, now - begun)
    progress_lib.write(
      self.root,
      dataclasses.replace(
        progress,
        seconds=progress.seconds + now - started,
        extra_seconds=progress.extra_seconds | {name: extra},
      ),
    )

  def _planned(
    self,
    name: str,
    config: ml_collections.ConfigDict,
    progress: progress_lib.Progress,
  ) -> progress_lib.Progress:
    """Times some steps, and says how many fit into the share of a part."""
    started = time.monotonic()
    calls, dispatch = self.settings.probe, self.dispatch
    folder = self.root / _TIMING / name
    if folder.exists():
      shutil.rmtree(folder)  # of a start that was stopped
    self.train[name](
      parts_lib.for_timing(config, name, calls, dispatch=dispatch), str(folder)
    )
    seconds = _mean(_step_seconds(folder)[parts_lib.timed_lines(name)])
    shutil.rmtree(folder.parent)
    taken = time.monotonic() - started
    # Loading and compiling take their time once more. Samples and held-out
    # clips, which a timing leaves out, took so long in the part before.
    before = list(progress.extra_seconds.values())[-1:]
    overhead = max(0.0, taken - calls * dispatch * seconds, *before)
    left = self._share_of_rest(name, progress.seconds + taken) - overhead
    steps = max(self.settings.least_steps, int(left / seconds))
    return dataclasses.replace(
      progress,
      steps=progress.steps | {name: steps},
      step_seconds=progress.step_seconds | {name: seconds},
    )

  def _share_of_rest(self, name: str, spent: float) -> float:
    """Returns the seconds that a part may take of those that are left."""
    names = settings_lib.PARTS
    ahead = names[names.index(name) :]
    shares = dataclasses.asdict(self.settings.shares)
    rest = max(0.0, 60 * self.settings.minutes - spent)
    return rest * shares[name] / sum(shares[x] for x in ahead)

  def _convert(self) -> None:
    """Makes the student's first weights of the bidirectional model."""
    output = self.root / parts_lib.CONVERTED
    if model_folder.is_model_folder(output):
      return
    source = parts_lib.model(self.root, "pretraining")
    dense = model_lib.load(source)
    sizes = wan_config.SIZES[dense.config.size](kind="latent").attention
    recipe = to_latent.Recipe(
      method="spectral", d_c=sizes.d_c, d_rope=sizes.d_rope, d_q=sizes.d_q
    )
    to_latent.convert_small(output, dense, recipe, source=str(source))

  def _hand_on(self) -> pathlib.Path:
    """Copies the student's folder to where a user looks for it."""
    output = self.root / MODEL
    source = parts_lib.model(self.root, settings_lib.PARTS[-1])
    with model_folder.replacing(output) as folder:
      shutil.copytree(source, folder, dirs_exist_ok=True)
    return output


def _step_seconds(folder: pathlib.Path) -> list[float]:
  """Returns the mean times of a step that a part logged."""
  lines = metrics.read_jsonl(folder)
  name = "perf/step_seconds"
  return [line[name] for line in lines if name in line]


def _beside_steps(folder: pathlib.Path, steps: int, seconds: float) -> float:
  """Returns how much of the time of a part was none of its steps'."""
  # Two lines may hold what was compiled.
  plain = sorted(_step_seconds(folder))[:-2]
  # Steps before a stop belong to an earlier start. Somebody may have taken the
  # lines away.
  return max(0.0, seconds - steps * _mean(plain)) if plain else 0.0


def _mean(values: list[float]) -> float:
  return sum(values) / len(values)
