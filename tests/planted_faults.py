"""Plants faults in a copy of the project and says which ones no test sees.

  python -m tests.planted_faults [WORD ...]

Each fault changes one or two lines in a way that a person might. The tests that
are named beside it must fail then, so nobody removes the last test that sees
it. With words, only faults whose title contains one of them are tried.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests import faults_to_plant

ROOT = pathlib.Path(__file__).parents[1]
_COPIED = ("configs", "notebooks", "tests", "videomla_jax", "pyproject.toml")
_FAILED = 1  # pytest's exit code for tests that failed; others are mistakes


def plant(root: pathlib.Path, fault: faults_to_plant.Fault) -> str:
  """Writes a fault into a project.

  Args:
    root: Folder of the project.
    fault: What to change.

  Returns:
    The content of the file before.

  Raises:
    LookupError: If the old text does not occur exactly once.
  """
  path = root / "videomla_jax" / fault.file
  before = path.read_text()
  found = before.count(fault.old)
  if found != 1:
    raise LookupError(
      f"{fault.file} has {found} times the text of the fault "
      f"{fault.title!r}; quote the new line in tests/faults_to_plant.py."
    )
  path.write_text(before.replace(fault.old, fault.new))
  return before


def first_failure(root: pathlib.Path, fault: faults_to_plant.Fault) -> str:
  """Returns the first test that fails with a planted fault, or nothing.

  Raises:
    RuntimeError: If the tests did not run.
  """
  command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0"]
  command += ["--no-header", "-p", "no:cacheprovider"]
  command += [f"tests/{name}" for name in fault.tests]
  done = subprocess.run(
    command,
    cwd=root,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
  )
  if done.returncode not in (0, _FAILED):
    raise RuntimeError(f"{fault.title}: {done.stdout[-2000:]}")
  failed = [x for x in done.stdout.splitlines() if x.startswith("FAILED ")]
  return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else ""


def main() -> int:
  """Tries the faults one by one; the exit code is 1 if one is not seen."""
  words = sys.argv[1:]
  unseen = 0
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    for name in _COPIED:
      copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
      copy(ROOT / name, root / name)
    for fault in faults_to_plant.FAULTS:
      if words and not any(word in fault.title for word in words):
        continue
      before = plant(root, fault)
      seen_by = first_failure(root, fault)
      (root / "videomla_jax" / fault.file).write_text(before)
      unseen += not seen_by
      print(f"{fault.title}: {seen_by or 'NOT SEEN'}", flush=True)
  return int(unseen > 0)


if __name__ == "__main__":
  sys.exit(main())
