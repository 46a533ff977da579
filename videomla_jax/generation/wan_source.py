"""Wan as a source: networks in folders of `convert`, or random tiny ones."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import overload

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.costs import memory
from videomla_jax.data import embeddings
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import pipeline
from videomla_jax.generation import unused
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_tiling
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

RANDOM = "random:"
_LETTERS = "the quick brown fox jumps over a lazy dog 0123456789 .,;:!?&'-"

# The window of VideoMLA; the files of a release do not say it.
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)

TextRows = Float[Array, "B M E"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanSource:
  """Wan: three networks that are loaded one after the other.

  Attributes:
    encode_text: Embeds prompts; its networks are freed when it returns.
    load_dit: Loads the network.
    load_codec: Loads the VAE.
    vae_sizes: Sizes of the VAE.
    pixels: Height and width of the video.
    fps: Pixel frames per second.
    shift: Warp of the noise schedule that the model was trained with.
    tokenizer: Loads the tokenizer; gives None where embeddings are stored.
    pixel_channels: Channels of a pixel: RGB.
    window: Window of a rollout; the files do not say what training used.
    distilled: Whether it needs a few steps only, which the files do not say.
    load_tiny: Loads the tiny decoder, which then decodes in place of the VAE;
      None where the VAE decodes.
    vae_tile: Side of a decoder's tile in latent pixels; 0 is the whole frame.
  """

  encode_text: Callable[[Sequence[str]], TextRows]
  load_dit: Callable[[], wan.WanDiT]
  load_codec: Callable[[], vae.Codec]
  vae_sizes: vae_coders.VaeConfig
  pixels: tuple[int, int]
  fps: float | int
  shift: float | int
  tokenizer: Callable[[], tokenizer_lib.Tokenizer | None] = lambda: None
  pixel_channels: int = 3
  window: window_lib.Window = _WINDOW
  distilled: bool = False
  load_tiny: Callable[[], vae.Decoder] | None = None
  vae_tile: int = 0

  @property
  def decoder(self) -> str:
    """Name of what turns latents into pixels: "wan" (the VAE) or "tiny"."""
    return "wan" if self.load_tiny is None else "tiny"

  def other_decoders(self) -> Mapping[str, vae.Decoder]:
    """Returns the decoder that was not chosen, without its weights."""
    if self.load_tiny is not None:
      whole = vae.abstract(self.vae_sizes)
      return dict(wan=_tiled(whole, self.vae_tile))
    sizes = tiny_decoder.TinyDecoderConfig(
      channels=self.vae_sizes.channels, dtype=self.vae_sizes.dtype
    )
    return dict(tiny=_tiled(tiny_decoder.abstract(sizes), self.vae_tile))

  def check(self, prompts: Sequence[str]) -> None:
    """Raises `ValueError` for an empty prompt; anything else is allowed."""
    for i, prompt in enumerate(prompts):
      if not prompt:
        raise ValueError(f"prompts[{i}] is empty; write what to show.")

  def check_negative(self, negative: str) -> None:
    """Accepts every negative prompt."""
    del negative

  def cut(self, prompts: Sequence[str]) -> dict[str, int]:
    """Returns the tokens of prompts that have more than the encoder takes."""
    tokenizer = self.tokenizer()
    if tokenizer is None:
      return {}
    counts = {prompt: tokenizer.num_tokens(prompt) for prompt in prompts}
    return {p: n for p, n in counts.items() if n > tokenizer.max_tokens}

  def embed(
    self, prompts: Sequence[str], *, negative: str | None
  ) -> Float[Array, "R M E"]:
    """Runs the text encoder once per prompt, and once for the negative one."""
    wanted = [*prompts] if negative is None else [*prompts, negative]
    # All of them are embedded in one call, so that the encoder (11.4 GB) is
    # loaded only once.
    rows = self.encode_text(wanted)
    if negative is not None:
      # Its row stands once per prompt, as the rows of guidance do.
      index = [*range(len(prompts)), *[len(prompts)] * len(prompts)]
      rows = rows[jnp.asarray(index)]
    return rows

  def load(self) -> pipeline.Pipeline:
    """Loads the decoder, then the network, and keeps neither."""
    tiny = self.load_tiny is not None
    codec = self.load_tiny() if self.load_tiny else self.load_codec()
    height, width = (size // codec.spatial_stride for size in self.pixels)
    return pipeline.Pipeline(
      dit=self.load_dit(),
      codec=codec,
      frame=(height, width, codec.channels),
      fps=self.fps,
      load_encoder=self._load_encoder if tiny else None,
    )

  def _load_encoder(self) -> vae.Codec:
    """Loads the VAE to encode given frames, and says so."""
    codec = self.load_codec()
    sizes = memory.described("VAE", codec)
    print(f"{sizes}, freed after the given frames are encoded", flush=True)
    return codec


def from_folders(
  path: pathlib.Path, networks: networks_lib.Networks
) -> WanSource:
  """Checks that the folders of a converted release exist; loads nothing.

  Args:
    path: Folder that holds dit/, vae/, umt5/ and tokenizer/.
    networks: Folders that lie elsewhere, size and precision.

  Raises:
    ValueError: If a folder is missing, or the size of the video does not fit.
  """
  unused.refuse(
    dict(weights_seed=networks.weights_seed),
    why="on weights that are read from files",
  )
  folders = {
    name: pathlib.Path(given or path / name)
    for name, given in dataclasses.asdict(networks.parts).items()
  }
  # Stored embeddings replace the text encoder, so its files may be missing.
  needed, encoder = {"dit", "vae"}, {"umt5", "tokenizer"}
  # The VAE encodes given frames, whatever decodes the others.
  if networks.decoder == "tiny":
    needed |= {"tiny_decoder"}
  if not networks.embeddings:
    needed |= encoder
  else:
    named = {f"parts.{n}": getattr(networks.parts, n) for n in sorted(encoder)}
    unused.refuse(
      named,
      why=f"beside embeddings={networks.embeddings!r}, which take the place of"
      " the text encoder",
      way_out="leave it empty, or the embeddings",
    )
  missing = sorted(str(folders[n]) for n in needed if not folders[n].exists())
  if missing:
    raise ValueError(
      f"checkpoint={str(path)!r} lacks {missing}; convert them, name others in "
      "config.parts, or give prompts embedded before in config.embeddings."
    )
  family = released.family_at(folders["dit"])
  _check_together(folders, networks.embeddings)
  sizes = _vae_sizes(folders["vae"], networks)
  if networks.decoder == "tiny":
    _check_tiny(folders["tiny_decoder"], sizes)
  return WanSource(
    tokenizer=lambda: (
      None
      if networks.embeddings
      else tokenizer_lib.Tokenizer.load(folders["tokenizer"])
    ),
    encode_text=functools.partial(_encode_text, folders, networks.embeddings),
    load_dit=lambda: released.load(
      folders["dit"],
      "dit",
      half_weights=networks.half_weights,
      spare_memory=networks.spare_memory,
    ),
    load_codec=lambda: _tiled(
      released.load(
        folders["vae"],
        "vae",
        dtype=networks.vae_dtype,
        spare_memory=networks.spare_memory,
      ),
      networks.vae_tile,
    ),
    load_tiny=(
      functools.partial(_load_tiny, folders["tiny_decoder"], networks)
      if networks.decoder == "tiny"
      else None
    ),
    vae_sizes=sizes,
    vae_tile=networks.vae_tile,
    pixels=networks.pixels_like(family),
    fps=family.fps,
    shift=family.shift,
  )


def _vae_sizes(
  folder: pathlib.Path, networks: networks_lib.Networks
) -> vae_coders.VaeConfig:
  """Returns the sizes of the VAE, which computes as it is asked to.

  Raises:
    ValueError: If the folder holds another network.
  """
  sizes = released.config_at(folder)
  if not isinstance(sizes, vae_coders.VaeConfig):
    raise ValueError(
      f"checkpoint={str(folder)!r} holds no 'vae'; give the folder that "
      "convert wrote for it."
    )
  return dataclasses.replace(
    sizes, dtype=networks.vae_dtype, spare_memory=networks.spare_memory
  )


def _load_tiny(
  folder: pathlib.Path, networks: networks_lib.Networks
) -> vae.Decoder:
  """Loads the tiny decoder, in tiles if they are wanted."""
  decoder = released.load(folder, "tiny_decoder", dtype=networks.vae_dtype)
  return _tiled(decoder, networks.vae_tile)


def _check_together(folders: Mapping[str, pathlib.Path], stored: str) -> None:
  """Refuses parts that do not belong together, before any is loaded.

  Raises:
    ValueError: If sizes that two parts share differ.
  """
  dit = released.config_at(folders["dit"])
  codec = released.config_at(folders["vae"])
  text = (
    embeddings.width(stored)
    if stored
    else getattr(released.config_at(folders["umt5"]), "width", 0)
  )
  pairs = (
    ("channels of a latent", "vae", getattr(codec, "channels", 0), "channels"),
    ("channels of a text", "text encoder", text, "text_dim"),
  )
  for what, other, found, field in pairs:
    wanted = getattr(dit, field, found)
    if found != wanted:
      raise ValueError(
        f"the network {str(folders['dit'])!r} takes {wanted} {what}, but the"
        f" {other} gives {found}; use parts of one release."
      )


def _check_tiny(folder: pathlib.Path, sizes: vae_coders.VaeConfig) -> None:
  """Refuses a tiny decoder that does not decode the latents of the VAE.

  Raises:
    ValueError: If it is none, or channels or strides differ.
  """
  tiny = released.config_at(folder)
  if not isinstance(tiny, tiny_decoder.TinyDecoderConfig):
    raise ValueError(
      f"checkpoint={str(folder)!r} holds no 'tiny_decoder'; give the folder "
      "that convert wrote for it."
    )
  for field in ("channels", "temporal_stride", "spatial_stride"):
    found, wanted = getattr(tiny, field), getattr(sizes, field)
    if found != wanted:
      raise ValueError(
        f"the tiny decoder {str(folder)!r} has {field}={found}, but the vae "
        f"has {wanted}; convert taew2_1.safetensors, which is Wan2.1's."
      )


@overload
def _tiled(whole: vae.WanVAE, tile: int) -> vae.Codec: ...


@overload
def _tiled(whole: tiny_decoder.TinyDecoder, tile: int) -> vae.Decoder: ...


def _tiled(
  whole: vae.WanVAE | tiny_decoder.TinyDecoder, tile: int
) -> vae.Decoder:
  """Returns a decoder, or one that computes tile by tile if it is wanted."""
  if not tile:
    return whole
  if isinstance(whole, vae.WanVAE):
    return vae_tiling.TiledVAE(whole, tile=tile)
  return vae_tiling.TiledDecoder(whole, tile=tile)


def _encode_text(
  folders: dict[str, pathlib.Path], stored: str, prompts: Sequence[str]
) -> TextRows:
  """Reads embeddings that `embed` stored, or runs the text encoder."""
  # Stored embeddings come first: with them the encoder need not even be there.
  if stored:
    return jnp.asarray(embeddings.read(stored, [*prompts]))
  tokenizer = tokenizer_lib.Tokenizer.load(folders["tokenizer"])
  encoder = released.load(folders["umt5"], "umt5")
  sizes = memory.described("text encoder", encoder)
  print(f"{sizes}, freed after the prompts are embedded", flush=True)
  return umt5.embed_texts(encoder, tokenizer, [*prompts])


def random_source(networks: networks_lib.Networks) -> WanSource:
  """Makes a whole Wan of tiny sizes with random weights.

  Args:
    networks: Name after `random:`, size of the video, and seed.

  Raises:
    ValueError: If the name is unknown, or the size of the video does not fit.
  """
  name = networks.checkpoint.removeprefix(RANDOM)
  kinds = {"wan_tiny": "latent", "wan_tiny_dense": "dense"}
  if name not in kinds:
    raise ValueError(
      f"checkpoint='{RANDOM}{name}' is unknown; use one of "
      f"{[RANDOM + n for n in kinds]}."
    )
  unused.refuse_of_random(networks)
  family = released.FAMILIES["wan_tiny"]
  sizes = dataclasses.replace(
    family.vae, dtype=networks.vae_dtype, spare_memory=networks.spare_memory
  )

  @functools.cache
  def build() -> tuple[umt5.Umt5Encoder, vae.WanVAE, wan.WanDiT]:
    # All three are made at once, so that a seed names the same weights however
    # often and in whatever order they are asked for.
    rngs = nnx.Rngs(networks.weights_seed)
    encoder = umt5.Umt5Encoder(family.text_encoder, rngs=rngs)
    codec = vae.WanVAE(sizes, rngs=rngs)
    config = wan_config.tiny(
      kind=kinds[name], spare_memory=networks.spare_memory
    )
    dit = wan.WanDiT(config, rngs=rngs)
    # Untrained networks start with a head of zeros, which predicts nothing.
    kernel = dit.head.kernel
    noise = jax.random.normal(rngs.params(), kernel.shape)
    kernel[...] = noise / np.sqrt(kernel.shape[0])
    return encoder, codec, dit

  @functools.cache
  def tokenizer() -> tokenizer_lib.Tokenizer:
    # Its pieces are no matter of the prompts, so that one of several gives the
    # same video alone.
    return tokenizer_lib.train_tokenizer([_LETTERS])

  def tiny() -> vae.Decoder:
    like = tiny_decoder.tiny(channels=sizes.channels, dtype=sizes.dtype)
    rngs = nnx.Rngs(networks.weights_seed)
    return _tiled(tiny_decoder.TinyDecoder(like, rngs=rngs), networks.vae_tile)

  def encode_text(prompts: Sequence[str]) -> TextRows:
    return umt5.embed_texts(build()[0], tokenizer(), [*prompts])

  return WanSource(
    encode_text=encode_text,
    tokenizer=tokenizer,
    load_dit=lambda: build()[2],
    load_codec=lambda: _tiled(build()[1], networks.vae_tile),
    load_tiny=tiny if networks.decoder == "tiny" else None,
    vae_sizes=sizes,
    vae_tile=networks.vae_tile,
    pixels=networks.pixels_like(family),
    fps=family.fps,
    shift=family.shift,
  )
