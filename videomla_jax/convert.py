"""Converts released checkpoints to model folders, and back.

  python -m videomla_jax.convert --source=Wan2.1-T2V-1.3B \
    --output=models/wan_1p3b
  python -m videomla_jax.convert --source=models/wan_1p3b --to=latent \
    --output=models/videomla_1p3b
  python -m videomla_jax.convert --source=models/wan_1p3b/dit \
    --export=diffusers --output=exported
  python -m videomla_jax.convert --source=stage3/model.pt --use_ema \
    --rope_ladder=fresh --output=models/stage3/dit
  python -m videomla_jax.convert --source=Wan2.1-T2V-1.3B \
    --lora=style.safetensors --output=models/wan_style

A release folder (Wan's or diffusers') becomes a folder with dit/, vae/, umt5/
and tokenizer/, of which --parts=dit,vae takes some; one file (taew2_1.pth, too)
becomes one model folder; a trained small model keeps its words. Everything is
opened and checked before anything is written, and tensors pass through memory
one by one. Pickles are read without running anything in them.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib

from absl import flags
from absl import logging

from videomla_jax.conversion import components
from videomla_jax.conversion import export
from videomla_jax.conversion import float8
from videomla_jax.conversion import ladder
from videomla_jax.conversion import latent_layer
from videomla_jax.conversion import lora
from videomla_jax.conversion import lora_files
from videomla_jax.conversion import release
from videomla_jax.conversion import targets
from videomla_jax.conversion import to_latent
from videomla_jax.conversion.names import detect
from videomla_jax.generation import unused
from videomla_jax.models import released
from videomla_jax.ops import quantise
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar
from videomla_jax.small_world import model as small_model
from videomla_jax.storage import paths
from videomla_jax.storage import tensor_files

type Opened = tuple[detect.Network, release.Tensors]
type Job = Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Says what to convert and how; the fields are the flags.

  Attributes:
    source: Release folder, checkpoint file or model folder.
    output: Folder to write.
    parts: Components of a release, with commas; empty for all, of which none
      may then be missing.
    select: Name of the network in a training checkpoint.
    use_ema: True takes the averaged generator of a training checkpoint, False
      the other one; None leaves it to `select`.
    num_heads: Heads of a DiT whose number of heads no shape tells.
    rope_ladder: Frequencies of the positional key of latent attention, "wan" or
      "fresh"; empty where the source tells, and for a new start Wan's.
    dtype: "float32", "bfloat16", "float8_e4m3fn" for the blocks of a DiT, or
      "source" for the type that is given.
    to: "latent" to change dense attention, else "same".
    init: How latent attention starts: "spectral" or "random".
    d_c: Channels of the content latent; 0 is an eighth of the width.
    d_rope: Channels of the positional key; 0 is a quarter of a head.
    d_q: Channels of the query latent; 0 is half of the width.
    seed: Seed of a random start.
    activations: File that `calibrate` wrote, for a spectral start.
    export: Names to export under; empty writes a model folder.
    lora: Files of LoRAs to merge into the DiT, separated by commas.
    lora_scale: What their updates are multiplied by: a number for all of them,
      or one each, separated by commas.
    lora_strict: Whether keys that fit nothing are refused.
  """

  source: str | None = None
  output: str | None = None
  parts: str = ""
  select: str = ""
  use_ema: bool | None = None
  num_heads: int | None = None
  rope_ladder: str = ""
  dtype: str = "source"
  to: str = "same"
  init: latent_layer.Method = "spectral"
  d_c: int = 0
  d_rope: int = 0
  d_q: int = 0
  seed: int = 0
  activations: str = ""
  export: str = ""
  lora: str = ""
  lora_scale: str = "1.0"
  lora_strict: bool = True

  def __post_init__(self) -> None:
    for name in ("source", "output", "activations"):
      path = getattr(self, name)
      if path:
        # A frozen dataclass is completed in its constructor only.
        object.__setattr__(self, name, paths.local(path, name))
    for name in ("d_c", "d_rope", "d_q"):
      config_values.Range(0, 2**20)(getattr(self, name), f"--{name}")
    config_values.Range(1, 2**20)(self.num_heads, "--num_heads")
    config_values.Range(0, config_values.MAX_SEED)(self.seed, "--seed")
    name = tensor_files.network_name(self.select, use_ema=self.use_ema)
    object.__setattr__(self, "select", name)
    self._refuse_unused()

  def _refuse_unused(self) -> None:
    """Refuses options that another option makes useless."""
    start = {"--seed": self.seed, "--activations": self.activations}
    if self.to != "latent":
      sizes = {f"--{n}": getattr(self, n) for n in ("d_c", "d_rope", "d_q")}
      start["--init"] = self.init.removeprefix("spectral")
      unused.refuse(sizes | start, why="without --to=latent")
    elif self.init == "random":
      unused.refuse(
        {"--activations": self.activations}, why="with --init=random"
      )
    else:
      unused.refuse({"--seed": self.seed}, why="without --init=random")
    if not self.lora:
      scale = self.lora_scale.removeprefix("1.0")
      own = {"--lora_scale": scale, "--nolora_strict": not self.lora_strict}
      unused.refuse(own, why="without --lora")
    if self.export:
      changes = {
        "--to": self.to.removeprefix("same"),
        "--dtype": self.dtype.removeprefix("source"),
      }
      why = f"with --export={self.export}, which only renames"
      unused.refuse(changes, why=f"{why}; convert first")


