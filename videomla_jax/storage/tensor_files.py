"""Checkpoint files of other projects, whatever their format.

Safetensors, alone or in shards with an index, and `.pth`. Nothing is loaded
until a tensor is asked for, and files are checked before that.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
from typing import Any

import safetensors

from videomla_jax.storage import foreign_files
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import printable
from videomla_jax.storage import safetensors_files
from videomla_jax.storage import torch_archive
from videomla_jax.storage import torch_pickle

Tensors = safetensors_files.Tensors

_FLOATS = frozenset(safetensors_files.FLOATS.values())
# Names of networks inside of a training checkpoint, in order of preference.
_NETWORKS = ("generator_ema", "generator", "model_ema", "ema", "model")
_NETWORKS += ("state_dict", "module")
# Last part of the names of tensors that stand beside quantised weights.
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", "absmax", "qzeros")
# Last part of the names of tensors that count what training did.
_COUNTERS = ("n_averaged", "num_batches_tracked", "step", "global_step")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


# Names of modules of modules are long, but not as long as this.
_MOST_NAME, _MOST_MODULES = 256, 32
# Several tensors may be views of the same numbers, such as tied embeddings. All
# that is read of a file may be as many times its size, and as many bytes more.
_MOST_COPIES, _FREE_BYTES = 16, 64 * 2**20
_MOST_DEPTH = 3  # dictionaries around a network in a training checkpoint


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
  path = find(pathlib.Path(path))
  with contextlib.ExitStack() as stack:
    if path.name.endswith(safetensors_files.INDEX):
      tensors = safetensors_files.read_shards(path)
    elif path.suffix == ".safetensors":
      tensors = safetensors_files.read_file(path)
    elif path.suffix in _PICKLES:
      archive = stack.enter_context(torch_archive.open_archive(path))
      loaded = torch_pickle.read_tensors(archive)
      tensors = _select(loaded, path, select)
      _check_bytes(tensors, path)
    else:
      raise ValueError(
        f"source={str(path)!r} is of an unknown kind; give .safetensors, its "
        ".index.json, or .pth."
      )
    _check_floats(tensors, path)
    yield tensors


def network_name(select: str, *, use_ema: bool | None) -> str:
  """Returns the name of the network to take from a training checkpoint.

  Args:
    select: The name that the user gives; may be empty.
    use_ema: Whether the user asks for the averaged generator; None asks for
      nothing.

  Raises:
    ValueError: If the two contradict each other.
  """
  if use_ema is None:
    return select
  name = "generator_ema" if use_ema else "generator"
  if select not in ("", name):
    flag = "--use_ema" if use_ema else "--nouse_ema"
    raise ValueError(
      f"--select={select} contradicts {flag}, which takes {name!r}; give one "
      "of them."
    )
  return name


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """Returns the free text of a safetensors file, or of an index of shards.

  Args:
    path: What `open_tensors` has opened; other formats have no such text.
  """
  path = find(pathlib.Path(path))
  if path.name.endswith(safetensors_files.INDEX):
    about = foreign_files.read_json(path).get("metadata")
    pairs = about.items() if isinstance(about, dict) else ()
    return {k: text for k, text in pairs if isinstance(text, str)}
  if path.suffix != ".safetensors":
    return {}
  with safetensors.safe_open(path, framework="numpy") as file:
    return file.metadata() or {}


def find(path: pathlib.Path) -> pathlib.Path:
  """Returns the only checkpoint of a folder, or the file itself.

  Args:
    path: File or folder.

  Raises:
    ValueError: If there is none, or there are several.
  """
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
      listed = printable.names(repr(f.name) for f in found)
      raise ValueError(
        f"source={str(path)!r} holds several checkpoints [{listed}] and no "
        "index; name one of them."
      )
  raise ValueError(
    f"source={str(path)!r} holds no checkpoint; give the folder or file of a "
    "release."
  )


def _select(
  loaded: Mapping[Any, Any], path: pathlib.Path, select: str
) -> Tensors:
  """Finds the network in what a training script saved."""
  networks = _networks(loaded)
  shown = f"[{printable.names(map(repr, sorted(networks)), most=6)}]"
  if select and select not in networks:
    raise ValueError(
      f"select={select!r} is not in {str(path)!r}; use one of "
      f"{shown if networks else 'none, it holds one network'}."
    )
  if select or networks:
    # A training checkpoint holds several networks, of which videos are made by
    # the averaged generator.
    ranked = [select, *_NETWORKS]
    chosen = [n for n in ranked if n in networks] or [*networks]
    if len(networks) > 1 and chosen[0] not in ranked:
      raise ValueError(
        f"source={str(path)!r} holds {shown}; choose one with --select."
      )
    loaded = networks[chosen[0]]
  return _tensors_of(loaded)


def _networks(loaded: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
  """Returns the dictionaries that hold tensors, on the first level with one.

  Below a network may lie its optimiser, which is none.
  """
  level: dict[str, Mapping[Any, Any]] = {"": loaded}
  for _ in range(_MOST_DEPTH):
    level = {
      f"{outer}.{name}" if outer else name: value
      for outer, values in level.items()
      for name, value in values.items()
      if isinstance(name, str) and isinstance(value, Mapping)
    }
    networks = {n: x for n, x in level.items() if _tensors_of(x)}
    if networks or _tensors_of(loaded):
      return networks
  return {}


def _tensors_of(values: Mapping[Any, Any]) -> Tensors:
  """Returns the tensors that lie in a dictionary under names."""
  return {
    name: x
    for name, x in values.items()
    if isinstance(name, str)
    and isinstance(x, lazy_tensor.LazyTensor)
    and name.split(".")[-1] not in _COUNTERS
  }


def _check_bytes(tensors: Tensors, path: pathlib.Path) -> None:
  """Refuses a small file whose tensors would be large: views of few numbers."""
  size = path.stat().st_size
  total = sum(max(x.nbytes, x.span) for x in tensors.values())
  if total > _MOST_COPIES * size + _FREE_BYTES:
    raise ValueError(
      f"source={str(path)!r} has {size / 1e6:.1f} MB for tensors of "
      f"{total / 1e6:.1f} MB, which repeat the same numbers; save contiguous "
      "tensors."
    )


def _check_floats(tensors: Tensors, path: pathlib.Path) -> None:
  """Refuses weights that are codes and not numbers, or none at all."""
  if not tensors:
    raise ValueError(f"source={str(path)!r} holds no tensors.")
  if any(len(n) > _MOST_NAME or n.count(".") > _MOST_MODULES for n in tensors):
    raise ValueError(
      f"source={str(path)!r} has a name of more than {_MOST_NAME} letters or "
      f"{_MOST_MODULES} modules; give a checkpoint of Wan."
    )
  # One whole number is a count or a strength, as LoRAs have them.
  coded = [
    n
    for n, x in tensors.items()
    if x.dtype not in _FLOATS and (x.shape or x.dtype.kind != "i")
  ]
  # Scales tell of codes, even where the codes lie in a type of floats.
  coded += [n for n in tensors if n.split(".")[-1] in _SCALES]
  if coded:
    raise ValueError(
      f"source={str(path)!r} has quantised weights ({printable.names(coded)}); "
      "give float32, bfloat16 or float16."
    )
  empty = [n for n, x in tensors.items() if 0 in x.shape]
  if empty:
    raise ValueError(
      f"source={str(path)!r} has tensors without numbers "
      f"({printable.names(empty)}); gather the weights of all processes before "
      "they are saved."
    )
