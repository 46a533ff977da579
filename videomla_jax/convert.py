"""Converts released checkpoints to model folders, and back.

  python -m videomla_jax.convert --source=Wan2.1-T2V-1.3B \
    --output=models/wan_1p3b
  python -m videomla_jax.convert --source=models/wan_1p3b --to=latent \
    --output=models/videomla_1p3b
  python -m videomla_jax.convert --source=models/wan_1p3b/dit \
    --export=diffusers --output=exported
  python -m videomla_jax.convert --source=runs/pretraining/model --to=latent \
    --output=runs/converted

A release folder (Wan's or diffusers') becomes a folder with dit/, vae/, umt5/
and tokenizer/; one file becomes one model folder; a trained small model keeps
its words. Tensors pass through memory
one by one. Pickles are read without running anything in them.
"""

import os
import pathlib
import shutil
from typing import Any

from absl import flags
from absl import logging

from videomla_jax.conversion import release
from videomla_jax.conversion import to_latent
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import wan_config
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics
from videomla_jax.small_world import model as small_model
from videomla_jax.storage import model_folder

# Folders of a release's parts: in diffusers' layout and in ours. The layouts of
# the releases themselves stand in `released.FAMILIES`.
PARTS = {
  "dit": ("transformer", "dit"),
  "vae": ("vae",),
  "umt5": ("text_encoder", "umt5"),
  "tokenizer": (f"tokenizer/{tokenizer_lib.FILE}",),
}


def define_flags() -> None:
  """Flags of the command line."""
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string("source", None, "Release folder, checkpoint file or model folder.")
  string("output", None, "Folder to write.")
  flags.DEFINE_enum("component", "auto", ["auto", *PARTS], "Only this part.")
  string("select", "", "Network in a training checkpoint (generator_ema).")
  integer("num_heads", None, "Of a DiT whose heads have not 128 channels.")
  flags.DEFINE_enum(
    "dtype", "source", ["source", "float32", "bfloat16"], "As stored."
  )
  flags.DEFINE_enum("to", "same", ["same", "latent"], "Kind of attention.")
  flags.DEFINE_enum(
    "init", "spectral", ["spectral", "random"], "Latent attention's start."
  )
  integer("d_c", 0, "Content latent; 0 is an eighth of the width.")
  integer("d_rope", 0, "Positional key; 0 is a quarter of a head.")
  integer("d_q", 0, "Query latent; 0 is half of the width.")
  integer("seed", 0, "Of --init=random.")
  string("activations", "", "Inputs of real latents, for --init=spectral.")
  flags.DEFINE_enum(
    "export", "", ["", "original", "diffusers", "transformers"], "Names."
  )


def find_parts(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Parts of a release by name; empty if the source is one checkpoint."""
  if not source.is_dir() or model_folder.is_model_folder(source):
    return {}
  found = {}
  for part, folders in PARTS.items():
    files = [family.files.get(part) for family in released.FAMILIES.values()]
    for pattern in (*filter(None, files), *folders):
      paths = sorted(source.glob(pattern))
      if paths:
        # Several files of one network: its folder has the index.
        found[part] = source if len(paths) > 1 else paths[0]
        break
  # A network at the top and nothing else is one checkpoint.
  top = found.get("dit") in (source, *source.glob("*.safetensors*"))
  return {} if top and len(found) == 1 else found


def convert(options: Any) -> None:
  """Runs one conversion.

  Args:
    options: Values of the flags, see `define_flags`.

  Raises:
    ValueError: If source, output or the change cannot work.
  """
  for name in ("source", "output"):
    if not getattr(options, name):
      raise ValueError(f"--{name} is missing; see the top of convert.py.")
  source, output = pathlib.Path(options.source), pathlib.Path(options.output)
  if source.absolute() == output.absolute():
    raise ValueError(
      f"output={str(output)!r} is the source; choose another folder."
    )
  parts = find_parts(source)
  if options.component != "auto" and parts:
    if options.component not in parts:
      raise ValueError(
        f"source={str(source)!r} holds no {options.component!r}; it holds "
        f"{sorted(parts)}."
      )
    parts = {options.component: parts[options.component]}
  try:
    if not parts:
      _convert_one(options, source, output)
    for part, path in parts.items():
      _convert_part(options, part, path, output / part)
  except OSError as error:
    raise ValueError(
      f"output={str(output)!r} cannot be written ({error}); free space or "
      "choose another folder."
    ) from error


def _convert_part(options, part: str, path: pathlib.Path, output) -> None:
  """One part of a release."""
  if part == "tokenizer":
    tokenizer_lib.Tokenizer.load(path)  # raises for what is none
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f".{tokenizer_lib.FILE}.{os.getpid()}.tmp"
    shutil.copyfile(path, temporary)
    temporary.replace(output / tokenizer_lib.FILE)
    print(f"{path} -> {output}", flush=True)
    return
  _convert_one(options, path, output, part=part)


def _convert_one(options, path, output, *, part: str = "dit") -> None:
  """One network: read, perhaps change, write or export."""
  if small_model.is_model(path):
    return _convert_small(options, path, output)
  with release.open_network(
    path, select=options.select, num_heads=options.num_heads
  ) as (network, tensors):
    total = len(tensors)
    print(f"{path}: {network.architecture}, {total} tensors", flush=True)
    with metrics.Progress(total, "convert", unit="tensor") as progress:
      if options.export:
        release.export(
          output,
          network,
          tensors,
          format_name=options.export,
          advance=lambda: progress.update(1),
        )
      else:
        release.write_model(
          output,
          network,
          tensors,
          dtype=options.dtype,
          source=dict(files=str(path), select=options.select),
          latent=_latent(options, network.config) if part == "dit" else None,
          advance=lambda: progress.update(1),
        )
  print(f"{path} -> {output}", flush=True)


def _convert_small(options, path, output) -> None:
  """A trained small model; all it can become is latent."""
  model = small_model.load(path)
  latent = _latent(options, model.dit.config)
  if latent is None or options.export:
    raise ValueError(
      f"source={str(path)!r} is a small model, which can only be converted "
      "with --to=latent."
    )
  to_latent.convert_small(output, model, latent, source=str(path))
  print(f"{path} -> {output}", flush=True)


def _latent(options: Any, config: Any) -> to_latent.Recipe | None:
  """Sizes of latent attention, in the paper's proportions by default."""
  if options.to != "latent":
    return None
  width = config.width if isinstance(config, wan_config.WanConfig) else 0
  head_dim = config.attention.head_dim if width else 0
  return to_latent.Recipe(
    method=options.init,
    d_c=options.d_c or width // 8,
    d_rope=options.d_rope or head_dim // 4,
    d_q=options.d_q or width // 2,
    seed=options.seed,
    activations=options.activations,
  )


def main() -> None:
  """Runs the command line."""
  # Orbax warns that pieces of ours are no database of its own.
  logging.set_verbosity(logging.ERROR)
  convert(flags.FLAGS)


if __name__ == "__main__":
  define_flags()
  cli.run_flags(main)
