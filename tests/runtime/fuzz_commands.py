"""Command lines of all commands, with values that nobody should write.

A "file" holds the arguments of one command as JSON. They are parsed as the
command does it, up to the door of its work: nothing is loaded or made.
"""

from collections.abc import Callable
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
from typing import Any

from absl import flags
import numpy as np
import pytest

from tests import mutations
from tests import tiny_project
from videomla_jax import benchmark
from videomla_jax import calibrate
from videomla_jax import convert
from videomla_jax import embed
from videomla_jax import evaluate
from videomla_jax import prepare
from videomla_jax import sample
from videomla_jax import train
from videomla_jax.conversion import release
from videomla_jax.data import preparation
from videomla_jax.generation import job
from videomla_jax.generation import sources
from videomla_jax.models import tokenizer
from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.runtime import failures
from videomla_jax.runtime import terminal
from videomla_jax.small_world import judge


class _Door(Exception):
  """The work would begin here."""


def _door(*args: object, **kwargs: object) -> None:
  raise _Door


# Command -> what it does and the config variants that it is started with.
COMMANDS: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
  "sample": (
    sample.sample,
    ("sample.py:student", "sample.py", "sample.py:wan_tiny", "sample.py:demo"),
  ),
  "evaluate": (evaluate.evaluate, ("evaluate.py", "evaluate.py:runlocal")),
  "embed": (embed.embed, ("embed.py",)),
  "prepare": (prepare.prepare, ("prepare.py:tiny", "prepare.py")),
  "calibrate": (calibrate.calibrate, ("calibrate.py",)),
  "benchmark": (
    benchmark.benchmark,
    ("benchmark.py", "benchmark.py:suite=kernels"),
  ),
  "train": (
    train.train,
    ("teacher_forcing.py:small", "dmd.py:small", "pretraining.py:small"),
  ),
}
# Where the work of each command begins.
_DOORS: tuple[tuple[object, str], ...] = (
  (job.Job, "embed"),
  (judge, "load_or_train_judge"),
  (tokenizer.Tokenizer, "load"),
  (preparation, "run"),
  (preparation, "run_beam"),
  (benchmark.RolloutSuite, "run"),
  (benchmark.KernelSuite, "run"),
  (distributed, "initialize"),
  (release, "open_network"),
  (calibrate, "_read_clips"),
)

_NUMBERS = (
  *("0", "-1", "1", "2", "1e300", "inf", "-inf", "nan", "1.5", "0x10", "1_0"),
  *("9223372036854775807", "9223372036854775808", "-9223372036854775809"),
  *("4294967296", "99999999999999999999999999", "1e-320", "-0.0", "1e5000"),
)
_SMALL = tuple(map(str, range(2, 30))) + ("0.5", "True", "False", "true")
_TEXTS = (
  *("", " ", ";", ";;;", "a;b", "a \\; b", "&amp;", "None", "True", "()", "{}"),
  *("[]", "[1,2]", "('a','b')", "{'a': 1}", "{'a': {'b': {}}}", "a=b", "--x"),
  *("a\nb", "\t", "'", '"', "\\", "\x1b[31m", "\u202e", "狐", "é" * 50, "\x07"),
  *("a fast zero moving diagonally", "slow 3 vertical; fast 1 diagonal"),
  *("x" * 300, "x" * 5000, "{" * 300, "[" * 3000, "(" * 300, "%s%n", "\udcff"),
)
_PATHS = (
  *("gs://b/x", "s3://b", "hf://a/b", "http://h/x", "file:///x", "~/x", "~"),
  *(
    "~nobody/x",
    "/proc/x/y",
    "/dev/null",
    "/dev/null/x",
    ".",
    "..",
    "/",
    "a/b",
  ),
  *("../x", "x/../../y", "a" * 250, "狐" * 100, "shipped:none", "random:none"),
  *("shipped:small_student", "shipped:small_latent", "random:wan_tiny", "ok"),
  *("prompts.txt", "-x", ".x", "a;b", "a\\;b", "link", "gs:", "shipped:../x"),
)
_POOLS = (_NUMBERS, _TEXTS, _PATHS)


@functools.cache
def _keys(variant: str) -> tuple[tuple[str, object], ...]:
  """All keys of a config with their values, groups and what is in them."""
  name, _, arg = variant.partition(":")
  config = tiny_project.config(name.removesuffix(".py"), arg or None)

  def walk(group: Any, at: str) -> list[tuple[str, object]]:
    found = []
    for key, value in group.items():
      found.append((f"{at}{key}", value))
      if hasattr(value, "items"):
        found += walk(value, f"{at}{key}.")
    return found

  return tuple(walk(config, ""))


