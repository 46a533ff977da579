"""Checkpoint files of other projects, whatever their format.

Safetensors, alone or in shards with an index, and `.pth`. Nothing is loaded
until a tensor is asked for, and files are checked before that.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
from typing import Any

import safetensors

from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import safetensors_files
from videomla_jax.storage import torch_pickle

Tensors = safetensors_files.Tensors

_FLOATS = frozenset(safetensors_files.DTYPES.values())
# Names of networks inside of a training checkpoint, in order of preference.
_NETWORKS = ("generator_ema", "generator", "model_ema", "ema", "model")
_NETWORKS += ("state_dict", "module")
# Last part of the names of tensors that stand beside quantised weights.
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", "absmax", "qzeros")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@contextlib.contextmanager
def open_tensors(
  path: str | os.PathLike[str], *, select: str = ""
) -> Iterator[Tensors]:
  """Opens a checkpoint of another project, in any of the known formats.

  Args:
    path: A file, an index of shards, or the folder that holds one of them.
    select: Name of a network inside of a training checkpoint; by default the
      averaged generator, if there is one.

  Yields:
    Tensors by name.

  Raises:
    ValueError: If files are missing, damaged, quantised or no checkpoint.
  """
  path = _find(pathlib.Path(path))
  with contextlib.ExitStack() as stack:
    if path.name.endswith(safetensors_files.INDEX):
      tensors = safetensors_files.read_shards(path)
    elif path.suffix == ".safetensors":
      tensors = safetensors_files.read_file(path)
    elif path.suffix in _PICKLES:
      archive = stack.enter_context(torch_pickle.open_archive(path))
      tensors = _select(torch_pickle.read_tensors(archive, path), path, select)
    else:
      raise ValueError(
        f"source={str(path)!r} is of an unknown kind; give .safetensors, its "
        ".index.json, or .pth."
      )
    _check_floats(tensors, path)
    yield tensors


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """Returns the free text of a safetensors file, or of an index of shards.

  Args:
    path: What `open_tensors` has opened; other formats have no such text.
  """
  path = _find(pathlib.Path(path))
  if path.name.endswith(safetensors_files.INDEX):
    about = json.loads(path.read_text()).get("metadata")
    pairs = about.items() if isinstance(about, dict) else ()
    return {k: text for k, text in pairs if isinstance(text, str)}
  if path.suffix != ".safetensors":
    return {}
  with safetensors.safe_open(path, framework="numpy") as file:
    return file.metadata() or {}


def _find(path: pathlib.Path) -> pathlib.Path:
  """Returns the only checkpoint of a folder, or the file itself."""
  if path.suffix == ".gguf":
    raise ValueError(
      f"source={str(path)!r} is quantised; give the original weights."
    )
  if path.is_file():
    return path
  if not path.is_dir():
    raise ValueError(
      f"source={str(path)!r} does not exist; give a checkpoint file or folder."
    )
  # An index comes before the shards that it names.
  for pattern in (
    f"*{safetensors_files.INDEX}",
    "*.safetensors",
    *(f"*{s}" for s in _PICKLES),
  ):
    found = sorted(path.glob(pattern))
    if len(found) == 1:
      return found[0]
    if found:
      listed = [f.name for f in found[:6]]
      raise ValueError(
        f"source={str(path)!r} holds several checkpoints {listed} and no "
        "index; name one of them."
      )
  raise ValueError(
    f"source={str(path)!r} holds no checkpoint; give the folder or file of a "
    "release."
  )


def _select(
  loaded: Mapping[str, Any], path: pathlib.Path, select: str
) -> Tensors:
  """Finds the network in what a training script saved."""
  networks = {
    name: value
    for name, value in loaded.items()
    if isinstance(value, Mapping)
    and any(isinstance(x, lazy_tensor.LazyTensor) for x in value.values())
  }
  if select and select not in networks:
    raise ValueError(
      f"select={select!r} is not in {str(path)!r}; use one of "
      f"{sorted(networks) or 'none, it holds one network'}."
    )
  if select or networks:
    # A training checkpoint holds several networks, of which videos are made by
    # the averaged generator.
    ranked = [select, *_NETWORKS]
    chosen = [n for n in ranked if n in networks] or [*networks]
    if len(networks) > 1 and chosen[0] not in ranked:
      raise ValueError(
        f"source={str(path)!r} holds {sorted(networks)}; choose one with "
        "--select."
      )
    loaded = networks[chosen[0]]
  return {
    n: x for n, x in loaded.items() if isinstance(x, lazy_tensor.LazyTensor)
  }


def _check_floats(tensors: Tensors, path: pathlib.Path) -> None:
  """Refuses weights that are codes and not numbers."""
  if not tensors:
    raise ValueError(f"source={str(path)!r} holds no tensors.")
  coded = [n for n, x in tensors.items() if x.dtype not in _FLOATS]
  # Scales tell of codes, even where the codes lie in a type of floats.
  coded += [n for n in tensors if n.split(".")[-1] in _SCALES]
  if coded:
    raise ValueError(
      f"source={str(path)!r} has quantised weights ({coded[:4]}); give "
      "float32, bfloat16 or float16."
    )
