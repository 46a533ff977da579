"""Checks every byte of what the other commands have stored.

  python -m videomla_jax.verify runs/teacher_forcing models/wan_1p3b data
  python -m videomla_jax.verify --json=report.json runs/*

A PATH is a run with its training states, one state, a model folder or several
of them, a prepared data set or a part of one, or a file: safetensors (weights,
embeddings, activations), .pth, .array_record, .npz, .npy or .jsonl. Each bad
file gives one line.

Exit codes: 0, everything is whole; 1, something is bad or could not be
compared with anything; 2, a path is missing or of an unknown kind.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import json
import pathlib
import sys
import time
from typing import NamedTuple

from absl import flags

from videomla_jax.data import dataset_check
from videomla_jax.data import stored_files
from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import model_folder
from videomla_jax.storage import output_folder
from videomla_jax.storage import paths as paths_lib
from videomla_jax.storage import state_digests

# Yields names of bad files, relative to a path, and what is wrong with them.
Check = Callable[[pathlib.Path], Iterable[tuple[str, str]]]

_JSON = flags.DEFINE_string("json", "", "File for the result, as JSON.")
# Folders of Orbax and `prepare` that nobody has finished, and states that were
# found damaged before.
_UNFINISHED = (".orbax-checkpoint-tmp", "broken-")


class Part(NamedTuple):
  """Something that is checked as a whole.

  Attributes:
    path: File or folder.
    kind: What it is.
    check: Finds what is bad in it.
  """

  path: pathlib.Path
  kind: str
  check: Check


class Bad(NamedTuple):
  """A file that is not as it was written.

  Attributes:
    path: The file.
    reason: What is wrong with it.
  """

  path: str
  reason: str


def _state(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Checks one training state."""
  if not state_digests.exists(path):
    yield (
      state_digests.FILE,
      "is missing: an earlier version wrote the state, or somebody removed the"
      " list, and nothing can be compared",
    )
    return
  yield from state_digests.problems(path, int(path.name))


def _is_state(path: pathlib.Path) -> bool:
  return path.name.isdigit() and (path / "meta").is_dir()


def _is_model(path: pathlib.Path) -> bool:
  # A model whose config or list is lost is still meant to be one.
  found = {model_folder.CONFIG, model_folder.DIGESTS, model_folder.PARAMS}
  return sum((path / name).exists() for name in found) > 1


FOLDERS: dict[str, tuple[Callable[[pathlib.Path], bool], Check]] = {
  "training state": (_is_state, _state),
  "model": (_is_model, model_folder.problems),
  "data set": (dataset_check.is_data_set, dataset_check.check),
}


def find(path: pathlib.Path) -> Iterator[Part]:
  """Yields what is stored at a path.

  Args:
    path: File or folder. Other folders are looked through, and files of kinds
      that we do not write are passed over there.
  """
  if path.is_file():
    check = stored_files.check_of(path)
    if check is not None:
      yield Part(path, "file", check)
    return
  for kind, (is_one, check) in FOLDERS.items():
    if is_one(path):
      yield Part(path, kind, check)
      # A run lies around its states and its model, and not inside of them.
      return
  for inner in sorted(path.iterdir()):
    if inner.name.startswith(".") or any(x in inner.name for x in _UNFINISHED):
      continue
    if inner.is_dir() and inner.is_symlink():
      continue  # It may lead back here.
    yield from find(inner)


def check(part: Part) -> list[Bad]:
  """Returns what is bad in one part.

  Args:
    part: What to check.
  """
  try:
    found = [(str(part.path / n), why) for n, why in part.check(part.path)]
  except MemoryError:
    raise  # The file may be whole.
  except Exception as error:  # readers of many libraries raise many kinds
    found = [(str(part.path), f"cannot be read ({error})")]
  return [Bad(path, " ".join(reason.split())) for path, reason in found]


def verify(paths: Sequence[str]) -> tuple[int, list[Bad]]:
  """Checks everything at some paths.

  Args:
    paths: Files and folders.

  Returns:
    The number of states, models, data sets and files that were checked, and
    what is bad.

  Raises:
    ValueError: If a path is missing or holds nothing that can be checked.
  """
  if not paths:
    raise ValueError("no path is given; name files or folders to verify.")
  parts: list[Part] = []
  for path in (pathlib.Path(paths_lib.local(x, "PATH")) for x in paths):
    if not path.exists():
      raise ValueError(f"{str(path)!r} does not exist; name a file or folder.")
    found = [*find(path.absolute())]
    if not found:
      raise ValueError(
        f"{str(path)!r} holds nothing that this command knows; name a run, a"
        " model folder, a data set, or a file that a command wrote."
      )
    parts += found
  bad: list[Bad] = []
  with progress_bar.Progress(len(parts), "verify", unit="part") as progress:
    for part in parts:
      bad += check(part)
      progress.update()
  return len(parts), bad


def main(paths: Sequence[str]) -> None:
  """Verifies and reports; ends the process with code 1 if something is bad.

  Args:
    paths: Files and folders.
  """
  started = time.monotonic()
  json_file = paths_lib.local(_JSON.value, "json")
  if json_file:
    output_folder.check_file(json_file)
  count, bad = verify(paths)
  for path, reason in bad:
    print(f"{path}: {reason}")
  seconds = time.monotonic() - started
  result = f"{len(bad)} bad files" if bad else "all whole"
  print(f"verified {count} parts in {seconds:.1f} s: {result}", flush=True)
  if json_file:
    report = dict(parts=count, bad=[x._asdict() for x in bad])
    atomic.write_text(json_file, json.dumps(report, indent=1) + "\n")
  if bad:
    distributed.leave(1)


if __name__ == "__main__":
  # absl takes flags alone, which have the form --name=value here.
  given = [x for x in sys.argv[1:] if not x.startswith("-")]
  sys.argv[1:] = [x for x in sys.argv[1:] if x.startswith("-")]
  cli.run_flags(lambda: main(given))
