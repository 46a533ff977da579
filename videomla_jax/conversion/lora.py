"""LoRAs merged into a network while it is converted.

  W <- W + scale (alpha / r) B A

Updates are products of small matrices, so a network still passes through memory
tensor by tensor. Everything but the numbers is checked before the first tensor
is written: names, pairs, shapes.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import math
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from videomla_jax.conversion import ladder
from videomla_jax.conversion import lora_files
from videomla_jax.conversion import lora_scaling
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import lora as lora_names
from videomla_jax.models import wan_config
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import printable
from videomla_jax.storage import tensor_files

type Tensors = Mapping[str, lazy_tensor.LazyTensor]


class Update(NamedTuple):
  """What one LoRA adds to one tensor: `factor` times a product, or a tensor.

  Attributes:
    factor: Number that multiplies it.
    up: B, or the whole difference.
    down: A; None if `up` is the whole difference.
  """

  factor: float
  up: lazy_tensor.LazyTensor
  down: lazy_tensor.LazyTensor | None = None

  def value(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the numbers in float32, in the shape of the tensor."""
    up = np.asarray(self.up.read(), np.float32)
    if self.down is None:
      return self.factor * up.reshape(shape)
    down = np.asarray(self.down.read(), np.float32)
    # Convolutions have their window in A; the product is the same.
    product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return self.factor * product.reshape(shape)


class Merged(NamedTuple):
  """A network with LoRAs merged into it.

  Attributes:
    tensors: Tensors under original names, changed ones and others.
    notes: What was merged, as JSON values for the folder's config.
  """

  tensors: Tensors
  notes: list[dict[str, Any]]


@contextlib.contextmanager
def merged(
  network: detect.Network,
  tensors: Tensors,
  loras: Sequence[lora_files.Lora],
  *,
  dtype: str,
) -> Iterator[Merged]:
  """Opens a network with LoRAs merged into it.

  Args:
    network: What the tensors are.
    tensors: Tensors under original names, see `release.open_network`.
    loras: What to merge, in this order.
    dtype: Type of changed tensors: "given" is that of the file, "source" is
      what `release.write_model` makes of it, and all others are float32, which
      is rounded where it is stored.

  Yields:
    The changed network, whose tensors are computed when they are read.

  Raises:
    ValueError: If a LoRA is none, fits the network nowhere or not in all its
      keys, has other shapes, or changes attention that is not there.
  """
  updates: dict[str, list[Update]] = {}
  notes = []
  with contextlib.ExitStack() as stack:
    for lora in loras:
      own = stack.enter_context(_opened(lora.file))
      found, left_out = _updates(network, lora, own)
      for name, update in found.items():
        updates.setdefault(name, []).extend(update)
      notes.append(_note(lora, len(found), left_out))
    changed = {
      name: _changed(name, tensors[name], some, dtype=dtype, loras=loras)
      for name, some in updates.items()
    }
    yield Merged({**tensors, **changed}, notes)


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Tensors]:
  """Opens a LoRA, whose faults are not those of the source."""
  with contextlib.ExitStack() as stack:
    try:
      tensors = stack.enter_context(tensor_files.open_tensors(file))
    except ValueError as error:
      text = str(error).removeprefix(f"source={str(file)!r} ")
      raise ValueError(f"lora={str(file)!r} {text}") from error
    yield tensors


def _note(
  lora: lora_files.Lora, count: int, left_out: list[str]
) -> dict[str, Any]:
  with lora.file.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return dict(
    file=str(lora.file),
    sha256=digest,
    scale=lora.scale,
    tensors=count,
    left_out=left_out,
  )


def _updates(
  network: detect.Network, lora: lora_files.Lora, own: Tensors
) -> tuple[dict[str, list[Update]], list[str]]:
  """Returns the updates of one LoRA by tensor, and the keys left out."""
  file = str(lora.file)
  table = _dense(network).table
  matched = lora_names.match(own, table, file=file)
  if not matched.adapters:
    raise ValueError(
      f"lora={file!r} has no key that fits the network (it begins with "
      f"{printable.names(sorted(own), most=2)}); give a LoRA of this network."
    )
  if matched.unmatched and lora.strict:
    raise ValueError(
      f"lora={file!r} has {len(matched.unmatched)} of {len(own)} keys that fit "
      f"nothing in the network ({printable.names(matched.unmatched)}); give "
      "--nolora_strict to leave them out."
    )
  _check_attention(network, matched, file)
  scaling = lora_scaling.read(lora.file)
  updates: dict[str, list[Update]] = {}
  for adapter in matched.adapters.values():
    for name, update in _adapter_updates(adapter, own, scaling, lora):
      tensor = table.tensors.get(name)
      if tensor is None:
        raise ValueError(
          f"lora={file!r} changes {name}, which the network does not have; "
          "give a LoRA of this network."
        )
      _check_update(name, tensor.shape, update, file)
      updates.setdefault(name, []).append(update)
  return updates, matched.unmatched


