"""Finds config files in the current folder, then among the installed ones."""

from collections.abc import Iterator
import contextlib
import importlib.resources
import pathlib
import sys


def config_folder() -> pathlib.Path:
  """Returns the folder of the configs that belong to this package.

  A wheel carries them inside the package, see setup.py; in a checkout they are
  beside it.
  """
  package = pathlib.Path(str(importlib.resources.files("videomla_jax")))
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def find_config(path: str) -> pathlib.Path:
  """Returns the file that --config names.

  Args:
    path: Path from the current folder, without the arguments of the config. If
      no file is there, `configs/NAME.py` also names a config of this package.

  Returns:
    The file in the current folder or, failing that, the one of this package.

  Raises:
    ValueError: If there is no such file; the message lists the configs.
  """
  here, folder = pathlib.Path(path), config_folder()
  if here.exists():
    return here
  own = folder / here.name
  if here.parent == pathlib.Path("configs") and own.is_file():
    return own
  names = (f"configs/{x.name}" for x in sorted(folder.glob("*.py")))
  known = [name for name in names if name != "configs/common.py"]
  raise ValueError(
    f"there is no file {path!r}; give the path of a config file from the "
    f"current folder, or use one of {', '.join(known)}."
  )


@contextlib.contextmanager
def importing_from(folder: pathlib.Path) -> Iterator[None]:
  """Lets the configs of a folder import each other while they are loaded.

  The configs of this package can be imported as well, so that a copy of one in
  another folder finds `common`.

  Args:
    folder: Folder of the config file that is being loaded.
  """
  before = list(sys.path)
  # A `common` beside the file comes before ours, which is there for copies that
  # were taken out of this folder alone.
  sys.path[:] = [str(folder.resolve()), *before, str(config_folder())]
  try:
    yield
  finally:
    sys.path[:] = before
