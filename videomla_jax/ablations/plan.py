"""What is ablated: settings that are trained, and questions that they answer.

A setting says what differs from the base, `BASE`. A study lists the settings
that are compared; several studies may share one. Rows of a study have equal
budgets, since all settings have those of one command, and a setting that starts
elsewhere has its start in its row.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from videomla_jax.ablations import starts

Changes = Mapping[str, Any]  # dotted key of a training config -> its value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """A model to train, as far as it differs from the base.

  Attributes:
    name: What the row is called.
    start: Name in `starts.STARTS`: the weights before the first step.
    changes: Values that replace those of the config of training.
    forced_rank: Highest rank that the operator of keys and values may have, see
      `forced_rank`; 0 leaves it to the training.
    films: Whether real films take the place of moving digits.
    stages: Stages of training that it goes through, one after the other.
  """

  name: str
  start: str = "spectral"
  changes: Changes = dataclasses.field(default_factory=dict)
  forced_rank: int = 0
  films: bool = False
  stages: tuple[str, ...] = ("teacher_forcing",)

  def __post_init__(self) -> None:
    assert self.start in starts.STARTS, self.start

  @property
  def program(self) -> tuple[Any, ...]:
    """What settings have in common that one compiled program can train."""
    return (
      *sorted(self.changes.items()),
      *self.stages,
      self.forced_rank > 0,
      self.films,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """A way to roll out a model that is trained already.

  Attributes:
    name: What the row is called.
    model: "latent" (stage 1, guided Euler steps) or "student" (four steps).
    num_steps: Network calls per chunk.
    cache_dtype: Dtype of the stored entries; empty is the model's own.
    commit: What is stored of a chunk, see `sampling.COMMITS`.
    window: Fields of the window that are not those of training.
  """

  name: str
  model: str
  num_steps: int
  cache_dtype: str = ""
  commit: str = "clean"
  window: Changes = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A question and the settings that answer it.

  Attributes:
    title: Heading of its table.
    question: What is asked, a sentence.
    rows: Names of settings or of rollouts; the others are compared with the
      first.
  """

  title: str
  question: str
  rows: tuple[str, ...]


def _latent(name: str, **keys: Any) -> Setting:
  return Setting(name=name, changes=_dotted(keys))


def _dotted(keys: Changes) -> Changes:
  """Turns `model__d_c` into `model.d_c`."""
  return {name.replace("__", "."): value for name, value in keys.items()}


BASE = Setting(name="base")
_SIZES = (4, 8, 32, 64)  # d_c; the base has 16, the paper's share of the width
_SPLITS = (4, 16, 24)  # d_rope of heads of 32 channels; the base has 8
_RANKS = (4, 8)
_DENSE = {"model.kind": "dense"}
# The way of the paper: stage 1, and then what makes a student of four steps.
_STAGES = ("teacher_forcing", "consistency", "dmd")

# In the order in which they are run: settings that share a program, and those
# that answer most, come first.
SETTINGS: dict[str, Setting] = {
  setting.name: setting
  for setting in (
    BASE,
    Setting(name="random start", start="random"),
    Setting(name="calibrated start", start="calibrated"),
    Setting(name="from scratch", start="scratch"),
    *(_latent(f"d_c={n}", model__d_c=n) for n in (4, 8)),
    *(Setting(name=f"rank {n} forced", forced_rank=n) for n in _RANKS),
    Setting(name="dense", start="dense", changes=_DENSE),
    Setting(name="dense, from scratch", start="scratch", changes=_DENSE),
    *(_latent(f"d_c={n}", model__d_c=n) for n in (32, 64)),
    Setting(
      name="half the width, from scratch",
      start="scratch",
      changes={"model.size": "small_narrow"},
    ),
    Setting(
      name="half the depth, from scratch",
      start="scratch",
      changes={"model.size": "small_shallow"},
    ),
    *(
      Setting(
        name=f"films{name}, from scratch", start="scratch", films=True, **how
      )
      for name, how in (
        ("", {}),
        (", d_c=4", dict(changes={"model.d_c": 4})),
        (", rank 4 forced", dict(forced_rank=4)),
        (", dense", dict(changes=_DENSE)),
      )
    ),
    *(
      dataclasses.replace(
        setting, name=f"{setting.name}, student", stages=_STAGES
      )
      for setting in (
        BASE,
        Setting(name="dense", start="dense", changes=_DENSE),
        Setting(name="random start", start="random"),
        Setting(name="calibrated start", start="calibrated"),
        *(_latent(f"d_c={n}", model__d_c=n) for n in _SIZES),
      )
    ),
    *(_latent(f"d_rope={n}", model__d_rope=n) for n in _SPLITS),
    _latent("no sink", window__sink_frames=0),
    _latent("sink of 3 frames", window__sink_frames=3),
    _latent("averaging sink", window__sink="average", window__sink_decay=0.9),
    _latent("local window of 3 frames", window__local_frames=3),
    _latent("local window of 9 frames", window__local_frames=9),
  )
}

