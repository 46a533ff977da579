"""From anybody's checkpoint to a model folder and back, tensor by tensor.

A checkpoint is opened as tensors under original names, whatever its format is;
a model folder can be opened the same way. So reading, changing dense attention
to latent, and exporting are three short loops, and none of them needs the
memory of a whole network.
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

from videomla_jax.conversion import float8
from videomla_jax.conversion import ladder
from videomla_jax.conversion import to_latent
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.conversion.names import early_layout
from videomla_jax.conversion.names import tensor_table
from videomla_jax.conversion.names import wrappers
from videomla_jax.models import released
from videomla_jax.models import umt5
from videomla_jax.models import wan_config
from videomla_jax.ops import quantise
from videomla_jax.storage import foreign_files
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import model_folder
from videomla_jax.storage import model_reader
from videomla_jax.storage import model_writer
from videomla_jax.storage import params_skeleton
from videomla_jax.storage import printable
from videomla_jax.storage import tensor_files
from videomla_jax.storage import tree_names

type PathLike = str | os.PathLike[str]
type Tensors = Mapping[str, lazy_tensor.LazyTensor]
type Advance = Callable[[], None]
type Specs = dict[str, params_skeleton.Parameter]

REPORT = "init_report.json"
_CONVERT_AGAIN = "convert or train it again"
_LONGEST = 400  # characters of what is wrong with a file


@contextlib.contextmanager
def open_network(
  path: PathLike,
  *,
  select: str = "",
  num_heads: int | None = None,
  rope_ladder: str = "",
  rotates: bool = True,
) -> Iterator[tuple[detect.Network, Tensors]]:
  """Opens a checkpoint or a model folder and finds out what it is.

  Args:
    path: File or folder that `tensor_files.open_tensors` reads, or a model
      folder.
    select: Name of the network inside a training checkpoint.
    num_heads: Heads of a DiT that no released family has the sizes of and whose
      heads have not 128 channels.
    rope_ladder: Frequencies of a latent network's positional key, see
      `AttentionConfig`; empty where the source settles them.
    rotates: Whether positions will be used; if not, no ladder is asked for.

  Yields:
    The network, and its tensors under original names, complete and of the
    right shapes.

  Raises:
    ValueError: If it is damaged, unknown, incomplete or of a family that is not
      supported; the file is named.
  """
  if model_folder.is_model_folder(path):
    network, folder_tensors = _open_folder(path)
    ladder.check_same(network, rope_ladder)
    yield network, folder_tensors
    return
  with tensor_files.open_tensors(path, select=select) as tensors:
    yield _recognised(
      tensor_files.find(pathlib.Path(path)),
      tensors,
      num_heads,
      rope_ladder,
      rotates=rotates,
    )


def _recognised(
  path: pathlib.Path,
  tensors: Tensors,
  num_heads: int | None,
  rope_ladder: str,
  *,
  rotates: bool,
) -> tuple[detect.Network, Tensors]:
  """Returns the network of a file, and its tensors under original names."""
  try:
    names = wrappers.unwrapped(tensors, detect.known_modules())
    tensors = {names[name]: x for name, x in tensors.items()}
    if early := early_layout.translate(tensors):
      tensors, num_heads = early
    shapes = {name: x.shape for name, x in tensors.items()}
    network = detect.detect(shapes, num_heads=num_heads)
    network = ladder.settle(
      network,
      rope_ladder,
      must_be_told=rotates and early is not None,
      written=tensor_files.read_metadata(path).get("rope_ladder", ""),
    )
    originals = network.table.originals(shapes)
  except ValueError as error:
    text = printable.text(error, most=_LONGEST)
    about, mark = f"source={str(path)!r}", ": "
    if text.startswith("source "):
      text, mark = text.removeprefix("source "), " "
    raise ValueError(f"{about}{mark}{text}") from error
  # Copies of tied tensors have no original name and are left out.
  return network, {
    originals[n]: x for n, x in tensors.items() if n in originals
  }


def _open_folder(path: PathLike) -> tuple[detect.Network, Tensors]:
  """Opens a model folder as if it held tensors of PyTorch."""
  reader = model_reader.ModelReader(path)
  config = released.config_at(path)
  float8.refuse_stored(config, str(path))
  network = detect.network_of(config)
  # The sizes are two files' word, and arrays of another size are never read.
  tree_names.check_same(
    network.table.our_shapes(),
    {name: reader.shape(name) for name in reader.names()},
    what=f"parameters of {str(path)!r}",
  )

  def lazy(tensor: tensor_table.Tensor) -> lazy_tensor.LazyTensor:
    def read() -> np.ndarray:
      with foreign_files.reading(pathlib.Path(path), way_out=_CONVERT_AGAIN):
        value = reader.read(tensor.path, block=tensor.block)
      return tensor.layout.to_torch(value, tensor.shape)

    dtype = reader.dtype(tensor.path)
    return lazy_tensor.LazyTensor(tensor.shape, dtype, read)

  return network, {n: lazy(t) for n, t in network.table.tensors.items()}


def write_model(
  output: PathLike,
  network: detect.Network,
  tensors: Tensors,
  *,
  dtype: str = "source",
  source: Mapping[str, Any] | None = None,
  latent: to_latent.Recipe | None = None,
  advance: Advance = lambda: None,
) -> None:
  """Writes a network as a model folder.

  Args:
    output: Folder to create or replace.
    network: What the tensors are.
    tensors: Tensors under original names, see `open_network`.
    dtype: "float32", "bfloat16", or "source": float32 or bfloat16 as given;
      "float8_e4m3fn" is for the blocks of a DiT, and the rest is "source".
    source: Where the tensors are from, as the folder's config will say.
    latent: How to change dense attention; None changes nothing.
    advance: Called after every tensor.

  Raises:
    ValueError: If the change is impossible, or there is no room on the disk.
  """
  in_float8 = dtype == quantise.FLOAT8
  dtype = "source" if in_float8 else dtype
  specs = _specs(network.table, tensors, dtype)
  about: dict[str, Any] = dict(source=dict(source or {}))
  config, replaced = _as_stored(network.config, specs), frozenset[str]()
  if latent is not None:
    dense = _dense_config(network)
    config = to_latent.latent_config(
      dense,
      d_c=latent.d_c,
      d_rope=latent.d_rope,
      d_q=latent.d_q,
      rope_ladder=latent.rope_ladder,
    )
    specs, replaced = _latent_specs(dense, config, specs, dtype)
    about["init"] = dataclasses.asdict(latent)
  if in_float8 and isinstance(config, wan_config.WanConfig):
    config, specs = float8.changed(config, specs)
  about |= dict(architecture=network.architecture, config=config.to_dict())
  check_room(output, specs)
  # Each tensor is written before the next one is read, so the memory is that
  # of the largest: 54 MiB of the 5.7 GB of Wan2.1-T2V-1.3B.
  with model_writer.ModelWriter(output, specs, about) as files:
    writer = float8.Float8Writer(files, specs)
    for name, tensor in network.table.tensors.items():
      if name not in replaced:
        value = tensor.layout.to_ours(tensors[name].read())
        writer.write(tensor.path, value, block=tensor.block)
        advance()
    if latent is not None:
      reports = _write_latent(writer, network, tensors, config, latent, advance)
      # The report is added before the folder is finished, so it has a digest,
      # too.
      writer.add_file(REPORT, json.dumps(reports, indent=1) + "\n")


def check_latent(network: detect.Network, recipe: to_latent.Recipe) -> None:
  """Refuses a change to latent attention that cannot work.

  Args:
    network: The network to change.
    recipe: How to change it.

  Raises:
    ValueError: If it is no dense DiT, if sizes do not fit, or if a file of
      activations has no tokens of a layer.
  """
  dense = _dense_config(network)
  to_latent.latent_config(
    dense,
    d_c=recipe.d_c,
    d_rope=recipe.d_rope,
    d_q=recipe.d_q,
    rope_ladder=recipe.rope_ladder,
  )
  for n in (0, dense.num_layers - 1):
    tokens = recipe.tokens(n)
    if tokens is not None and tokens.shape[1:] != (dense.width,):
      raise ValueError(
        f"activations={recipe.activations!r} has tokens of shape "
        f"{tokens.shape} and not [tokens, {dense.width}]; write them with "
        "python -m videomla_jax.calibrate for this network."
      )


def _as_stored(config: released.Config, specs: Specs) -> released.Config:
  """Returns the config of a network whose weights keep their type."""
  # Other networks keep float32 master weights whatever their file holds.
  if not isinstance(config, umt5.Umt5Config):
    return config
  dtypes = {spec.dtype.name for spec in specs.values()}
  param_dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
  return dataclasses.replace(config, param_dtype=param_dtype)


def stored_dtype(dtypes: set[np.dtype], option: str) -> np.dtype:
  """Returns the type in which a parameter is stored.

  Args:
    dtypes: Types of the tensors that it is made from.
    option: "float32", "bfloat16", or "source": bfloat16 if all tensors are,
      else float32.
  """
  if option != "source":
    return np.dtype(jnp.dtype(option))
  # float16 and mixed types become float32, which holds all their values.
  half = {np.dtype(jnp.bfloat16)}
  return np.dtype(jnp.bfloat16) if dtypes == half else np.dtype(np.float32)


def _specs(table: tensor_table.Table, tensors: Tensors, option: str) -> Specs:
  """Returns shape and type of every parameter, blocks stacked."""
  dtypes: dict[str, set[np.dtype]] = {}
  for name, tensor in table.tensors.items():
    dtypes.setdefault(tensor.path, set()).add(tensors[name].dtype)
  stacked = {t.path for t in table.tensors.values() if t.block is not None}
  return {
    path: params_skeleton.Parameter(
      shape, stored_dtype(dtypes[path], option), path in stacked
    )
    for path, shape in table.our_shapes().items()
  }


def check_room(output: PathLike, specs: Specs) -> None:
  """Refuses what cannot fit before anything is written.

  Args:
    output: Folder to create or replace.
    specs: Shape and type of all that is to be written.

  Raises:
    ValueError: If the disk has less room.
  """
  size = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in specs.values())
  # The folder itself may not exist yet; an existing parent tells the disk.
  folder = pathlib.Path(output).absolute()
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if size > free:
    raise ValueError(
      f"output={str(output)!r} needs {size / 1e9:.1f} GB but {free / 1e9:.1f} "
      "GB are free; choose another disk or --dtype=bfloat16."
    )


def _dense_config(network: detect.Network) -> wan_config.WanConfig:
  if not isinstance(network.config, wan_config.WanConfig):
    raise ValueError(
      f"--to=latent changes a DiT, but the source is a "
      f"{network.architecture!r}; give the DiT."
    )
  return network.config


def _latent_specs(
  dense: wan_config.WanConfig,
  latent: wan_config.WanConfig,
  specs: Specs,
  dtype: str,
) -> tuple[Specs, frozenset[str]]:
  """Puts latent attention in the place of dense attention.

  Args:
    dense: Config of the network to convert.
    latent: Config of the result.
    specs: Shape and type of every parameter of the dense network.
    dtype: Option of `stored_dtype`.

  Returns:
    Shape and type of every parameter of the latent network, and the original
    names of the tensors that are replaced.
  """
  replaced: dict[str, tensor_table.Tensor] = {}
  for n in range(dense.num_layers):
    replaced |= dit_names.self_attention(dense, n)
  # Blocks are stacked, so a path stands for the layers of all blocks.
  paths = {tensor.path for tensor in replaced.values()}
  dtypes = {specs[path].dtype for path in paths}
  shapes = dit_names.table_of(latent).our_shapes()
  added = {t.path for t in dit_names.self_attention(latent, 0).values()}
  kept = {path: spec for path, spec in specs.items() if path not in paths}
  stored = stored_dtype(dtypes, dtype)
  new = {
    path: params_skeleton.Parameter(shapes[path], stored, True)
    for path in added
  }
  return kept | new, frozenset(replaced)


def _write_latent(
  writer: float8.Float8Writer,
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
    # Sums over thousands of channels are squared and inverted later on.
    return np.asarray(value, np.float64)

  dense = _dense_config(network)

  def read_layer(n: int) -> to_latent.DenseLayer:
    replaced = dit_names.self_attention(dense, n)
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
    # Progress counts tensors that were read, not those that were made.
    for _ in dit_names.self_attention(dense, n):
      advance()
  return reports