def define_flags() -> None:
  """Defines the flags of the command line, one per field of `Options`."""
  values = flags.FLAGS  # looked up here, since tests have others
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  choice = functools.partial(flags.DEFINE_enum, flag_values=values)
  boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
  string("source", None, "Release folder, checkpoint file or model folder.")
  string("output", None, "Folder to write.")
  string("parts", "", "Only these of dit,vae,umt5,tokenizer,tiny_decoder.")
  # Its name when it took one.
  flags.DEFINE_alias("component", "parts", flag_values=values)
  string("select", "", "Network in a training checkpoint (generator_ema).")
  boolean("use_ema", None, "Take generator_ema, or generator.")
  flags.DEFINE_alias("use-ema", "use_ema", flag_values=values)
  integer("num_heads", None, "Of a DiT whose heads have not 128 channels.")
  choice(
    "rope_ladder", "", ["", "wan", "fresh"], "Frequencies of positional keys."
  )
  dtypes = ["source", "float32", "bfloat16", quantise.FLOAT8]
  choice("dtype", "source", dtypes, "Type of weights.")
  choice("to", "same", ["same", "latent"], "Kind of attention.")
  choice(
    "init", "spectral", ["spectral", "random"], "Latent attention's start."
  )
  integer("d_c", 0, "Content latent; 0 is an eighth of the width.")
  integer("d_rope", 0, "Positional key; 0 is a quarter of a head.")
  integer("d_q", 0, "Query latent; 0 is half of the width.")
  integer("seed", 0, "Seed of --init=random.")
  string("activations", "", "Inputs of real latents, for --init=spectral.")
  choice("export", "", ["", "original", "diffusers", "transformers"], "Names.")
  string("lora", "", "LoRAs to merge into the DiT, separated by commas.")
  string("lora_scale", "1.0", "One number, or one for each LoRA.")
  boolean("lora_strict", True, "Refuse keys that fit nothing.")


def convert(options: Options) -> None:
  """Converts or exports networks as the options say.

  Args:
    options: What to convert and how.

  Raises:
    ValueError: If source, output or the change cannot work.
  """
  if not options.source or not options.output:
    name = "output" if options.source else "source"
    raise ValueError(f"--{name} is missing; see the top of convert.py.")
  source, output = pathlib.Path(options.source), pathlib.Path(options.output)
  with contextlib.ExitStack() as stack:
    try:
      jobs = _plan(options, source, output, stack)
    except OSError as error:
      raise ValueError(
        f"source={str(source)!r} cannot be read ({error.strerror or error}); "
        "give files that you may read."
      ) from error
    # Files that are still read from here on are named by their readers.
    try:
      for job in jobs:
        job()
    except OSError as error:
      raise ValueError(
        f"output={str(output)!r} cannot be written ({error}); free space or "
        "choose another folder."
      ) from error


def _plan(
  options: Options,
  source: pathlib.Path,
  output: pathlib.Path,
  stack: contextlib.ExitStack,
) -> list[Job]:
  """Opens and checks everything, and returns what is then to be done.

  Args:
    options: What to convert and how.
    source: Release folder, checkpoint file or model folder.
    output: Folder to write.
    stack: Keeps files open until all is done.

  Raises:
    ValueError: If anything cannot work.
  """
  targets.check_names(source, output)
  parts = components.named(options.parts)
  found = components.choose(source, parts)
  folders = [output / c for c in found if c != "tokenizer"] or [output]
  targets.check(source, output, folders, export=bool(options.export))
  if not found:
    if small_model.is_model(source):
      return [_small_job(options, source, output)]
    opened = _open(options, source, stack)
    components.check_part(opened[0], parts, source)
    float8.check(options.dtype, {opened[0].architecture})
    return [_network_job(options, opened, source, output, stack)]
  if "dit" not in found:
    unused.refuse({"--lora": options.lora}, why="on parts without the DiT")
    float8.check(options.dtype, found)
  networks, jobs = {}, []
  for component, path in found.items():
    if component == "tokenizer":
      continue
    opened = _open(options, path, stack)
    networks[component] = opened[0]
    place = output / component
    jobs.append(
      _network_job(options, opened, path, place, stack, component=component)
    )
  tokenizer = components.open_tokenizer(found)
  components.check_fit(networks, tokenizer, source)
  if tokenizer is not None:
    copied = found["tokenizer"], output / "tokenizer"
    jobs.append(functools.partial(components.copy_tokenizer, *copied))
  return jobs


