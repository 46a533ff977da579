"""Damages thousands of files of each kind and reads them all.

  python -m tests.fuzz [NAME ...] [--count=20000] [--seed=0]

Each reader runs in child processes, a thousand files in each, so that a crash
or a hang is told like any other failure. `make test` runs a few hundred files
of each; what the long run found is in docs/status.md.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

from tests import mutations

# Where the `READER` of each kind of file is.
READERS = {
  "captions": "tests.data.fuzz_captions",
  "clips": "tests.media.fuzz_clips",
  "commands": "tests.runtime.fuzz_commands",
  "embeddings": "tests.data.fuzz_embeddings",
  "indexes": "tests.storage.fuzz_indexes",
  "loras": "tests.conversion.fuzz_loras",
  "model_configs": "tests.storage.fuzz_model_configs",
  "pickles": "tests.storage.fuzz_pickles",
  "pictures": "tests.media.fuzz_pictures",
  "releases": "tests.conversion.fuzz_releases",
  "safetensors": "tests.storage.fuzz_safetensors",
  "shards": "tests.data.fuzz_shards",
  "tables": "tests.data.fuzz_tables",
  "tokenizers": "tests.models.fuzz_tokenizers",
}
_BATCH = 1000
_SECONDS = 1800  # for a batch; one file may take 60


def reader(name: str) -> mutations.Reader:
  """Returns the row of a name."""
  return importlib.import_module(READERS[name]).READER


@dataclasses.dataclass
class _Totals:
  """Sums and maxima of all batches."""

  read: int = 0
  refused: int = 0
  seconds: float = 0.0
  bytes: int = 0

  def add(self, tally: mutations.Tally) -> None:
    self.read += tally.read
    self.refused += tally.refused
    self.seconds = max(self.seconds, tally.seconds)
    self.bytes = max(self.bytes, tally.bytes)


def _batch(name: str, *, first: int, count: int, seed: int) -> None:
  """Runs one batch in this process and prints its tally."""
  with tempfile.TemporaryDirectory() as folder:
    tally = mutations.run(
      reader(name), pathlib.Path(folder), count=count, seed=seed, first=first
    )
  print(json.dumps(tally), flush=True)


def _child(name: str, *, first: int, count: int, seed: int) -> mutations.Tally:
  """Runs one batch in a process of its own.

  Raises:
    AssertionError: If it failed, crashed or hung.
  """
  command = [sys.executable, "-m", "tests.fuzz", name, "--batch"]
  command += [f"--count={count}", f"--first={first}", f"--seed={seed}"]
  what = f"{name} {first}..{first + count - 1}, seed {seed}"
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
  except subprocess.TimeoutExpired as error:
    raise AssertionError(f"{what}: no end after {_SECONDS} s") from error
  assert not done.returncode, f"{what}: {done.stderr[-2000:]}"
  return mutations.Tally(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
  """Runs the readers that the command line names, or all of them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("names", nargs="*", choices=[[], *READERS])
  parser.add_argument("--count", type=int, default=20_000)
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--batch", action="store_true")
  asked = parser.parse_args()
  if asked.batch:
    name, count = asked.names[0], asked.count
    return _batch(name, first=asked.first, count=count, seed=asked.seed)
  for name in asked.names or READERS:
    totals = _Totals()
    for first in range(asked.first, asked.first + asked.count, _BATCH):
      count = min(_BATCH, asked.first + asked.count - first)
      totals.add(_child(name, first=first, count=count, seed=asked.seed))
    print(
      f"{name}: {totals.read} read, {totals.refused} refused, at most "
      f"{totals.seconds:.1f} s and {totals.bytes / 1e6:.0f} MB",
      flush=True,
    )


if __name__ == "__main__":
  main()
