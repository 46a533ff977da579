"""The whole way: order, planning within a time, and going on after a stop."""

import dataclasses
import json
import pathlib
import time

import pytest

from tests import tiny_project
from videomla_jax.chain import progress
from videomla_jax.chain import run
from videomla_jax.chain import settings
from videomla_jax.conversion import to_latent
from videomla_jax.storage import model_folder

SECONDS = 0.01  # that a step is said to take


class _Trainer:
  """Pretends to train: writes scalars and a folder that looks like a model."""

  def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
    self.calls: list[tuple[str, int]] = []
    self.fails, self.seconds = "", SECONDS
    self.vaes: set[str] = set()
    monkeypatch.setattr(
      model_folder, "is_model_folder", lambda path: (path / "made").exists()
    )
    monkeypatch.setattr(run.model_lib, "load", self._load)
    monkeypatch.setattr(to_latent, "convert_small", self._convert)

  def __call__(self, config, workdir: str) -> None:
    folder = pathlib.Path(workdir)
    name, timing = folder.name, folder.parent.name == ".timing"
    steps = config.optim.steps
    if name != "vae":
      self.vaes.add(config.data.vae)
    self.calls.append((f"time {name}" if timing else name, steps))
    if name == self.fails and not timing:
      raise SystemExit(3)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "made").write_text(name)
    lines = [{"step": s, "perf/step_seconds": self.seconds} for s in range(4)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)

  def _load(self, path: pathlib.Path):
    assert (path / "made").exists()
    config = dataclasses.make_dataclass("C", ["size"])("world")
    return dataclasses.make_dataclass("M", ["config"])(config)

  def _convert(self, output, model, recipe, *, source: str) -> None:
    self.calls.append(("convert", recipe.d_c))
    output.mkdir()
    (output / "made").write_text(source)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> _Trainer:
  """What stands for both commands."""
  return _Trainer(monkeypatch)


def _chain(
  root: pathlib.Path, trainer: _Trainer, minutes: float, vae: str = ""
) -> run.Chain:
  read, parts = settings.read(tiny_project.config("world", f"all,vae={vae}"))
  read = dataclasses.replace(read, minutes=minutes, dispatch=1)
  return run.Chain(
    settings=read,
    parts=parts,
    root=root,
    train=dict.fromkeys(settings.PARTS, trainer),
  )


def test_parts_come_in_order_and_the_last_one_is_handed_on(
  tmp_path, trainer
) -> None:
  model = _chain(tmp_path, trainer, 1.0)()
  names = [name for name, _ in trainer.calls if not name.startswith("time")]
  assert names == [*settings.PARTS[:3], "convert", *settings.PARTS[3:]]
  assert (model / "made").read_text() == "dmd"
  assert not (tmp_path / ".timing").exists()


def test_steps_fill_their_share_of_the_time(tmp_path, trainer) -> None:
  _chain(tmp_path, trainer, 10.0)()
  steps = dict(trainer.calls)
  # Nothing else takes time here: a quarter of ten minutes.
  assert steps["vae"] == pytest.approx(0.25 * 600 / SECONDS, rel=0.05)
  # The first part took none of its time, which the others have now.
  assert steps["images"] == pytest.approx(0.15 / 0.75 * 600 / SECONDS, rel=0.05)
  assert progress.read(tmp_path).step_seconds["dmd"] == SECONDS


def test_what_a_part_took_beside_its_steps_is_left_for_the_next(
  tmp_path, trainer, monkeypatch
) -> None:
  now = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  trained = trainer.__class__.__call__

  def train(config, workdir: str) -> None:
    trained(trainer, config, workdir)
    now[0] += config.optim.steps * SECONDS
    if "timing" not in workdir:
      now[0] += 30.0  # samples, and what else a timing leaves out

  chain = _chain(tmp_path, trainer, 20.0)
  dataclasses.replace(chain, train=dict.fromkeys(settings.PARTS, train))()
  assert progress.read(tmp_path).extra_seconds["dmd"] == pytest.approx(30.0)
  # The first part could not know, and shortened all the others a little.
  assert now[0] == pytest.approx(20 * 60, rel=0.01)


def test_a_finished_vae_is_taken_by_all_parts_and_not_trained(
  tmp_path, trainer
) -> None:
  _chain(tmp_path, trainer, 1.0, vae="finished")()
  names = {name for name, _ in trainer.calls}
  assert not names & {"vae", "time vae"}
  assert trainer.vaes == {"finished"}


def test_too_little_time_makes_the_fewest_steps(tmp_path, trainer) -> None:
  trainer.seconds = 10.0
  _chain(tmp_path, trainer, 0.1)()
  assert {dict(trainer.calls)[name] for name in settings.PARTS} == {20}


def test_a_stopped_run_goes_on_with_the_same_steps(tmp_path, trainer) -> None:
  trainer.fails = "teacher_forcing"
  with pytest.raises(SystemExit):
    _chain(tmp_path, trainer, 1.0)()
  planned = dict(trainer.calls)["teacher_forcing"]
  trainer.fails, trainer.calls = "", []
  _chain(tmp_path, trainer, 30.0)()
  # What is finished is not trained again, and nothing is timed twice.
  assert trainer.calls[0] == ("teacher_forcing", planned)
  assert "convert" not in dict(trainer.calls)


def test_several_processes_are_refused() -> None:
  run.check_alone({})
  group = {
    "VIDEOMLA_COORDINATOR": "here:1",
    "VIDEOMLA_NUM_PROCESSES": "2",
    "VIDEOMLA_PROCESS_ID": "0",
  }
  with pytest.raises(ValueError, match="clock of one process"):
    run.check_alone(group)
