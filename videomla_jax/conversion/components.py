"""Networks and tokenizer of a release: where they lie, and which to take.

A release is three networks and a tokenizer. One that lacks a component is only
converted if the components are named, so that nobody finds out at the first
video that a part is missing. Releases whose files tell that they are of another
family are refused by name before a network is opened.
"""

from collections.abc import Mapping
import pathlib
import shutil

from videomla_jax.conversion.names import detect
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.storage import atomic
from videomla_jax.storage import model_folder

# Where the components of a release lie, in diffusers' layout and in ours. The
# layouts of the releases themselves stand in `released.FAMILIES`.
COMPONENTS = {
  "dit": ("transformer", "dit"),
  "vae": ("vae",),
  "umt5": ("text_encoder", "umt5"),
  "tokenizer": (f"tokenizer/{tokenizer_lib.FILE}",),
  # It is published by itself, and may be put beside a release.
  "tiny_decoder": ("taew2_1.safetensors", "taew2_1.pth", "tiny_decoder"),
}

# Components that no release has.
EXTRA = frozenset({"tiny_decoder"})

# Files that only releases of other families have, the components that are then
# of no use here, and what such a release is.
_FOREIGN = (
  (
    ("high_noise_model", "low_noise_model", "transformer_2"),
    ("dit",),
    "a release of two networks that make a video in turn (Wan2.2-A14B)",
  ),
  (("Wan2.2_VAE*",), ("vae",), "Wan2.2-TI2V-5B with a VAE of its own"),
)


def named(text: str) -> frozenset[str]:
  """Returns the components that the user names.

  Args:
    text: Names with commas; empty or "auto" names none.

  Raises:
    ValueError: If there is no such component.
  """
  names = frozenset(n.strip() for n in text.split(",") if n.strip())
  if names <= {"auto"}:
    return frozenset()
  if unknown := sorted(names - COMPONENTS.keys()):
    raise ValueError(
      f"parts={text!r} has {unknown[0]!r}, which is none; use some of "
      f"{','.join(COMPONENTS)}."
    )
  return names


