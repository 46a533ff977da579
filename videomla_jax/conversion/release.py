"""From anybody's checkpoint to a model folder and back, tensor by tensor.

A checkpoint is opened as tensors under original names, whatever its format; a
model folder of ours can be opened the same way. So reading, changing dense
attention to latent, and exporting are three short loops.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np

from videomla_jax.conversion import to_latent
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.conversion.names import tensor_table as tensor_table_lib
from videomla_jax.models import released
from videomla_jax.models import umt5
from videomla_jax.models import wan_config
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import model_folder
from videomla_jax.storage import model_reader
from videomla_jax.storage import model_writer
from videomla_jax.storage import safetensors_files
from videomla_jax.storage import tensor_files

Tensors = Mapping[str, lazy_tensor.LazyTensor]
Advance = Callable[[], Any]

REPORT = "init_report.json"


@contextlib.contextmanager
def open_network(
  path: str | os.PathLike[str],
  *,
  select: str = "",
  num_heads: int | None = None,
) -> Iterator[tuple[detect.Network, Tensors]]:
  """Opens a checkpoint or a model folder and finds out what it is.

  Args:
    path: See `tensor_files.open_tensors`, or a model folder.
    select: Network inside a training checkpoint.
    num_heads: Of a DiT whose heads have not 128 channels.

  Yields:
    The network, and its tensors under original names, complete and of the
    right shapes.

  Raises:
    ValueError: If it is damaged, unknown or incomplete; all names that do not
      fit are listed.
  """
  if model_folder.is_model_folder(path):
    yield _open_folder(path)
    return
  with tensor_files.open_tensors(path, select=select) as tensors:
    shapes = {name: x.shape for name, x in tensors.items()}
    network = detect.detect(shapes, num_heads=num_heads)
    names = network.table.originals(shapes)
    yield network, {names[n]: x for n, x in tensors.items() if n in names}


def _open_folder(path) -> tuple[detect.Network, Tensors]:
  """Our own folder, seen as tensors of PyTorch."""
  reader = model_reader.ModelReader(path)
  network = detect.network_of(released.config_at(path))

  def lazy(tensor: tensor_table_lib.Tensor) -> lazy_tensor.LazyTensor:
    def read() -> np.ndarray:
      value = reader.read(tensor.path, block=tensor.block)
      return tensor.layout.to_torch(value, tensor.shape)

    dtype = reader.dtype(tensor.path)
    return lazy_tensor.LazyTensor(tensor.shape, dtype, read)

  return network, {n: lazy(t) for n, t in network.table.tensors.items()}


def write_model(
  output: str | os.PathLike[str],
  network: detect.Network,
  tensors: Tensors,
  *,
  dtype: str = "source",
  source: Mapping[str, Any] | None = None,
  latent: to_latent.Recipe | None = None,
  advance: Advance = lambda: None,
) -> None:
  """Writes a model folder.

  Args:
    output: Folder to create or replace.
    network: What the tensors are.
    tensors: Under original names, see `open_network`.
    dtype: "float32", "bfloat16", or "source": float32 or bfloat16 as given.
    source: Kept in the config: where the tensors are from.
    latent: How to change dense attention; None changes nothing.
    advance: Called after every tensor.

  Raises:
    ValueError: If the change is impossible, or there is no room on the disk.
  """
  specs = _specs(network.table, tensors, dtype)
  about: dict[str, Any] = dict(source=dict(source or {}))
  config, changed = _as_stored(network.config, specs), _Changed({}, [])
  if latent is not None:
    config = _latent_config(network, latent)
    specs, changed = _latent_specs(network, config, specs, dtype)
    about["init"] = dataclasses.asdict(latent)
  about |= dict(architecture=network.architecture, config=config.to_dict())
  _check_room(output, specs)
  with model_writer.ModelWriter(output, specs, about) as writer:
    for name, tensor in network.table.tensors.items():
      if name not in changed.names:
        value = tensor.layout.to_ours(tensors[name].read())
        writer.write(tensor.path, value, block=tensor.block)
        advance()
    if latent is not None:
      reports = _write_latent(writer, network, tensors, config, latent, advance)
      writer.add_file(REPORT, json.dumps(reports, indent=1) + "\n")


def _as_stored(config: Any, specs: Mapping[str, model_writer.Spec]) -> Any:
  """The config of a network whose weights stay in the type they have."""
  if not isinstance(config, umt5.Umt5Config):
    return config
  dtypes = {spec.dtype.name for spec in specs.values()}
  param_dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
  return dataclasses.replace(config, param_dtype=param_dtype)


def stored_dtype(dtypes: set[np.dtype], option: str) -> np.dtype:
  """Float32 unless asked otherwise, or unless all is bfloat16 already."""
  if option != "source":
    return np.dtype(jnp.dtype(option))
  half = {np.dtype(jnp.bfloat16)}
  return np.dtype(jnp.bfloat16) if dtypes == half else np.dtype(np.float32)


def _specs(
  tensor_table: tensor_table_lib.Table, tensors: Tensors, option: str
) -> dict[str, model_writer.Spec]:
  dtypes: dict[str, set[np.dtype]] = {}
  for name, tensor in tensor_table.tensors.items():
    dtypes.setdefault(tensor.path, set()).add(tensors[name].dtype)
  stacked = {
    t.path for t in tensor_table.tensors.values() if t.block is not None
  }
  return {
    path: model_writer.Spec(
      shape, stored_dtype(dtypes[path], option), path in stacked
    )
    for path, shape in tensor_table.our_shapes().items()
  }


def _check_room(output, specs: Mapping[str, model_writer.Spec]) -> None:
  """Refuses what cannot fit before anything is written."""
  size = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in specs.values())
  folder = pathlib.Path(output).absolute()
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if size > free:
    raise ValueError(
      f"output={str(output)!r} needs {size / 1e9:.1f} GB but {free / 1e9:.1f} "
      "GB are free; choose another disk or --dtype=bfloat16."
    )


@dataclasses.dataclass(frozen=True)
class _Changed:
  """Tensors that a conversion replaces, per block."""

  names: dict[str, tensor_table_lib.Tensor]
  blocks: list[dict[str, tensor_table_lib.Tensor]]


def _latent_config(network: detect.Network, latent: to_latent.Recipe) -> Any:
  if network.architecture != "wan_dit":
    raise ValueError(
      f"--to=latent changes a DiT, but the source is a "
      f"{network.architecture!r}; give the DiT."
    )
  return to_latent.latent_config(
    network.config, d_c=latent.d_c, d_rope=latent.d_rope, d_q=latent.d_q
  )


def _latent_specs(network, config, specs, dtype: str):
  """Specs with latent attention in the place of dense."""
  blocks = [
    dit_names.self_attention(network.config, n)
    for n in range(config.num_layers)
  ]
  names = {name: t for block in blocks for name, t in block.items()}
  dtypes = {specs[t.path].dtype for t in names.values()}
  kept = {p: s for p, s in specs.items() if p not in _paths(names)}
  made = dit_names.table_of(config)
  shapes, own = made.our_shapes(), dit_names.self_attention(config, 0)
  attention = {
    path: model_writer.Spec(shapes[path], stored_dtype(dtypes, dtype), True)
    for path in _paths(own)
  }
  return kept | attention, _Changed(names, blocks)


def _paths(tensors: Mapping[str, tensor_table_lib.Tensor]) -> set[str]:
  return {tensor.path for tensor in tensors.values()}


def _write_latent(
  writer: model_writer.ModelWriter,
  network: detect.Network,
  tensors: Tensors,
  config: wan_config.WanConfig,
  recipe: to_latent.Recipe,
  advance: Advance,
) -> list[dict[str, Any]]:
  """Converts and writes one block after the other; returns what each kept."""

  def read(original: str) -> np.ndarray:
    tensor = network.table.tensors[original]
    value = tensor.layout.to_ours(tensors[original].read())
    return np.asarray(value, np.float64)

  def read_layer(n: int) -> to_latent.DenseLayer:
    replaced = dit_names.self_attention(network.config, n)
    return to_latent.DenseLayer(
      {
        tensor.path.removeprefix(to_latent.SELF_ATTENTION): read(name)
        for name, tensor in replaced.items()
      },
      read(f"blocks.{n}.modulation"),
      recipe.tokens(n),
    )

  time_parameters = {
    tensor.path: read(name)
    for name, tensor in network.table.tensors.items()
    if tensor.path.startswith("time_")
  }
  converted = to_latent.convert_layers(
    read_layer, time_parameters, config, method=recipe.method, seed=recipe.seed
  )
  reports = []
  for n, (arrays, report) in enumerate(converted):
    for name, value in arrays.items():
      writer.write(to_latent.SELF_ATTENTION + name, value, block=n)
    reports.append(report.to_dict())
    for _ in dit_names.self_attention(network.config, n):
      advance()
  return reports


def export(
  output: str | os.PathLike[str],
  network: detect.Network,
  tensors: Tensors,
  *,
  format_name: str,
  advance: Advance = lambda: None,
) -> None:
  """Writes safetensors under the names of one format.

  Args:
    output: Folder for one file, or for shards and their index.
    network: What the tensors are.
    tensors: Under original names.
    format_name: "original", or another that the network has.
    advance: Called after every tensor.

  Raises:
    ValueError: If the network has no such names, or there is no room.
  """
  names = network.table.names(format_name)
  specs = {
    n: model_writer.Spec(x.shape, x.dtype, False) for n, x in tensors.items()
  }
  _check_room(output, specs)
  stem = (
    "model" if format_name == "transformers" else ("diffusion_pytorch_model")
  )
  renamed = {name: tensors[original] for name, original in names.items()}
  for _ in safetensors_files.write_safetensors(output, renamed, stem=stem):
    advance()
