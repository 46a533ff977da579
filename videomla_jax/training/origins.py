"""What made a model folder, and whether a stage may start from it.

A stage starts from what the stage before it wrote. Folders say what made them,
so a wrong order is refused before anything is loaded.
"""

from collections.abc import Mapping
import os

from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder


def of(about: Mapping[str, object]) -> str:
  """Returns what made a model folder: a stage, "conversion" or "release".

  Args:
    about: The config that lies in the folder.
  """
  training = about.get("training")
  if isinstance(training, Mapping):
    # Configs of the first models name no stage; there was only this one.
    return str(training.get("stage", "teacher_forcing"))
  return "conversion" if "init" in about else "release"


def remedy(origin: str) -> str:
  """Returns the command that makes a folder of an origin, for messages.

  Args:
    origin: A stage, "conversion" or "release".
  """
  # Every stage has a config file of its name.
  commands = {
    "release": "convert a release: python -m videomla_jax.convert",
    "conversion": "convert a dense model: convert --to=latent",
  }
  return commands.get(origin, f"train --config=configs/{origin}.py")


def check(
  role: str, path: str | os.PathLike[str], allowed: tuple[str, ...]
) -> None:
  """Refuses a folder that another stage than expected has written.

  Args:
    role: Name in `networks` of the config.
    path: Model folder, or `shipped:NAME`.
    allowed: Origins that the stage starts from; the empty string allows no
      folder at all.

  Raises:
    ValueError: If the folder is missing, or of an origin that is not allowed.
  """
  # The empty string is no origin; it allows random weights.
  names = [name for name in allowed if name]
  if not str(path):
    if "" in allowed:
      return
    raise ValueError(
      f"networks.{role}='' must name a model folder made by "
      f"{' or '.join(names)}; {remedy(names[0])}."
    )
  found = of(model_folder.read_config(model_lib.checkpoint_path(path)))
  if found not in names:
    raise ValueError(
      f"networks.{role}={str(path)!r} was made by {found!r} but this stage "
      f"starts from {' or '.join(names)}; {remedy(names[0])}."
    )