def find(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns where the components of a release lie, by name.

  Args:
    source: Folder of a release, or anything else that holds networks.

  Returns:
    Files or folders; empty if the source is one checkpoint and no release.
  """
  if not source.is_dir() or model_folder.is_model_folder(source):
    return {}
  found = {}
  for component, folders in COMPONENTS.items():
    files = [f.files.get(component) for f in released.FAMILIES.values()]
    for pattern in (*filter(None, files), *folders):
      paths = sorted(source.glob(pattern))
      if paths:
        # Several files are shards of one network; their index lies beside them.
        found[component] = source if len(paths) > 1 else paths[0]
        break
  # A network at the top and nothing else is one checkpoint.
  top = found.get("dit") in (source, *source.glob("*.safetensors*"))
  return {} if top and len(found) == 1 else found


def choose(
  source: pathlib.Path, parts: frozenset[str]
) -> dict[str, pathlib.Path]:
  """Returns the components of a release that are to be converted.

  Args:
    source: Folder of a release, or anything else that holds networks.
    parts: Components that the user names; empty for all.

  Returns:
    Files or folders by component; empty if the source is no release.

  Raises:
    ValueError: If one is missing, or the release is of another family.
  """
  found = find(source)
  _check_family(source, found, parts)
  if not found:
    return {}
  missing = sorted((parts or COMPONENTS.keys() - EXTRA) - found.keys())
  if missing and parts:
    raise ValueError(
      f"source={str(source)!r} holds no {missing[0]!r}; it holds "
      f"{','.join(found)}."
    )
  if missing:
    raise ValueError(
      f"source={str(source)!r} lacks {', '.join(map(_described, missing))}; "
      "download what is missing, or say that only the rest is wanted: "
      f"--parts={','.join(found)}."
    )
  return {c: path for c, path in found.items() if c in (parts or found)}


def _described(component: str) -> str:
  """Returns a component with the file that usually holds it."""
  files = next(iter(released.FAMILIES.values())).files
  return f"{component} ({files[component]})"


def _check_family(
  source: pathlib.Path,
  found: Mapping[str, pathlib.Path],
  parts: frozenset[str],
) -> None:
  """Refuses what only other families have, unless other parts are named."""
  if not source.is_dir() or model_folder.is_model_folder(source):
    return
  for patterns, useless, title in _FOREIGN:
    present = [x.name for p in patterns for x in sorted(source.glob(p))]
    if "vae" in useless and "vae" in found:
      continue  # a folder of several releases, of which one is known
    if present and (not parts or parts & {*useless}):
      rest = ",".join(c for c in found if c not in useless)
      way_out = f", or take the rest: --parts={rest}" if rest else ""
      raise ValueError(
        f"source={str(source)!r} holds {present[0]!r}: it is {title}, which is "
        f"not supported; give a text-to-video release of Wan2.1{way_out}."
      )


def check_part(
  network: detect.Network, parts: frozenset[str], source: pathlib.Path
) -> None:
  """Refuses one network that is not the component which the user names.

  Args:
    network: The only network of the source.
    parts: Components that the user names; empty for all.
    source: Where it lies.

  Raises:
    ValueError: If another component is asked for.
  """
  component = released.ARCHITECTURES[network.architecture].component
  if parts and parts != {component}:
    raise ValueError(
      f"source={str(source)!r} holds {component!r} alone; leave --parts out or "
      f"use --parts={component}."
    )


def open_tokenizer(
  found: Mapping[str, pathlib.Path],
) -> tokenizer_lib.Tokenizer | None:
  """Returns the tokenizer of a release, if it is to be converted.

  Args:
    found: Files and folders by component.

  Raises:
    ValueError: If the file is none.
  """
  if "tokenizer" not in found:
    return None
  return tokenizer_lib.Tokenizer.load(found["tokenizer"])


def copy_tokenizer(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies the file of a tokenizer into a folder, and says so.

  Args:
    path: The file.
    folder: The folder, which is made.
  """
  folder.mkdir(parents=True, exist_ok=True)
  # A killed copy must not pass for a vocabulary.
  with atomic.replacing(folder / tokenizer_lib.FILE) as temporary:
    shutil.copyfile(path, temporary)
  print(f"{path} -> {folder}", flush=True)


def check_fit(
  networks: Mapping[str, detect.Network],
  tokenizer: tokenizer_lib.Tokenizer | None,
  source: pathlib.Path,
) -> None:
  """Refuses components that cannot work together.

  Args:
    networks: Networks by component; some may be missing.
    tokenizer: The tokenizer, if there is one.
    source: Where they lie.

  Raises:
    ValueError: If sizes that two of them share differ.
  """
  configs = {c: network.config for c, network in networks.items()}
  dit, vae, text = (configs.get(c) for c in ("dit", "vae", "umt5"))
  differences = []
  if isinstance(dit, wan_config.WanConfig):
    if isinstance(vae, vae_coders.VaeConfig) and dit.channels != vae.channels:
      differences.append(
        f"its dit is made for latents of {dit.channels} channels and its vae "
        f"for {vae.channels}"
      )
    tiny = configs.get("tiny_decoder")
    if isinstance(tiny, tiny_decoder.TinyDecoderConfig) and (
      dit.channels != tiny.channels
    ):
      differences.append(
        f"its dit is made for latents of {dit.channels} channels and its "
        f"tiny_decoder for {tiny.channels}"
      )
    if isinstance(text, umt5.Umt5Config) and dit.text_dim != text.width:
      differences.append(
        f"its dit reads text of width {dit.text_dim} and its umt5 writes "
        f"{text.width}"
      )
  words = tokenizer.vocabulary if tokenizer is not None else 0
  if isinstance(text, umt5.Umt5Config) and words > text.vocabulary:
    differences.append(
      f"its tokenizer has {words} tokens and its umt5 {text.vocabulary}"
    )
  if differences:
    raise ValueError(
      f"source={str(source)!r} has components that do not fit each other: "
      f"{'; '.join(differences)}; take all from one release."
    )
