"""Damages training states in every way that files can be, and restores them.

  python -m tests.damage FOLDER --flips=400 --changes=200 --seed=0

A damaged state must be noticed: what is restored is the state before it, bit
for bit, with its own position in the data.
"""

import argparse
import collections
from collections.abc import Callable
import pathlib
import random
import shutil
from typing import NamedTuple

import jax
import numpy as np

from videomla_jax.storage import state_digests
from videomla_jax.storage import train_states
from videomla_jax.training import resumption

STEPS = (2, 4, 6)


class State(NamedTuple):
  """A training state with the fields that a resumed run looks at."""

  step: np.ndarray
  weights: np.ndarray
  moments: np.ndarray


def state(step: int) -> State:
  """The state after a step, of a few kilobytes that do not compress."""
  rng = np.random.default_rng(step)
  values = rng.standard_normal((2, 20, 30)).astype(np.float32)
  return State(np.int32(step), *values)


def save(folder: pathlib.Path) -> None:
  """Saves a state for each of `STEPS`."""
  with train_states.TrainCheckpoints(folder, keep=len(STEPS)) as saved:
    for step in STEPS:
      assert saved.save(
        step, state(step), {"next_index": step}, {"seed": 0}, force=True
      )


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files of a state, sorted."""
  return sorted(x for x in folder.rglob("*") if x.is_file())


def flip(folder: pathlib.Path, rng: random.Random) -> str:
  """Changes one bit of one file; returns its name."""
  path = rng.choice([x for x in files(folder) if x.stat().st_size])
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)
  return path.name


def _remove(newest: pathlib.Path, rng: random.Random) -> None:
  rng.choice(files(newest)).unlink()


def _truncate(newest: pathlib.Path, rng: random.Random) -> None:
  path = rng.choice([x for x in files(newest) if x.stat().st_size])
  data = path.read_bytes()
  path.write_bytes(data[: rng.randrange(len(data))])


def _extend(newest: pathlib.Path, rng: random.Random) -> None:
  path = rng.choice(files(newest))
  path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 9)))


def _rename(newest: pathlib.Path, rng: random.Random) -> None:
  path = rng.choice(files(newest))
  path.rename(path.with_name(f"{path.name}{rng.randrange(10)}"))


def _add(newest: pathlib.Path, rng: random.Random) -> None:
  path = rng.choice(files(newest))
  shutil.copy(path, path.with_name(f"{path.name}-copy"))


def _swap_inside(newest: pathlib.Path, rng: random.Random) -> None:
  some = {x.read_bytes(): x for x in files(newest)}
  one, other = rng.sample(sorted(some), 2)
  some[one].write_bytes(other)
  some[other].write_bytes(one)


def _older(newest: pathlib.Path, rng: random.Random) -> pathlib.Path:
  return newest.with_name(str(rng.choice(STEPS[:-1])))


def _file_of_another(newest: pathlib.Path, rng: random.Random) -> None:
  older = _older(newest, rng)
  names = {str(x.relative_to(older)) for x in files(older)}
  names &= {str(x.relative_to(newest)) for x in files(newest)}
  differs = lambda n: (older / n).read_bytes() != (newest / n).read_bytes()
  name = rng.choice(sorted(filter(differs, names)))
  shutil.copy(older / name, newest / name)


def _part_of_another(newest: pathlib.Path, rng: random.Random) -> None:
  older, part = _older(newest, rng), rng.choice(["state", "meta"])
  shutil.rmtree(newest / part)
  shutil.copytree(older / part, newest / part)


def _list_of_another(newest: pathlib.Path, rng: random.Random) -> None:
  name = state_digests.FILE
  shutil.copy(_older(newest, rng) / name, newest / name)


def _edit_list(newest: pathlib.Path, rng: random.Random) -> None:
  path = newest / state_digests.FILE
  text = path.read_text()
  at = rng.choice([i for i, x in enumerate(text) if x in "0123456789abcdef"])
  other = rng.choice([x for x in "0123456789abcdef" if x != text[at]])
  path.write_text(text[:at] + other + text[at + 1 :])


def _no_list(newest: pathlib.Path, rng: random.Random) -> None:
  del rng
  (newest / state_digests.FILE).unlink()


def _older_as_newest(newest: pathlib.Path, rng: random.Random) -> None:
  shutil.rmtree(newest)
  shutil.copytree(_older(newest, rng), newest)


def _other_number(newest: pathlib.Path, rng: random.Random) -> None:
  newest.rename(newest.with_name(str(rng.randint(7, 99))))


def _exchange(newest: pathlib.Path, rng: random.Random) -> None:
  older, aside = _older(newest, rng), newest.with_name("aside")
  newest.rename(aside)
  older.rename(newest)
  aside.rename(older)


CHANGES: dict[str, Callable[[pathlib.Path, random.Random], None]] = {
  "a file is removed": _remove,
  "a file is cut": _truncate,
  "a file is longer": _extend,
  "a file has another name": _rename,
  "a file is there twice": _add,
  "two files change places": _swap_inside,
  "a file is that of another step": _file_of_another,
  "a part is that of another step": _part_of_another,
  "the list is that of another step": _list_of_another,
  "the list is edited": _edit_list,
  "the list is removed": _no_list,
  "an older step is copied over the newest": _older_as_newest,
  "the folder has another number": _other_number,
  "two folders change places": _exchange,
}


def restore(folder: pathlib.Path) -> int:
  """Restores as a run does; returns the step, 0 for a refusal in a sentence.

  What is restored is equal to what was saved at that step, bit for bit.
  """
  with train_states.TrainCheckpoints(folder, keep=len(STEPS)) as saved:
    try:
      found = saved.restore_latest(state(0), agrees=resumption.disagreement)
    except ValueError as error:
      assert "no readable training state" in str(error), error
      return 0
  assert found is not None
  assert found.iterator_state == {"next_index": found.step}, found.step
  for ours, theirs in zip(found.state, state(found.step), strict=True):
    np.testing.assert_array_equal(np.asarray(ours), theirs)
  return found.step


def trial(
  pristine: pathlib.Path, folder: pathlib.Path, kind: str, rng: random.Random
) -> int:
  """Damages a copy of some states and restores it; returns the step."""
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(pristine, folder)
  change = flip if kind == "a bit is flipped" else CHANGES[kind]
  change(folder / str(STEPS[-1]), rng)
  step = restore(folder)
  assert step < STEPS[-1], f"{kind}: not noticed"
  # Two folders that changed places are two damaged states.
  expected = STEPS[:-1] + ((0,) if kind == "two folders change places" else ())
  assert step in expected, f"{kind}: {step} restored"
  return step


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--flips", type=int, default=400)
  parser.add_argument("--changes", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  rng = random.Random(given.seed)
  folder = given.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  pristine = folder / "pristine"
  save(pristine)
  assert restore(pristine) == STEPS[-1]
  kinds = ["a bit is flipped"] * given.flips
  kinds += [[*CHANGES][i % len(CHANGES)] for i in range(given.changes)]
  done = collections.Counter[str]()
  for kind in kinds:
    trial(pristine, folder / "damaged", kind, rng)
    done[kind] += 1
    if sum(done.values()) % 100 == 0:
      print(f"{sum(done.values())} of {len(kinds)}: none silent", flush=True)
  print(f"{sum(done.values())} damages, none silent: {dict(done)}")


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  main()
