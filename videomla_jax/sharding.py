"""How arrays lie on a mesh of devices: two tables, and what reads them.

The mesh has four axes: `data` copies the model and splits the batch; `fsdp`
splits the batch and, between their uses, every large parameter and its moments;
`sequence` splits the tokens of a frame; `tensor` splits heads and feed-forward.
An axis of size 1 costs nothing, so all programs are written for all four.

Parameters are matched by name, and the first row that matches is taken.
Activations are named where they arise. The compiler derives all communication
from these two tables.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
import re

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree
import numpy as np

from videomla_jax.storage import devices as devices_lib
from videomla_jax.storage import tree_names

# The devices, or only their number.
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
# Mesh axes of one dimension, as a `PartitionSpec` holds them.
Entry = str | tuple[str, ...] | None

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")

# Regular expression of a parameter's name -> axes of its LAST dimensions. The
# axis of stacked layers comes before them and stays whole. Moments and averages
# end in the name of their parameter, so the same rows fit them.
PARAMETERS: tuple[tuple[str, P], ...] = (
  # These are read by all heads, or are too small to split.
  (r"/w_(dkv|dq|kr)/kernel\b", P("fsdp", None)),
  (r"/(query|key|value|w_uq|w_qr|w_uk|w_uv)/kernel\b", P("fsdp", "tensor")),
  (r"/(query|key|value|w_uq|w_qr)/bias\b", P("tensor")),
  (r"_attention/(out|w_o)/kernel\b", P("tensor", "fsdp")),
  (r"ffn/into/kernel\b", P("fsdp", "tensor")),
  (r"ffn/into/bias\b", P("tensor")),
  (r"ffn/out/kernel\b", P("tensor", "fsdp")),
  (r"(_embed/(into|out)|time_project)/kernel\b", P(None, "fsdp")),
  (r"", P()),
)

# Name of an activation -> axes of its first dimensions.
ACTIVATIONS: dict[str, P] = {
  "batch": P(BATCH),  # B ...
  "whole": P(),
  "residual": P(BATCH, None, None, "sequence"),  # B G T P E
  "hidden": P(BATCH, None, None, "sequence", "tensor"),  # B G T P F
  # Tokens are split within frames: these are joined only on the device.
  "queries": P(BATCH, None, "sequence", "tensor"),  # B T P N D
  "chunk_queries": P(BATCH, None, None, "sequence", "tensor"),  # B G T P N D
  "angles": P(BATCH, None, "sequence"),  # B T P pairs
  "keys": P(BATCH, None, None, "tensor"),  # B T P N D
  "text_keys": P(BATCH, None, "tensor"),  # B M N D
  "heads": P(None, "tensor"),  # c N D
  "cache": P(None, BATCH),  # layers B slots P d
}


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  sequence: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Arranges the devices of all processes in a mesh.

  One of the sizes may be -1, which stands for the devices that are left.

  Args:
    data: Devices among which the batch is split while each has all parameters.
    fsdp: Devices among which the batch and the parameters are split.
    sequence: Devices among which the tokens of a frame are split.
    tensor: Devices among which heads and feed-forward are split.
    devices: Devices to arrange; all devices of all processes by default.

  Raises:
    ValueError: If the numbers do not multiply to the devices.
    NotImplementedError: If JAX finds no device.
  """
  if devices is None:
    devices_lib.check()
    devices = jax.devices()
  sizes = dict(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
  free = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  given = ", ".join(f"{name}={size}" for name, size in sizes.items())
  bad = [n for n, size in sizes.items() if size < 1 and size != -1]
  if len(free) > 1 or bad:
    raise ValueError(
      f"mesh has {given} but sizes must be positive and one at most -1; use "
      "data=-1 for the devices that are left."
    )
  if len(devices) % fixed or (not free and fixed != len(devices)):
    raise ValueError(
      f"mesh has {given}, which does not make the {len(devices)} devices "
      f"there are; sizes must multiply to {len(devices)}, and one may be -1."
    )
  for name in free:
    sizes[name] = len(devices) // fixed
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    # The compiler derives the layout of what has no name in the tables.
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def _axes(entry: Entry) -> tuple[str, ...]:
  """Returns the mesh axes that one dimension is split along."""
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def _extent(entry: Entry, mesh: Mesh) -> int:
  """Counts the parts that one dimension is split into."""
  return math.prod(mesh.shape[name] for name in _axes(entry))


def spec_of(name: str, rank: int) -> P:
  """Looks up the mesh axes of a parameter, moment or average.

  The unfinished videos of long tuning, which lie in a training state under
  `stream/`, are split by rows of the batch.

  Args:
    name: Name of the leaf in the training state.
    rank: Number of its dimensions.
  """
  if re.search(r"\bstream/", name):
    if name.endswith("negative"):
      return P()
    row = ACTIVATIONS["cache" if "cache/entries" in name else "batch"]
    return P(*row, *[None] * (rank - len(row)))
  # The last row fits every name, so there always is one.
  spec = next(spec for rule, spec in PARAMETERS if re.search(rule, name))
  if len(spec) > rank:  # A factored or scalar moment of a parameter.
    return P()
  return P(*[None] * (rank - len(spec)), *spec)


def shardings(state: PyTree, mesh: Mesh) -> PyTree:
  """Decides on which devices each leaf of a training state lies.

  Args:
    state: Training state, of arrays or abstract.
    mesh: The devices.

  Returns:
    A `NamedSharding` per leaf.

  Raises:
    ValueError: If a parameter cannot be split evenly; all are listed.
  """
  flat = tree_names.flat_tree(state)
  specs = {name: spec_of(name, len(x.shape)) for name, x in flat.items()}
  uneven = [
    f"{name} {tuple(x.shape)} into {specs[name]}"
    for name, x in flat.items()
    if any(
      size % _extent(entry, mesh)
      for size, entry in zip(x.shape, specs[name], strict=False)
    )
  ]
  if uneven:
    sizes = ", ".join(f"{k}={v}" for k, v in mesh.shape.items() if v > 1)
    raise ValueError(
      f"mesh with {sizes} cannot split {'; '.join(uneven[:4])}"
      f"{' and others' if len(uneven) > 4 else ''} evenly; choose sizes that "
      "divide these dimensions, and data for the rest."
    )
  leaves = [jax.sharding.NamedSharding(mesh, specs[name]) for name in flat]
  return jax.tree.unflatten(jax.tree.structure(state), leaves)


def check_batch(size: int, mesh: Mesh, *, microbatches: int = 1) -> None:
  """Refuses a batch that does not split evenly among the devices.

  Args:
    size: Rows of the batch per update, over all processes.
    mesh: The devices.
    microbatches: Microbatches that a device works through one by one.
  """
  share = microbatches * _extent(BATCH, mesh)
  if size < 1 or size % share:
    raise ValueError(
      f"data.batch_size={size} must be a multiple of {share} = "
      f"optim.accumulate {microbatches} x data {mesh.shape['data']} x fsdp "
      f"{mesh.shape['fsdp']}; use {max(1, round(size / share)) * share}."
    )


def check_tokens(tokens: int, heads: int, mesh: Mesh) -> None:
  """Refuses a mesh that does not split tokens or heads evenly.

  Args:
    tokens: P, tokens of a frame.
    heads: N, attention heads.
    mesh: The devices.
  """
  for axis, size, what in (
    ("sequence", tokens, "tokens of a frame"),
    ("tensor", heads, "heads"),
  ):
    if size % mesh.shape[axis]:
      raise ValueError(
        f"mesh.{axis}={mesh.shape[axis]} must divide the {size} {what}; choose "
        "another size."
      )


def put_batch(
  batch: PyTree, mesh: jax.sharding.Mesh, *, stacked: bool = False
) -> PyTree:
  """Makes global arrays of this process's rows of a batch.

  Args:
    batch: Arrays whose first axis is the batch; those named `negative` are the
      same in all processes and are copied to all devices.
    mesh: The devices.
    stacked: Whether batches of several steps lie along another axis before it.
  """
  rows = P(None, BATCH) if stacked else P(BATCH)
  split = jax.sharding.NamedSharding(mesh, rows)
  whole = jax.sharding.NamedSharding(mesh, P())

  def put(path: tuple[object, ...], x: np.ndarray) -> jax.Array:
    shared = "negative" in jax.tree_util.keystr(path)
    return jax.make_array_from_process_local_data(whole if shared else split, x)

  return jax.tree_util.tree_map_with_path(put, batch)


def _mesh_in_use() -> jax.sharding.AbstractMesh | None:
  """Returns the mesh that a program is traced for; None for one device."""
  mesh = jax.sharding.get_abstract_mesh()
  # Inside `per_device` the axes are manual: what is there is one part already
  # and must not be split again.
  known = not mesh.empty and set(mesh.axis_names) == set(AXES)
  return mesh if known and not mesh.manual_axes and mesh.size > 1 else None


def devices_along(axis: str) -> int:
  """Counts the devices along an axis of the mesh in use; 1 without a mesh."""
  mesh = _mesh_in_use()
  return 1 if mesh is None else mesh.shape[axis]


def _activation_spec(x: jax.Array | np.ndarray, name: str, mesh: Mesh) -> P:
  """Looks up an activation; a dimension that splits unevenly stays whole."""
  spec = [
    entry if size % _extent(entry, mesh) == 0 else None
    for entry, size in zip(ACTIVATIONS[name], x.shape, strict=False)
  ]
  return P(*spec)


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Asks the compiler for the layout of a named activation.

  Args:
    x: The activation; returned as it is where there is no mesh.
    name: Key of `ACTIVATIONS`.
  """
  mesh = _mesh_in_use()
  if mesh is None:
    return x
  spec = _activation_spec(x, name, mesh)
  return jax.lax.with_sharding_constraint(x, spec)


def per_device(
  function: Callable[..., PyTree], *args: tuple[str, PyTree]
) -> PyTree:
  """Runs a function on the part that each device has; no compiler splits it.

  This is for kernels, and for loops that must not communicate.

  Args:
    function: Function of arrays. All leaves of its result lie like the first
      leaf of its first argument.
    *args: Name of an activation for all leaves of an argument, and the
      argument.
  """
  values = [value for _, value in args]
  mesh = _mesh_in_use()
  if mesh is None:
    return function(*values)
  specs = [
    jax.tree.map(lambda x, name=name: _activation_spec(x, name, mesh), value)
    for name, value in args
  ]
  return jax.shard_map(
    function,
    in_specs=tuple(specs),
    out_specs=jax.tree.leaves(specs[0])[0],
    # Kernels do not declare along which axes their results are copies.
    check_vma=False,
  )(*values)


def create(
  make: Callable[..., PyTree], *args: PyTree, mesh: jax.sharding.Mesh
) -> PyTree:
  """Makes a training state of which every device holds only its part.

  Args:
    make: Pure function that returns the training state.
    *args: Arguments of `make`, which lie on the devices already.
    mesh: The devices.
  """
  # Where everything lies is known from shapes, before anything is allocated.
  where = shardings(jax.eval_shape(make, *args), mesh)
  with jax.set_mesh(mesh):
    return jax.jit(make, out_shardings=where)(*args)


def bytes_per_device(state: PyTree, mesh: Mesh) -> int:
  """Counts the bytes that one device holds of a state, from shapes alone."""
  leaves = zip(
    jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh)), strict=True
  )
  return sum(
    math.prod(where.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x, where in leaves
  )
