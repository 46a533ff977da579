"""How arrays lie on a mesh of devices: two tables and what reads them.

Four axes: `data` copies the model and splits the batch; `fsdp` splits the batch
and, at rest, every large parameter and its moments; `sequence` splits the
tokens of a frame; `tensor` splits heads and feed-forward. An axis of size 1
costs nothing, so all programs are written for all four.

Parameters are matched by name, activations are named where they arise. The
first row that matches wins. The compiler derives all communication from that.
"""

from collections.abc import Callable
import math
import re
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree
import numpy as np

from videomla_jax.storage import tree_names

# The devices, or only their number.
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")

# Regular expression of a parameter's name -> axes of its LAST dimensions;
# stacked layers come before them and stay whole. Moments and averages end in
# the name of their parameter.
PARAMETERS: tuple[tuple[str, P], ...] = (
  # Read by all heads, or too small to split.
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
  devices: Any = None,
) -> jax.sharding.Mesh:
  """Arranges the devices of all processes.

  Args:
    data: Devices along this axis; one axis may be -1, the rest of the devices.
    fsdp: See the module's docstring, like the others.
    sequence: As above.
    tensor: As above.
    devices: Which ones; all by default.

  Raises:
    ValueError: If the numbers do not multiply to the devices.
  """
  devices = jax.devices() if devices is None else devices
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
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def _axes(entry: Any) -> tuple[str, ...]:
  """Mesh axes of one dimension."""
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def _extent(entry: Any, mesh: Any) -> int:
  """Parts that one dimension is split into."""
  return math.prod(mesh.shape[name] for name in _axes(entry))


def spec_of(name: str, rank: int) -> P:
  """Axes of a parameter, moment or average, by the table.

  Videos that stage 3 goes on with are split by example.
  """
  if re.search(r"\bstream/", name):
    if name.endswith("negative"):
      return P()
    row = ACTIVATIONS["cache" if "cache/entries" in name else "batch"]
    return P(*row, *[None] * (rank - len(row)))
  spec = next(spec for rule, spec in PARAMETERS if re.search(rule, name))
  if len(spec) > rank:  # A factored or scalar moment of a parameter.
    return P()
  return P(*[None] * (rank - len(spec)), *spec)


def shardings(state: PyTree, mesh: Mesh) -> PyTree:
  """Where each leaf of a training state lives.

  Args:
    state: Arrays, or abstract ones.
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


def check_batch(size: int, mesh: Mesh, *, parts: int = 1) -> None:
  """Refuses a batch that cannot be dealt out.

  Args:
    size: Examples per update over all processes.
    mesh: The devices.
    parts: Pieces that a device works through one by one.
  """
  share = parts * _extent(BATCH, mesh)
  if size < 1 or size % share:
    raise ValueError(
      f"data.batch_size={size} must be a multiple of {share} = "
      f"optim.accumulate {parts} x data {mesh.shape['data']} x fsdp "
      f"{mesh.shape['fsdp']}; use {max(1, round(size / share)) * share}."
    )


def check_tokens(tokens: int, heads: int, mesh: Mesh) -> None:
  """Refuses a mesh that cannot split a frame's tokens or the heads."""
  for axis, size, what in (
    ("sequence", tokens, "tokens of a frame"),
    ("tensor", heads, "heads"),
  ):
    if size % mesh.shape[axis]:
      raise ValueError(
        f"mesh.{axis}={mesh.shape[axis]} must divide the {size} {what}; choose "
        "another size."
      )


def put_batch(batch: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """Makes global arrays of this process's part of a batch, batch axis first.

  Arrays named `negative` are the same everywhere.
  """
  split = jax.sharding.NamedSharding(mesh, P(BATCH))
  whole = jax.sharding.NamedSharding(mesh, P())

  def put(path: Any, x: np.ndarray) -> jax.Array:
    shared = "negative" in jax.tree_util.keystr(path)
    return jax.make_array_from_process_local_data(whole if shared else split, x)

  return jax.tree_util.tree_map_with_path(put, batch)


def _mesh_in_use() -> Any:
  """The mesh that a program is traced for, None for a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  known = not mesh.empty and set(mesh.axis_names) == set(AXES)
  return mesh if known and not mesh.manual_axes and mesh.size > 1 else None


def devices_along(axis: str) -> int:
  """Devices along an axis of the mesh that a program is traced for."""
  mesh = _mesh_in_use()
  return 1 if mesh is None else mesh.shape[axis]


def _activation_spec(x: Any, name: str, mesh: Any) -> P:
  """A row of the table; a dimension that cannot be split stays whole."""
  spec = [
    entry if size % _extent(entry, mesh) == 0 else None
    for entry, size in zip(ACTIVATIONS[name], x.shape, strict=False)
  ]
  return P(*spec)


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Asks for the layout of a named activation; nothing without a mesh."""
  mesh = _mesh_in_use()
  if mesh is None:
    return x
  spec = _activation_spec(x, name, mesh)
  return jax.lax.with_sharding_constraint(x, spec)


def per_device(
  function: Callable[..., PyTree], *args: tuple[str, PyTree]
) -> PyTree:
  """Runs a function on the part that each device has; no compiler splits it.

  For kernels, and for loops that must not communicate.

  Args:
    function: Of arrays; all leaves of its result lie like the first leaf of
      its first argument.
    *args: Name of an activation, for all leaves, and the argument.
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
    check_vma=False,
  )(*values)


def create(
  make: Callable[..., PyTree], *args: Any, mesh: jax.sharding.Mesh
) -> PyTree:
  """Runs `make` so that every device holds its own part of the result only.

  Args:
    make: Pure function of `args` that returns a training state.
    *args: Its arguments, already placed.
    mesh: The devices.
  """
  where = shardings(jax.eval_shape(make, *args), mesh)
  with jax.set_mesh(mesh):
    return jax.jit(make, out_shardings=where)(*args)


def bytes_per_device(state: PyTree, mesh: Mesh) -> int:
  """Bytes that one device holds of a state, from shapes alone."""
  leaves = zip(
    jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh)), strict=True
  )
  return sum(
    math.prod(where.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x, where in leaves
  )