_CONVERT = tuple(
  (name, field.default)
  for name, field in convert.Options.__dataclass_fields__.items()
)


def _draw(rng: np.random.Generator, pool: tuple[Any, ...]) -> Any:
  return pool[int(rng.integers(len(pool)))]


def _value(rng: np.random.Generator, default: object = "") -> str:
  """A value: of a pool, glued from two, or a few random characters."""
  kind = int(rng.integers(8))
  if isinstance(default, (int, float)) and kind > 2:
    # What is no number ends in the parser, which is the same for all keys.
    return _draw(rng, (*_NUMBERS, *_SMALL))
  if kind == 0:
    codes = rng.integers(1, 0x300, int(rng.integers(1, 12)))
    return "".join(map(chr, codes.tolist()))
  if kind == 1:
    return _draw(rng, _draw(rng, _POOLS)) + _draw(rng, _draw(rng, _POOLS))
  return _draw(rng, _draw(rng, _POOLS))


def arguments(rng: np.random.Generator) -> list[str]:
  """Draws a command and its arguments.

  Args:
    rng: Source of randomness.
  """
  command = _draw(rng, (*COMMANDS, "sample", "convert"))
  if command == "convert":
    given, keys, prefix = ["--source=ok"], _CONVERT, "--"
  else:
    variant = _draw(rng, COMMANDS[command][1])
    given, keys = [f"--config=configs/{variant}"], _keys(variant)
    prefix = "--config."
  if command == "train":
    given.append("--workdir=run")
  for _ in range(rng.integers(1, 5)):
    key, default = _draw(rng, keys)
    argument = f"{prefix}{key}={_value(rng, default)}"
    odd = int(rng.integers(30))
    if odd == 0:
      argument = f"{prefix}{_value(rng)}={_value(rng)}"
    elif odd == 1:
      argument = _value(rng)
    elif odd == 2:
      argument = argument.partition("=")[0]
    elif odd == 3:
      argument = f"--config={_value(rng)}"
    elif odd == 4:
      argument = f"--workdir={_value(rng)}"
    given.append(argument)
  # No argument of a process has a zero character.
  return [command, *(x.replace("\0", "") for x in given)]


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  del data
  return json.dumps(arguments(rng)).encode()


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  del rng
  (folder / "work").mkdir()
  (folder / "work" / "ok").mkdir()
  (folder / "work" / "prompts.txt").write_text("a slow 3 moving vertically\n")
  (folder / "work" / "link").symlink_to("link")
  path = folder / "arguments.json"
  given = ["sample", "--config=configs/sample.py:student"]
  path.write_text(json.dumps(given))
  return [mutations.Seed(path, path)]


@functools.cache
def _small(path: Any) -> sources.SmallSource:
  return _OPEN_SMALL(path)


_OPEN_SMALL = sources.open_small


def run(command: list[str]) -> failures.Failure | None:
  """Parses a command line and stops at the door; returns what it said.

  Args:
    command: Name of the command and its arguments.
  """
  name, argv = command[0], command
  with contextlib.ExitStack() as stack:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for owner, attribute in _DOORS:
      patch.setattr(owner, attribute, _door)
    # Shipped models are loaded once and not a thousand times.
    patch.setattr(sources, "open_small", _small)
    patch.setattr(flags, "FLAGS", flags.FlagValues())
    patch.setattr(sys, "argv", argv)
    with open(os.devnull, "w") as nowhere:
      stack.enter_context(contextlib.redirect_stdout(nowhere))
      try:
        _call(name, argv)
      except _Door:
        return None
      except BaseException as error:
        return failures.describe(error)
  return None


def _call(name: str, argv: list[str]) -> None:
  if name == "convert":
    convert.define_flags()
    cli.parse(argv)
    convert.main()
    return
  main, _ = COMMANDS[name]
  cli.define(workdir=name == "train")
  cli.parse(argv)
  main(*cli.given(workdir=name == "train"))


def _read(path: pathlib.Path) -> None:
  """Runs the command line of a file; raises what a user would be told."""
  home = path.parent / "work"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(home)
    patch.setenv("HOME", str(home))
    command = json.loads(path.read_text())
    failure = run(command)
  strange = [x for x in home.iterdir() if re.fullmatch("[a-z0-9]+:", x.name)]
  assert not strange, f"{command}: made {strange}"
  if failure is not None:
    assert failure.code == failures.MISTAKE, f"{command}: {failure}"
    raise ValueError(terminal.sentence(failure.sentence))


READER = mutations.Reader(
  seeds=_seeds, read=_read, mutate=_mutate, names_file=False
)