def _open(
  options: Options, path: pathlib.Path, stack: contextlib.ExitStack
) -> Opened:
  """Opens one network, which must be as complete as it was released."""
  return stack.enter_context(
    release.open_network(
      path,
      select=options.select,
      num_heads=options.num_heads,
      rope_ladder=options.rope_ladder if options.to == "same" else "",
    )
  )


def _network_job(
  options: Options,
  opened: Opened,
  path: pathlib.Path,
  output: pathlib.Path,
  stack: contextlib.ExitStack,
  *,
  component: str = "dit",
) -> Job:
  """Checks changes and an export, and returns what writes the network."""
  network, tensors = opened
  # --to=latent leaves the other components of a release as they are.
  latent = _recipe(options, network.config) if component == "dit" else None
  if component == "dit" and latent is None and options.rope_ladder:
    ladder.check_latent(network, options.rope_ladder)
  if options.export:
    export.check_names(network, options.export)
  elif latent is not None:
    release.check_latent(network, latent)
  dtype = "given" if options.export else options.dtype
  loras = lora_files.parse(
    options.lora if component == "dit" else "",
    options.lora_scale,
    strict=options.lora_strict,
  )
  changed, notes = stack.enter_context(
    lora.merged(network, tensors, loras, dtype=dtype)
  )

  def job() -> None:
    total = len(tensors)
    print(f"{path}: {network.architecture}, {total} tensors", flush=True)
    if network.left_out:
      unread = len(network.left_out)
      print(f"{path}: {unread} tensors of its encoder are left out", flush=True)
    for line in lora_files.told(notes):
      print(line, flush=True)
    with progress_bar.Progress(total, "convert", unit="tensor") as progress:
      if options.export:
        export.export(
          output,
          network,
          changed,
          format_name=options.export,
          advance=lambda: progress.update(1),
        )
      else:
        release.write_model(
          output,
          network,
          changed,
          dtype=options.dtype,
          source=dict(
            files=str(path),
            select=options.select,
          )
          | (dict(lora=notes) if notes else {}),
          latent=latent,
          advance=lambda: progress.update(1),
        )
    print(f"{path} -> {output}", flush=True)

  return job


def _small_job(
  options: Options, path: pathlib.Path, output: pathlib.Path
) -> Job:
  """Loads a trained small model; all that it can become is latent."""
  unused.refuse(
    {
      "--dtype": options.dtype.removeprefix("source"),
      "--use_ema": options.use_ema,
      "--select": options.select,
      "--parts": options.parts,
      "--lora": options.lora,
    },
    why=f"on source={str(path)!r}, a small model",
  )
  model = small_model.load(path)
  latent = _recipe(options, model.dit.config)
  if latent is None or options.export:
    raise ValueError(
      f"source={str(path)!r} is a small model, which can only be converted "
      "with --to=latent."
    )

  def job() -> None:
    to_latent.convert_small(output, model, latent, source=str(path))
    print(f"{path} -> {output}", flush=True)

  return job


def _recipe(
  options: Options, config: released.Config
) -> to_latent.Recipe | None:
  """Returns how attention changes; sizes are the paper's shares by default."""
  if options.to != "latent":
    return None
  d_c, d_rope, d_q = to_latent.usual_sizes(config)
  return to_latent.Recipe(
    method=options.init,
    d_c=options.d_c or d_c,
    d_rope=options.d_rope or d_rope,
    d_q=options.d_q or d_q,
    seed=options.seed,
    activations=options.activations,
    rope_ladder=options.rope_ladder or "wan",
  )


def main() -> None:
  """Converts what the command line says."""
  # Orbax warns that arrays written piece by piece have no metadata of its own.
  logging.set_verbosity(logging.ERROR)
  names = [field.name for field in dataclasses.fields(Options)]
  convert(Options(**{name: getattr(flags.FLAGS, name) for name in names}))


if __name__ == "__main__":
  define_flags()
  cli.run_flags(main)