def _dense(network: detect.Network) -> detect.Network:
  """Returns the network that LoRAs are trained on."""
  config = network.config
  if not isinstance(config, wan_config.WanConfig):
    return network
  sizes = dataclasses.replace(
    config.attention, kind="dense", rope_ladder="wan", down_bias=False
  )
  return detect.network_of(dataclasses.replace(config, attention=sizes))


def _check_attention(
  network: detect.Network, matched: lora_names.Matched, file: str
) -> None:
  """Refuses changes of dense attention in a network with latent attention."""
  layers = [
    name
    for name in matched.adapters
    if ladder.is_latent(network)
    and f"{name}.weight" not in network.table.tensors
    and name not in network.table.tensors
  ]
  if layers:
    raise ValueError(
      f"lora={file!r} changes {len(layers)} layers of dense self-attention "
      f"({printable.names(layers)}), which a latent network has in another "
      "form; merge it into the dense network and convert that with --to=latent."
    )


def _adapter_updates(
  adapter: lora_names.Adapter,
  own: Tensors,
  scaling: lora_scaling.Scaling,
  lora: lora_files.Lora,
) -> Iterator[tuple[str, Update]]:
  """Yields what changes in one layer, by the names of its tensors."""
  tensors = {kind: own[key] for kind, key in adapter.keys.items()}
  layer = adapter.layer
  halves = {"up", "down"} & tensors.keys()
  rest = {"alpha", "up_bias"} & tensors.keys() and "diff" not in tensors
  if len(halves) == 1 or (rest and not halves):
    raise ValueError(
      f"lora={str(lora.file)!r} has only a part of the update of {layer} "
      f"({printable.names(adapter.keys.values())}); download it again."
    )
  if halves:
    rank = max((tensors["down"].shape or (0,))[0], 1)
    alpha = _number(tensors.get("alpha"))
    factor = lora.scale * scaling.of(adapter.module, rank, alpha)
    yield (
      f"{layer}.weight",
      Update(factor, tensors["up"], tensors["down"]),
    )
    if "up_bias" in tensors:
      yield f"{layer}.bias", Update(factor, tensors["up_bias"])
  if "diff" in tensors:
    # Tables of modulation are tensors without a layer around them.
    bare = layer.endswith("modulation")
    yield (
      layer if bare else f"{layer}.weight",
      Update(lora.scale, tensors["diff"]),
    )
  if "diff_bias" in tensors:
    yield f"{layer}.bias", Update(lora.scale, tensors["diff_bias"])


def _number(tensor: lazy_tensor.LazyTensor | None) -> float | None:
  if tensor is None:
    return None
  values = np.ravel(tensor.read())
  # What is not one number is refused with all that is not finite.
  return float(values[0]) if values.size == 1 else math.nan


def _check_update(
  name: str, shape: tuple[int, ...], update: Update, file: str
) -> None:
  """Refuses an update of another shape, or one that is not finite."""
  up, down = update.up, update.down
  if down is None:
    fits = math.prod(up.shape) == math.prod(shape)
    fits = fits and [n for n in up.shape if n > 1] == [
      n for n in shape if n > 1
    ]
  else:
    fits = (
      min(len(up.shape), len(down.shape), len(shape)) > 1
      and up.shape[0] == shape[0]
      and up.shape[1] == down.shape[0]
      and math.prod(up.shape[2:]) == 1
      and math.prod(down.shape[1:]) == math.prod(shape[1:])
    )
  if not fits:
    found = up.shape if down is None else (up.shape, down.shape)
    raise ValueError(
      f"lora={file!r} has an update of {name} of shape {found}, but the tensor "
      f"has {shape}; give a LoRA of a network of this size."
    )
  values = [np.asarray(x.read()) for x in (up, down) if x is not None]
  if not math.isfinite(update.factor) or not all(
    np.isfinite(np.asarray(x, np.float32)).all() for x in values
  ):
    raise ValueError(
      f"lora={file!r} has numbers that are not finite in its update of {name}; "
      "download it again."
    )


def _changed(
  name: str,
  tensor: lazy_tensor.LazyTensor,
  updates: list[Update],
  *,
  dtype: str,
  loras: Sequence[lora_files.Lora],
) -> lazy_tensor.LazyTensor:
  """Returns a tensor that is changed when it is read."""
  half = dtype == "source" and tensor.dtype == np.dtype(jnp.bfloat16)
  stored = tensor.dtype if dtype == "given" or half else np.dtype(np.float32)

  def read() -> np.ndarray:
    given = np.asarray(tensor.read(), np.promote_types(stored, np.float32))
    # What overflows is reported below.
    with np.errstate(over="ignore", invalid="ignore"):
      added = sum(update.value(tensor.shape) for update in updates)
      # Zeros change nothing, not even the sign of a zero.
      total = np.where(added == 0, given, given + added).astype(stored)
    if not np.isfinite(np.asarray(total, np.float32)).all():
      files = ", ".join(repr(str(lora.file)) for lora in loras)
      raise ValueError(
        f"lora={files} makes {name} infinite or NaN; use a smaller "
        "--lora_scale, and weights that are finite."
      )
    return total

  return lazy_tensor.LazyTensor(tensor.shape, stored, read)
