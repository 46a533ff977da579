"""Every command is stopped, has a full disk, and may not write.

Whatever happens it ends with its exit code and one sentence, no temporary file
stays, and the same command can be started again.
"""

from collections.abc import Callable
import errno
import os
import pathlib
import signal

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_project
from tests import tiny_release
from videomla_jax import ablate
from videomla_jax import analyze
from videomla_jax import benchmark
from videomla_jax import calibrate
from videomla_jax import convert
from videomla_jax import embed
from videomla_jax import prepare
from videomla_jax import sample
from videomla_jax.ablations import outcomes
from videomla_jax.ablations import trainer
from videomla_jax.conversion.names import umt5 as umt5_names
from videomla_jax.generation import mp4
from videomla_jax.runtime import failures
from videomla_jax.runtime import progress_bar
from videomla_jax.runtime import signals
from videomla_jax.storage import atomic
from videomla_jax.training import optim

Start = Callable[[pathlib.Path], object]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> pathlib.Path:
  """A DiT as a file, a converted text encoder, a clip, prompts, a model."""
  folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng()
  safetensors_numpy.save_file(
    tiny_release.draw(tiny_release.dit_table(), rng), folder / "dit.safetensors"
  )
  given = folder / "given"
  text = tiny_release.draw(umt5_names.table_of(tiny_release.UMT5), rng)
  tiny_release.write_pth(folder / "umt5.pth", text)
  for source, output in (("umt5.pth", "umt5"),):
    convert.convert(
      tiny_release.options(
        source=str(folder / source), output=str(given / output)
      )
    )
  tiny_release.write_tokenizer(given / "tokenizer" / "spiece.model")
  frames = rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
  mp4.write_mp4(folder / "a.mp4", frames, fps=16)
  (folder / "prompts.txt").write_text("a fox\na cat\na dog\n")
  with pytest.MonkeyPatch.context() as patch:
    tiny_project.shrink(patch)
    tiny_project.checkpoint(folder / "model", rng)
  return folder


def _sample(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("sample", "latent,runlocal")
  config.checkpoint, config.seconds = str(inputs / "model"), 1.0
  config.prompts = "slow 3 vertical"
  config.output.folder = str(output)
  with pytest.MonkeyPatch.context() as patch:
    tiny_project.shrink(patch)
    return sample.sample(config)


def _convert(inputs: pathlib.Path, output: pathlib.Path) -> object:
  source = str(inputs / "dit.safetensors")
  return convert.convert(
    tiny_release.options(source=source, output=str(output / "dit"))
  )


def _embed(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("embed")
  config.checkpoint = str(inputs / "given")
  config.prompts, config.save_every = "a fox; a cat; a dog", 2
  config.output = str(output / "prompts.safetensors")
  return embed.embed(config)


def _prepare(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("prepare", "tiny")
  config.prompts, config.output = str(inputs / "prompts.txt"), str(output)
  return prepare.prepare(config)


def _calibrate(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("calibrate")
  config.checkpoint, config.levels = "random:wan_tiny_dense", 2
  config.clips, config.prompts = str(inputs / "a.mp4"), "a fox"
  config.height, config.width, config.num_frames = 32, 48, 5
  config.output = str(output / "tokens.safetensors")
  return calibrate.calibrate(config)


def _analyze(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("analyze")
  config.checkpoints = f"shipped:small_latent; {inputs / 'dit.safetensors'}"
  config.output = str(output / "analysis")
  config.num_heads = tiny_release.HEADS
  return analyze.analyze(config)


def _ablate(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("ablate", "runlocal")
  config.rows, config.seeds, config.dispatch = "^from scratch$", 1, 1
  config.record = str(output / "ablations.jsonl")
  nothing = np.zeros(1, np.int32)
  with pytest.MonkeyPatch.context() as patch:
    tiny_project.shrink(patch)
    # Steps that change nothing: what they compute has tests of its own.
    patch.setattr(
      trainer,
      "_start",
      lambda networks, *_, **how: optim.TrainState(
        networks["model"], networks["model"], None, nothing, nothing
      ),
    )
    patch.setattr(trainer, "_steps", lambda state, *_, **how: (state, nothing))
    patch.setattr(outcomes, "held_out_loss", lambda *_, **how: 0.0)
    return ablate.ablate(config)


def _benchmark(inputs: pathlib.Path, output: pathlib.Path) -> object:
  config = tiny_project.config("benchmark", "suite=training")
  # Without a stage only the report is left of the suite.
  config.unlock()
  config.stages = {}
  config.json = str(output / "report.json")
  return benchmark.benchmark(config)


_COMMANDS = {
  "sample": _sample,
  "convert": _convert,
  "embed": _embed,
  "prepare": _prepare,
  "calibrate": _calibrate,
  "analyze": _analyze,
  "ablate": _ablate,
  "benchmark": _benchmark,
}


def _leftovers(folder: pathlib.Path) -> list[str]:
  return [p.name for p in folder.rglob(".*") if p.suffix in (".tmp", ".old")]


@pytest.mark.parametrize("name", [x for x in _COMMANDS if x != "benchmark"])
def test_a_stopped_command_leaves_nothing_half_and_starts_again(
  inputs, tmp_path, monkeypatch, name: str
) -> None:
  number = (signal.SIGINT, signal.SIGTERM)[len(name) % 2]
  update, counts = progress_bar.Progress.update, []

  def stopping(self, *args, **kwargs):
    counts.append(args)
    if len(counts) == 2 or name in ("prepare", "convert"):
      os.kill(os.getpid(), number)
    return update(self, *args, **kwargs)

  monkeypatch.setattr(progress_bar.Progress, "update", stopping)
  with pytest.raises(signals.Interrupted) as end, signals.raised():
    _COMMANDS[name](inputs, tmp_path)
  assert failures.describe(end.value).code == 128 + number
  assert not _leftovers(tmp_path)
  monkeypatch.setattr(progress_bar.Progress, "update", update)
  _COMMANDS[name](inputs, tmp_path)
  assert not _leftovers(tmp_path)


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_full_disk_is_one_sentence_and_holds_nothing_back(
  inputs, tmp_path, monkeypatch, name: str
) -> None:
  def full(path: pathlib.Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  # All results go through this; what comes before is checked with real limits
  # by the tests of the writers.
  monkeypatch.setattr(atomic, "sync", full)
  with pytest.raises((OSError, ValueError)) as end:
    _COMMANDS[name](inputs, tmp_path)
  failure = failures.describe(end.value)
  assert failure.code == failures.MISTAKE, failure
  assert "No space left on device" in failure.sentence
  assert not _leftovers(tmp_path)


@pytest.mark.parametrize("name", _COMMANDS)
def test_an_unwritable_folder_is_refused_before_the_work(
  inputs, tmp_path, monkeypatch, name: str
) -> None:
  def reached(*args, **kwargs):
    raise AssertionError("the work began")

  if name != "convert":  # A converter writes from its first tensor on.
    monkeypatch.setattr(progress_bar.Progress, "__init__", reached)
  (tmp_path / "file").write_text("")
  # Tests may run as root, who may write anywhere but below a file.
  with pytest.raises((OSError, ValueError)) as end:
    _COMMANDS[name](inputs, tmp_path / "file" / "out")
  failure = failures.describe(end.value)
  assert failure.code == failures.MISTAKE and "file" in failure.sentence
  assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