_STUDENT_STEPS = (1, 2, 4, 8)
_LATENT_STEPS = (5, 10, 20)
ROLLOUTS: dict[str, Rollout] = {
  rollout.name: rollout
  for rollout in (
    *(
      Rollout(name=f"student, {n} steps", model="student", num_steps=n)
      for n in _STUDENT_STEPS
    ),
    *(
      Rollout(name=f"stage 1, {n} steps", model="latent", num_steps=n)
      for n in _LATENT_STEPS
    ),
    Rollout(
      name="student, commits the last denoising pass",
      model="student",
      num_steps=4,
      commit="last_pass",
    ),
    Rollout(
      name="stage 1, commits the last denoising pass",
      model="latent",
      num_steps=10,
      commit="last_pass",
    ),
    *(
      Rollout(
        name=f"student, cache in {dtype}",
        model="student",
        num_steps=4,
        cache_dtype=dtype,
      )
      for dtype in ("bfloat16", "int8", "float8_e4m3fn")
    ),
    Rollout(
      name="student, no sink",
      model="student",
      num_steps=4,
      window=dict(sink_frames=0),
    ),
    Rollout(
      name="student, averaging sink",
      model="student",
      num_steps=4,
      window=dict(sink="average", sink_decay=0.99),
    ),
  )
}

STUDIES: tuple[Study, ...] = (
  Study(
    title="Size of the content latent",
    question="What does d_c cost in quality, and is all of it occupied?",
    rows=("base", *(f"d_c={n}" for n in _SIZES)),
  ),
  Study(
    title="Budget or training",
    question="Is it the size of the latent or the rank that training fills "
    "which decides about quality? Forced ranks are projected after every step.",
    rows=("base", *(f"rank {n} forced" for n in _RANKS), "d_c=8", "d_c=4"),
  ),
  *(
    Study(
      title=f"Rank {n}, by its size or by force",
      question="Is a larger latent worth anything if its rank stays that of "
      "the smaller one?",
      rows=(f"d_c={n}", f"rank {n} forced"),
    )
    for n in _RANKS
  ),
  Study(
    title="Size of the content latent, through all stages",
    question="What does d_c cost the student of four steps? The held-out loss "
    "is that of its stage 1.",
    rows=("base, student", *(f"d_c={n}, student" for n in _SIZES)),
  ),
  Study(
    title="Initialisation, through all stages",
    question="Does a student remember what its first stage started from?",
    rows=(
      "base, student",
      "random start, student",
      "calibrated start, student",
    ),
  ),
  Study(
    title="Dense against latent, through all stages",
    question="Is a latent student as good as a dense one? Both begin at one "
    "bidirectional model, of which the dense one keeps all weights.",
    rows=("dense, student", "base, student"),
  ),
  Study(
    title="Split of a head",
    question="How many of a head's 32 channels should carry positions?",
    rows=("base", *(f"d_rope={n}" for n in _SPLITS)),
  ),
  Study(
    title="Initialisation",
    question="What is a spectral start worth, and one that has seen real "
    "inputs? All come from one dense bidirectional model.",
    rows=("base", "random start", "calibrated start", "from scratch"),
  ),
  Study(
    title="Dense against latent, from the bidirectional model",
    question="Is latent attention as good? The dense model keeps all of the "
    "weights that it starts from, the latent one what the conversion keeps.",
    rows=("dense", "base"),
  ),
  Study(
    title="Dense against latent, from random weights",
    question="And if neither has anything to start from?",
    rows=("dense, from scratch", "from scratch"),
  ),
  Study(
    title="Widths and depths",
    question="Is the latent occupied in smaller networks as well?",
    rows=(
      "from scratch",
      "half the width, from scratch",
      "half the depth, from scratch",
    ),
  ),
  Study(
    title="Real films",
    question="Is it the same on other data? Grey films of 24 x 24 pixels, "
    "without prompts and without a judge.",
    rows=(
      "films, from scratch",
      "films, d_c=4, from scratch",
      "films, rank 4 forced, from scratch",
      "films, dense, from scratch",
    ),
  ),
  Study(
    title="Sink and window",
    question="Which frames should a chunk see? Held-out losses are of the "
    "task with the row's own window, so they do not compare windows alone.",
    rows=(
      "base",
      "no sink",
      "sink of 3 frames",
      "averaging sink",
      "local window of 3 frames",
      "local window of 9 frames",
    ),
  ),
  Study(
    title="Number of steps, student",
    question="How many calls does the student need?",
    rows=(
      "student, 4 steps",
      *(f"student, {n} steps" for n in _STUDENT_STEPS if n != 4),
    ),
  ),
  Study(
    title="Number of steps, stage 1",
    question="How many Euler steps does the model of stage 1 need?",
    rows=("stage 1, 10 steps", "stage 1, 5 steps", "stage 1, 20 steps"),
  ),
  Study(
    title="Context pass, student",
    question="May the last denoising pass take the place of the pass over the "
    "clean chunk, one pass in five?",
    rows=("student, 4 steps", "student, commits the last denoising pass"),
  ),
  Study(
    title="Context pass, stage 1",
    question="The same for ten Euler steps, one pass in eleven.",
    rows=("stage 1, 10 steps", "stage 1, commits the last denoising pass"),
  ),
  Study(
    title="Dtype of the cache",
    question="May the cache be rounded?",
    rows=(
      "student, 4 steps",
      *(
        f"student, cache in {dtype}"
        for dtype in ("bfloat16", "int8", "float8_e4m3fn")
      ),
    ),
  ),
  Study(
    title="Sinks that training did not have",
    question="What happens if the sink changes after training?",
    rows=("student, 4 steps", "student, no sink", "student, averaging sink"),
  ),
)
