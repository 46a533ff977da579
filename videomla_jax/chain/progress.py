"""What is on disk of a run of the whole way: times and numbers of steps."""

import dataclasses
import json
import pathlib

from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

_NAME = "chain.json"


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run of the whole way is.

  Attributes:
    seconds: Time of finished parts and of the timing of others.
    steps: Steps of each part that was begun, which a later start repeats.
    step_seconds: Time of one of its steps, as it was measured before.
    extra_seconds: Time that finished parts took beside their steps: loading,
      compiling, samples, held-out clips and states.
  """

  seconds: float = 0.0
  steps: dict[str, int] = dataclasses.field(default_factory=dict)
  step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  extra_seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def read(root: pathlib.Path) -> Progress:
  """Returns how far a run is; nothing was done if the folder says nothing.

  Args:
    root: Folder of the run.

  Raises:
    ValueError: If the file is damaged.
  """
  path = root / _NAME
  if not path.exists():
    return Progress()
  try:
    found = ordinary_files.read_json(path)
    return Progress(
      float(found["seconds"]),
      {str(k): int(x) for k, x in found["steps"].items()},
      {str(k): float(x) for k, x in found["step_seconds"].items()},
      {str(k): float(x) for k, x in found["extra_seconds"].items()},
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{path} is damaged ({error!r}); delete it, and the parts that are not "
      "finished are planned anew."
    ) from error


def write(root: pathlib.Path, progress: Progress) -> None:
  """Writes how far a run is.

  Args:
    root: Folder of the run.
    progress: How far it is.
  """
  text = json.dumps(dataclasses.asdict(progress), indent=1)
  atomic.write_text(root / _NAME, text + "\n")
