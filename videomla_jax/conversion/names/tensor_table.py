"""From the tensors of PyTorch checkpoints to our parameters and back.

An architecture lists its tensors once, under the names of the original code,
with PyTorch's shape, the path in our tree and the change of layout. Other sets
of names (diffusers, transformers) are functions of the original ones. All
reading and writing of checkpoints follows from these tables. They are plain
NumPy: no tensor touches a device before all names and shapes are known to be
right.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from videomla_jax.conversion.names import layout as layout_lib
from videomla_jax.conversion.names import wrappers
from videomla_jax.storage import printable
from videomla_jax.storage import tree_names

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

ORIGINAL = "original"

_SHOWN = 3  # names of each kind of difference that a message lists


class Tensor(NamedTuple):
  """Describes one tensor of a checkpoint.

  Attributes:
    shape: Shape that the tensor has in PyTorch.
    path: Name of our parameter, with slashes.
    layout: How the two layouts differ.
    block: Index into the leading axis of a stacked parameter, else None.
  """

  shape: Shape
  path: str
  layout: layout_lib.Layout = layout_lib.SAME
  block: int | None = None

  @property
  def our_shape(self) -> Shape:
    """Shape in our layout, without the axis of stacked blocks."""
    # A broadcast scalar has the shape but needs no memory.
    return self.layout.to_ours(np.broadcast_to(np.int8(0), self.shape)).shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Lists all tensors of one network.

  Attributes:
    tensors: All tensors by original name.
    formats: Other sets of names, each a function of the original name.
    copies: Names that repeat another tensor and may be left out.
    unused: Names of a network that lies in the same files and is not read.
  """

  tensors: Mapping[str, Tensor]
  formats: Mapping[str, Callable[[str], str]] = dataclasses.field(
    default_factory=dict
  )
  copies: frozenset[str] = frozenset()
  unused: frozenset[str] = frozenset()

  def names(self, format_name: str) -> dict[str, str]:
    """Returns a map from the names of one format to the original ones.

    Args:
      format_name: "original", or a key of `formats`.

    Raises:
      ValueError: If this network has no such format.
    """
    if format_name == ORIGINAL:
      return {name: name for name in self.tensors}
    if format_name not in self.formats:
      raise ValueError(
        f"format={format_name!r} is unknown here; use one of "
        f"{[ORIGINAL, *self.formats]}."
      )
    rename = self.formats[format_name]
    return {rename(name): name for name in self.tensors}

  def tree(self) -> wrappers.Tree:
    """Returns the modules of all names, of whatever format."""
    formats = (ORIGINAL, *self.formats)
    names = {name for f in formats for name in self.names(f)}
    return wrappers.tree_of(names | self.copies | self.unused)

  def originals(self, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Finds which original tensor each tensor of a checkpoint is.

    Args:
      shapes: PyTorch shapes under names of any format, with or without the
        prefixes of training code.

    Returns:
      A map from the checkpoint's names to original names, one to one and
      complete.

    Raises:
      ValueError: If names are unmatched, missing, given twice or mis-shaped;
        the message counts them and begins with the first of each.
    """
    bare = wrappers.unwrapped(shapes, self.tree())
    left_out = self.copies | self.unused
    bare = {name: b for name, b in bare.items() if b not in left_out}
    # The format that knows most of the names is meant, so that the message
    # lists only what is wrong with the others.
    known = max(
      map(self.names, (ORIGINAL, *self.formats)),
      key=lambda names: len(names.keys() & set(bare.values())),
    )
    found = {n: known[b] for n, b in bare.items() if b in known}
    self._check({name: shapes[name] for name in bare}, found)
    return found

  def _check(
    self, shapes: Mapping[str, Shape], found: Mapping[str, str]
  ) -> None:
    """Raises one `ValueError` that tells of every kind of difference."""
    taken: dict[str, list[str]] = {}
    for name, original in found.items():
      taken.setdefault(original, []).append(name)
    differences = {
      "unmatched": sorted(shapes.keys() - found.keys()),
      "missing": sorted(self.tensors.keys() - taken.keys()),
      "given twice": [" = ".join(t) for t in taken.values() if len(t) > 1],
      "mis-shaped": [
        f"{name} {tuple(shapes[name])} not {self.tensors[original].shape}"
        for name, original in sorted(found.items())
        if tuple(shapes[name]) != self.tensors[original].shape
      ],
    }
    listed = [
      f"{len(names)} {kind}: {printable.names(names, most=_SHOWN)}"
      for kind, names in differences.items()
      if names
    ]
    if listed:
      raise ValueError(
        f"tensors do not fit the network ({'; '.join(listed)}); give one "
        "complete network and the size it has."
      )

  def our_shapes(self) -> dict[str, Shape]:
    """Returns the shapes of our parameters by path, blocks stacked."""
    blocks: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for tensor in self.tensors.values():
      shapes[tensor.path] = tensor.our_shape
      if tensor.block is not None:
        blocks[tensor.path] = max(blocks.get(tensor.path, 0), tensor.block + 1)
    return {
      path: (blocks[path], *shape) if path in blocks else shape
      for path, shape in shapes.items()
    }

  def read(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
    """Brings a whole checkpoint into our layout.

    Args:
      tensors: Arrays in PyTorch's layout under the names of any format.

    Returns:
      Float32 arrays by path with slashes, blocks stacked.

    Raises:
      ValueError: If names or shapes do not fit, see `originals`.
    """
    names = self.originals({n: np.shape(x) for n, x in tensors.items()})
    # Every element is written below, since `originals` finds all tensors.
    arrays = {p: np.empty(s, np.float32) for p, s in self.our_shapes().items()}
    for name, original in names.items():
      tensor = self.tensors[original]
      value = tensor.layout.to_ours(np.asarray(tensors[name]))
      index = ... if tensor.block is None else tensor.block
      arrays[tensor.path][index] = value
    return arrays

  def write(self, arrays: Arrays, *, format_name: str = ORIGINAL) -> Arrays:
    """Returns PyTorch tensors under the names of one format.

    Args:
      arrays: Our parameters by path, as `read` returns them.
      format_name: "original", or a key of `formats`.

    Raises:
      ValueError: If parameters do not fit, or the format is unknown.
    """
    tree_names.check_same(
      self.our_shapes(),
      {path: np.shape(x) for path, x in arrays.items()},
      what="parameters to export",
    )
    result = {}
    for name, original in self.names(format_name).items():
      tensor = self.tensors[original]
      index = ... if tensor.block is None else tensor.block
      value = np.asarray(arrays[tensor.path])[index]
      result[name] = tensor.layout.to_torch(value, tensor.shape)
    return result


def linear(
  name: str, path: str, inputs: int, outputs: int, *, block: int | None = None
) -> dict[str, Tensor]:
  """Returns weight and bias of a linear layer.

  Args:
    name: Original name of the layer.
    path: Our name of the layer, with slashes.
    inputs: Channels in.
    outputs: Channels out.
    block: Number of the block whose layer it is, if blocks are stacked.
  """
  return {
    f"{name}.weight": Tensor(
      (outputs, inputs), f"{path}/kernel", layout_lib.KERNEL, block
    ),
    f"{name}.bias": Tensor((outputs,), f"{path}/bias", layout_lib.SAME, block),
  }


def gain(
  name: str, path: str, features: int, *, block: int | None = None
) -> dict[str, Tensor]:
  """Returns the weight of a norm, which we call its gain.

  Args:
    name: Original name of the norm.
    path: Our name of the norm, with slashes.
    features: Channels.
    block: Number of the block whose norm it is, if blocks are stacked.
  """
  return {
    f"{name}.weight": Tensor(
      (features,), f"{path}/gain", layout_lib.SAME, block
    )
  }
