"""What a LoRA says of its strength beside its tensors.

An update is `scale alpha / r B A`. Files of kohya and ComfyUI have `alpha` as a
tensor of each layer. PEFT writes it to `adapter_config.json` beside the file,
and diffusers to the header of the file. Where nothing says it, it is r, as all
of them take it then.
"""

import dataclasses
import math
import pathlib
import re
from typing import Any

from videomla_jax.storage import foreign_files
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import printable
from videomla_jax.storage import tensor_files

CONFIG = "adapter_config.json"
_HEADER = "lora_adapter_metadata"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """Strength of the updates of one file, see PEFT's `LoraConfig`.

  Attributes:
    alpha: Numerator for all layers; None for the rank itself.
    patterns: Numerators of layers whose names match.
    rank_stabilised: Whether the root of the rank divides, not the rank.
  """

  alpha: float | None = None
  patterns: tuple[tuple[str, float], ...] = ()
  rank_stabilised: bool = False

  def of(self, module: str, rank: int, alpha: float | None) -> float:
    """Returns alpha / r of one layer.

    Args:
      module: The layer's name in the file.
      rank: Its rank r.
      alpha: Its own numerator, if the file has one.
    """
    if alpha is None:
      alpha = self.alpha
      for pattern, value in self.patterns:
        if re.fullmatch(rf"(?:.*\.)?(?:{re.escape(pattern)})", module):
          alpha = value
    divisor = math.sqrt(rank) if self.rank_stabilised else rank
    return (rank if alpha is None else alpha) / divisor


def find_file(path: pathlib.Path) -> pathlib.Path:
  """Returns the file of tensors in the folder of an adapter, or the path."""
  for name in ("adapter_model.safetensors", "adapter_model.bin"):
    if (path / name).is_file():
      return path / name
  return path


def read(path: pathlib.Path) -> Scaling:
  """Reads what lies beside the tensors of a LoRA.

  Args:
    path: The file of its tensors.

  Raises:
    ValueError: If the description is damaged, or is that of another method.
  """
  beside = path.with_name(CONFIG)
  # Another file of the folder need not be the adapter that this describes.
  if path.stem == "adapter_model" and beside.is_file():
    return _parse(beside, foreign_files.read_json(beside, field="lora"))
  text = tensor_files.read_metadata(path).get(_HEADER)
  if not text:
    return Scaling()
  with foreign_files.reading(path, field="lora"):
    values = ordinary_files.parse_json(text.encode()).items()
  # Keys begin with the part of the pipeline, such as `transformer.`.
  return _parse(path, {key.split(".", 1)[-1]: value for key, value in values})


def _damaged(path: pathlib.Path) -> ValueError:
  return ValueError(
    f"lora={str(path)!r} does not describe an adapter; download it again."
  )


def _parse(path: pathlib.Path, values: dict[str, Any]) -> Scaling:
  method = values.get("peft_type", "LORA")
  if method != "LORA" or values.get("use_dora"):
    name = "DoRA" if method == "LORA" else printable.text(method)
    raise ValueError(
      f"lora={str(path)!r} is of the method {name}, which is not read here; "
      "give a plain LoRA, or merge it where it was trained."
    )
  alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern") or {}
  if not isinstance(patterns, dict):
    raise _damaged(path)
  _check_patterns(path, patterns)
  try:
    return Scaling(
      alpha=None if alpha is None else _number(alpha),
      patterns=tuple((k, _number(v)) for k, v in patterns.items()),
      rank_stabilised=bool(values.get("use_rslora", False)),
    )
  except (OverflowError, TypeError, ValueError) as error:
    raise _damaged(path) from error


def _check_patterns(path: pathlib.Path, patterns: dict[str, Any]) -> None:
  """Refuses expressions, which a stranger could make endless."""
  if any(re.search(r"[^\w.-]", pattern) for pattern in patterns):
    raise ValueError(
      f"lora={str(path)!r} has an alpha_pattern that is no name of a layer; "
      "write out the names of the layers."
    )


def _number(value: Any) -> float:
  number = float(value)
  if not math.isfinite(number):
    raise ValueError(f"{value} is not finite")
  return number
