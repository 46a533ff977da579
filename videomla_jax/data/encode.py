"""Encoders: what turns frames and captions into the numbers that are stored.

An encoder is named by a folder of `convert` (vae/, umt5/, tokenizer/), or by
`random:wan_tiny` to try the machinery. Naming one loads nothing; `load` loads
it once in each process.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8
import numpy as np

from videomla_jax.data import embeddings as embeddings_lib
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.ops import convolution
from videomla_jax.storage import model_folder

RANDOM = "random:wan_tiny"
_RANDOM_TEXTS = ["a quick brown fox jumps over the lazy dog", "a cat sleeps"]
_COMPONENTS = ("vae", "umt5", "tokenizer")
_TINY = released.FAMILIES["wan_tiny"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
  """Names an encoder; it is small, so that it can be sent to workers.

  Attributes:
    checkpoint: Folder of `convert`, or `RANDOM`.
    embeddings: File of `embed` to take text from in place of UMT5.
    vae_dtype: Type of the VAE's convolutions.
  """

  checkpoint: str
  embeddings: str = ""
  vae_dtype: str = "float32"

  def identity(self) -> str:
    """Returns a digest of all that the numbers depend on, weights included.

    Raises:
      ValueError: If components are missing or damaged.
    """
    about = {"vae_dtype": self.vae_dtype}
    if self.checkpoint == RANDOM:
      return f"{RANDOM} {self.vae_dtype}"
    root = self._check()
    about["vae"] = embeddings_lib.encoder_identity(root / "vae")
    if self.embeddings:
      about["text"] = embeddings_lib.encoder_of(self.embeddings)
    else:
      about["text"] = embeddings_lib.encoder_identity(root / "umt5")
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def vae_sizes(self) -> vae_coders.VaeConfig:
    """Returns the sizes of the VAE, read without its weights.

    Raises:
      ValueError: If components are missing or damaged.
    """
    if self.checkpoint == RANDOM:
      return dataclasses.replace(_TINY.vae, dtype=self.vae_dtype)
    sizes = self._config("vae")
    assert isinstance(sizes, vae_coders.VaeConfig)
    return dataclasses.replace(sizes, dtype=self.vae_dtype)

  def text_width(self) -> int:
    """Returns the number of channels of an embedded token.

    Raises:
      ValueError: If components are missing or damaged.
    """
    if self.embeddings:
      return embeddings_lib.width(self.embeddings)
    if self.checkpoint == RANDOM:
      return _TINY.text_encoder.width
    sizes = self._config("umt5")
    assert isinstance(sizes, umt5.Umt5Config)
    return sizes.width

  def require_texts(self, captions: list[str]) -> None:
    """Refuses captions that the file of embeddings lacks.

    Args:
      captions: All captions that will be needed.

    Raises:
      ValueError: If there is a file and captions are missing in it.
    """
    if not self.embeddings:
      return
    encoder = embeddings_lib.encoder_of(self.embeddings)
    known = embeddings_lib.known(self.embeddings, encoder=encoder)
    absent = [
      c
      for c in captions
      if embeddings_lib.key_of(c, encoder=encoder) not in known
    ]
    if absent:
      shown = absent[0] if len(absent[0]) <= 60 else f"{absent[0][:57]}..."
      raise ValueError(
        f"embeddings={self.embeddings!r} lacks {len(absent)} captions, such as"
        f" {shown!r}; add them with python -m videomla_jax.embed, or give"
        " none to run the text encoder here."
      )

  def _config(self, component: str) -> released.Config:
    """Returns the sizes of a component whose bytes are all as written."""
    folder = (self._check() / component).absolute()
    model_folder.check_folder(folder)
    return released.config_at(folder)

  def _check(self) -> pathlib.Path:
    """Returns the folder of the components after a look at what it holds."""
    root = pathlib.Path(self.checkpoint)
    needed = _COMPONENTS[:1] if self.embeddings else _COMPONENTS
    missing = [n for n in needed if not (root / n).exists()]
    if missing:
      raise ValueError(
        f"checkpoint={self.checkpoint!r} lacks {missing}; give the folder that"
        " convert wrote, with prompts embedded before in config.embeddings if"
        " it has no umt5."
      )
    return root

  def latent_shape(
    self, *, num_frames: int, height: int, width: int
  ) -> tuple[int, int, int, int]:
    """Returns latent frames, rows, columns and channels of a clip.

    Args:
      num_frames: Pixel frames.
      height: Pixel rows.
      width: Pixel columns.

    Raises:
      ValueError: If the VAE cannot take such clips.
    """
    sizes = self.vae_sizes()
    time, space = sizes.temporal_stride, sizes.spatial_stride
    step = released.family_of(sizes).pixel_step
    for name, size in (("height", height), ("width", width)):
      if size % step:
        raise ValueError(
          f"clip.{name}={size} must be a multiple of {step}; use"
          f" {max(1, size // step) * step}."
        )
    # With a stride of 1, `1 % time` is 0 and every length fits.
    if num_frames % time != 1 % time:
      raise ValueError(
        f"clip.num_frames={num_frames} must be one more than a multiple of"
        f" {time}; use {max(0, (num_frames - 1) // time) * time + 1}."
      )
    frames = (num_frames - 1) // time + 1
    return frames, height // space, width // space, sizes.channels


@functools.partial(jax.jit, compiler_options=convolution.CHANNELS_LAST)
def _encode(
  codec: vae.WanVAE, video: UInt8[Array, "B t h w 3"]
) -> Float32[Array, "B T H W C"]:
  return codec.encode(video)


class Encoder:
  """Holds a VAE and a text encoder, each loaded when it is first needed."""

  def __init__(self, config: EncoderConfig) -> None:
    self._config = config
    self._root = pathlib.Path(config.checkpoint)

  def latents(
    self, frames: UInt8[np.ndarray, "T h w 3"]
  ) -> Float32[np.ndarray, "F H W C"]:
    """Returns normalised latents of one clip, the posterior's mean.

    Args:
      frames: Pixels 0..255.
    """
    return np.asarray(_encode(self._vae, jnp.asarray(frames)[None])[0])

  def texts(self, captions: list[str]) -> list[Float32[np.ndarray, "m E"]]:
    """Returns embeddings of the real tokens of each caption.

    Args:
      captions: Texts as they were listed.
    """
    if self._config.embeddings:
      # Padding is stored nowhere, so rows of zeros are what was added here.
      rows = embeddings_lib.read(self._config.embeddings, captions)
      return [r[: int(np.any(r != 0, axis=1).sum())] for r in rows]
    text_encoder, tokenizer = self._text
    embedded = []
    for caption in captions:  # padded rows are large: one at a time
      rows = np.asarray(umt5.embed_texts(text_encoder, tokenizer, [caption]))
      _, lengths = tokenizer([caption])
      embedded.append(rows[0, : lengths[0]])
    return embedded

  def num_cut(self, captions: list[str]) -> int:
    """Returns how many captions have too many tokens and lose their ends.

    Args:
      captions: Texts as they were listed.
    """
    if self._config.embeddings:
      return embeddings_lib.num_cut(self._config.embeddings, captions)
    _, tokenizer = self._text
    return sum(
      tokenizer.num_tokens(caption) > tokenizer.max_tokens
      for caption in captions
    )

  # Both are loaded when they are needed: a shard of prompts alone needs no VAE,
  # and prompts that were embedded before need no text encoder.
  @functools.cached_property
  def _vae(self) -> vae.WanVAE:
    if self._config.checkpoint == RANDOM:
      return vae.WanVAE(self._config.vae_sizes(), rngs=nnx.Rngs(0))
    dtype = self._config.vae_dtype
    return released.load(self._root / "vae", "vae", dtype=dtype)

  @functools.cached_property
  def _text(self) -> tuple[umt5.Umt5Encoder, tokenizer_lib.Tokenizer]:
    if self._config.checkpoint == RANDOM:
      tokenizer = tokenizer_lib.train_tokenizer(_RANDOM_TEXTS)
      return umt5.Umt5Encoder(_TINY.text_encoder, rngs=nnx.Rngs(1)), tokenizer
    tokenizer = tokenizer_lib.Tokenizer.load(self._root / "tokenizer")
    return released.load(self._root / "umt5", "umt5"), tokenizer


# The cache has one entry, since two encoders would not fit into memory beside
# each other.
@functools.lru_cache(maxsize=1)
def load(config: EncoderConfig) -> Encoder:
  """Returns the encoder of this process, which is kept between shards."""
  return Encoder(config)
