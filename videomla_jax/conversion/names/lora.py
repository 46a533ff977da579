"""Which tensor each key of a LoRA changes, in the usual sets of names.

  PEFT       base_model.model.blocks.0.self_attn.q.lora_A.default.weight
  ComfyUI    diffusion_model.blocks.0.self_attn.q.lora_down.weight, .alpha
  kohya      lora_unet_blocks_0_self_attn_q.lora_down.weight, .alpha
  diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight

A key is a prefix, a layer and a kind. The kind is a suffix of a short list. The
layer is any name that the network's own table knows, original or of another
format, with dots or with underscores in their place. The prefix is what stands
before it, whatever it is, as long as one file has one.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import re
from typing import NamedTuple

from videomla_jax.conversion.names import tensor_table
from videomla_jax.conversion.names import wrappers
from videomla_jax.storage import printable

# Kind -> end of a key. PEFT puts the name of the adapter before the last word.
_DOWN = r"[._]lora(?:_A|_down|\.down|_linear_layer\.down)"
_UP = r"[._]lora(?:_B|_up|\.up|_linear_layer\.up)"
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"
_KINDS = {
  "down": rf"{_DOWN}{_ADAPTER}(?:\.weight)?",
  "up_bias": rf"{_UP}{_ADAPTER}\.bias",
  "up": rf"{_UP}{_ADAPTER}(?:\.weight)?",
  "alpha": r"\.(?:lora_|network_)?alpha",
  "diff": r"\.(?:diff|w_norm)",
  "diff_bias": r"\.(?:diff_b|b_norm)",
}
_KEY = {kind: re.compile(rf"(.+?){suffix}") for kind, suffix in _KINDS.items()}
# What is no product of two matrices, by the name under which it is known.
_OTHERS = {
  "DoRA": r"\.(?:dora_scale|lora_magnitude_vector)\b",
  "LoHa": r"\.hada_[wt]\d",
  "LoKr": r"\.lokr_[wt]\d",
  "LoCon with a core": r"\.lora_mid\b",
  "OFT": r"\.(?:oft_|boft_)",
  "IA3": r"\.(?:ia3_l|on_input\b)",
}


@dataclasses.dataclass(kw_only=True)
class Adapter:
  """What a LoRA has for one layer: names of its tensors by kind.

  Attributes:
    layer: Original name of the layer.
    module: The layer's name in the file, without the kind.
    keys: Keys of the file by kind: "down", "up", "up_bias", "alpha", "diff",
      "diff_bias".
  """

  layer: str
  module: str
  keys: dict[str, str]


class Matched(NamedTuple):
  """A LoRA as a network understands it.

  Attributes:
    adapters: What changes, by original name of the layer.
    unmatched: Keys that fit no layer of the network, or are of no known kind.
  """

  adapters: dict[str, Adapter]
  unmatched: list[str]


def match(
  keys: Iterable[str], table: tensor_table.Table, *, file: str
) -> Matched:
  """Finds the layers that a LoRA changes.

  Args:
    keys: Names of all tensors of the LoRA.
    table: Tensors of the network.
    file: Name of the file, for messages.

  Raises:
    ValueError: If it is no LoRA but another kind of change, or holds several
      changes of one layer.
  """
  keys = [*keys]
  _check_kind(keys, file)
  layers = _layers(table)
  adapters: dict[str, Adapter] = {}
  unmatched: list[str] = []
  prefixes: dict[str, str] = {}
  for key in keys:
    kind, module = _split(key)
    found = _find(wrappers.without_private(module), layers) if kind else None
    if found is None:
      unmatched.append(key)
      continue
    prefix, layer = found
    prefixes.setdefault(prefix, key)
    adapter = adapters.setdefault(
      layer, Adapter(layer=layer, module=module, keys={})
    )
    if kind in adapter.keys:
      raise ValueError(
        f"lora={file!r} changes {layer} twice "
        f"({printable.names((adapter.keys[kind], key))}); give a file with one "
        "adapter."
      )
    adapter.keys[kind] = key
  if len(prefixes) > 1:
    raise ValueError(
      f"lora={file!r} holds adapters of several networks "
      f"({printable.names(prefixes.values())}); give a file with one."
    )
  return Matched(adapters, unmatched)


def _check_kind(keys: list[str], file: str) -> None:
  for name, pattern in _OTHERS.items():
    found = [key for key in keys if re.search(pattern, key)]
    if found:
      raise ValueError(
        f"lora={file!r} is a {name} ({printable.text(found[0])}), which is not "
        "read here; give a plain LoRA, or merge it where it was trained."
      )


def _split(key: str) -> tuple[str, str]:
  """Returns the kind of a key, empty if it has none, and its module."""
  # LightX2V's difference of a table of modulation is named for its block.
  if key.endswith(".diff_m"):
    return "diff", key.removesuffix("diff_m") + "modulation"
  for kind, pattern in _KEY.items():
    if found := pattern.fullmatch(key):
      # Old diffusers put their layers into a `processor`.
      return kind, found[1].replace(".processor.", ".")
  return "", key


def _layers(table: tensor_table.Table) -> dict[str, str]:
  """Returns original names of layers by every name that they may have."""
  layers: dict[str, str] = {}
  for format_name in (tensor_table.ORIGINAL, *table.formats):
    for name, original in table.names(format_name).items():
      layer = _layer(original)
      for alias in (_layer(name), _layer(name).replace(".", "_")):
        layers.setdefault(alias, layer)
  return layers


def _layer(name: str) -> str:
  """Returns the layer that a tensor belongs to."""
  return re.sub(r"\.(?:weight|bias)$", "", name)


def _find(module: str, layers: Mapping[str, str]) -> tuple[str, str] | None:
  """Returns the prefix of a module and its layer, None if there is none."""
  for start in _starts(module):
    prefix, rest = module[:start], module[start:]
    # A number in front is that of another network's block.
    if rest in layers and not re.search(r"\d", prefix):
      return prefix, layers[rest]
  return None


def _starts(module: str) -> Iterator[int]:
  """Yields where the name of a layer may begin, the longest name first."""
  yield 0
  for found in re.finditer(r"[._]", module):
    yield found.end()
