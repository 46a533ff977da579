"""Which LoRAs a user asks for, and what to say of those that were merged."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from videomla_jax.conversion import lora_scaling
from videomla_jax.storage import paths
from videomla_jax.storage import printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """One LoRA to merge.

  Attributes:
    file: File of its tensors.
    scale: What its updates are multiplied by.
    strict: Whether keys that fit nothing are refused; else they are left out.
  """

  file: pathlib.Path
  scale: float = 1.0
  strict: bool = True


def parse(files: str, scales: str, *, strict: bool) -> list[Lora]:
  """Reads the flags of a command.

  Args:
    files: Files or folders of adapters, separated by commas; empty for none.
    scales: One number, or one per file, separated by commas.
    strict: Whether keys that fit nothing are refused.

  Raises:
    ValueError: If a file is missing or a scale is no finite number.
  """
  if not files:
    return []
  # A name may have commas of its own.
  whole = _is_path(files)
  names = [files] if whole else [x.strip() for x in files.split(",")]
  try:
    numbers = [float(x) for x in scales.split(",")]
  except ValueError:
    numbers = [math.nan]
  if not all(map(math.isfinite, numbers)) or len(numbers) not in (
    1,
    len(names),
  ):
    raise ValueError(
      f"lora_scale={scales!r} must be one finite number, or one for each of "
      f"the {len(names)} files of --lora; use 1.0."
    )
  numbers = numbers * len(names) if len(numbers) == 1 else numbers
  loras = []
  for name, number in zip(names, numbers, strict=True):
    path = lora_scaling.find_file(pathlib.Path(paths.local(name, "lora")))
    if not path.is_file():
      raise ValueError(
        f"lora={name!r} is no file; give a LoRA, or a folder with "
        "adapter_model.safetensors."
      )
    loras.append(Lora(file=path, scale=number, strict=strict))
  return loras


def _is_path(text: str) -> bool:
  """Tells whether something is there under a name, whatever the text."""
  try:
    return pathlib.Path(paths.local(text, "lora")).exists()
  except (OSError, ValueError):
    return False


def told(notes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """Yields a line for each LoRA, and one for the keys that were left out.

  Args:
    notes: What `lora.merged` notes.
  """
  for note in notes:
    yield (
      f"{note['file']}: merged into {note['tensors']} tensors, "
      f"scale {note['scale']:g}"
    )
    if left := note["left_out"]:
      yield f"left out {len(left)} keys: {printable.names(left)}"
