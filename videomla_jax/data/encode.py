"""What turns frames and captions into the numbers that are stored.

Named by a folder of `convert` (vae/, umt5/, tokenizer/), or `random:wan_tiny`
to try the machinery. Naming one loads nothing; `load` loads it once a process.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float32, UInt8
import numpy as np

from videomla_jax.data import embeddings as embeddings_lib
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.models import vae
from videomla_jax.models import vae_config
from videomla_jax.storage import model_folder

RANDOM = "random:wan_tiny"
_RANDOM_TEXTS = ["a quick brown fox jumps over the lazy dog", "a cat sleeps"]
_PARTS = ("vae", "umt5", "tokenizer")
_TINY = released.FAMILIES["wan_tiny"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Names an encoder; small, so that it can be sent to workers.

  Attributes:
    checkpoint: Folder of `convert`, or `RANDOM`.
    embeddings: File of `embed` to take text from in place of UMT5.
    vae_dtype: Of the VAE's convolutions.
  """

  checkpoint: str
  embeddings: str = ""
  vae_dtype: str = "float32"

  def identity(self) -> str:
    """Digest of the weights and of all else that the numbers depend on.

    Raises:
      ValueError: If parts are missing or damaged.
    """
    parts = {"vae_dtype": self.vae_dtype}
    if self.checkpoint == RANDOM:
      return f"{RANDOM} {self.vae_dtype}"
    root = self._check()
    parts["vae"] = embeddings_lib.encoder_identity(root / "vae")
    if self.embeddings:
      parts["text"] = embeddings_lib.encoder_of(self.embeddings)
    else:
      parts["text"] = embeddings_lib.encoder_identity(root / "umt5")
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def vae_config(self) -> vae_config.VaeConfig:
    """Sizes of the VAE, read without its weights."""
    if self.checkpoint == RANDOM:
      return dataclasses.replace(_TINY.vae, dtype=self.vae_dtype)
    sizes: vae_config.VaeConfig = self._config("vae")
    return dataclasses.replace(sizes, dtype=self.vae_dtype)

  def text_width(self) -> int:
    """Channels of an embedded token."""
    if self.embeddings:
      return embeddings_lib.width(self.embeddings)
    if self.checkpoint == RANDOM:
      return _TINY.text_encoder.width
    return self._config("umt5").width

  def require_texts(self, captions: list[str]) -> None:
    """Raises `ValueError` if captions are missing in the given embeddings."""
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
      raise ValueError(
        f"embeddings={self.embeddings!r} lacks {len(absent)} captions, such as"
        f" {absent[0]!r}; add them with python -m videomla_jax.embed, or give"
        " none to run the text encoder here."
      )

  def _config(self, part: str) -> Any:
    folder = (self._check() / part).absolute()
    model_folder.check_folder(folder)
    return released.config_at(folder)

  def _check(self) -> pathlib.Path:
    root = pathlib.Path(self.checkpoint)
    needed = _PARTS[:1] if self.embeddings else _PARTS
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
    """Latent frames, rows, columns and channels of a clip.

    Raises:
      ValueError: If the VAE cannot take such clips.
    """
    sizes = self.vae_config()
    time, space = sizes.temporal_stride, sizes.spatial_stride
    step = released.family_of(sizes).pixel_step
    for name, size in (("height", height), ("width", width)):
      if size % step:
        raise ValueError(
          f"clip.{name}={size} must be a multiple of {step}; use"
          f" {max(1, size // step) * step}."
        )
    if num_frames % time != 1 % time:
      raise ValueError(
        f"clip.num_frames={num_frames} must be one more than a multiple of"
        f" {time}; use {max(0, (num_frames - 1) // time) * time + 1}."
      )
    frames = (num_frames - 1) // time + 1
    return frames, height // space, width // space, sizes.channels


@jax.jit
def _encode(codec, video):
  return codec.encode(video)


class Encoder:
  """A VAE and a text encoder, each loaded when it is first asked for."""

  def __init__(self, spec: Spec):
    self._spec = spec
    self._root = pathlib.Path(spec.checkpoint)

  def latents(
    self, frames: UInt8[np.ndarray, "T h w 3"]
  ) -> Float32[np.ndarray, "F H W C"]:
    """Normalised latents of one clip, the posterior mean."""
    return np.asarray(_encode(self._vae, jnp.asarray(frames)[None])[0])

  def texts(self, captions: list[str]) -> list[Float32[np.ndarray, "m E"]]:
    """Embeddings of the real tokens of each caption, without padding."""
    if self._spec.embeddings:
      rows = embeddings_lib.read(self._spec.embeddings, captions)
      return [r[: int(np.any(r != 0, axis=1).sum())] for r in rows]
    text_encoder, tokenizer = self._text
    made = []
    for caption in captions:  # padded rows are large: one at a time
      rows = np.asarray(umt5.embed_texts(text_encoder, tokenizer, [caption]))
      _, lengths = tokenizer([caption])
      made.append(rows[0, : lengths[0]])
    return made

  @functools.cached_property
  def _vae(self) -> vae.WanVAE:
    if self._spec.checkpoint == RANDOM:
      return vae.WanVAE(self._spec.vae_config(), rngs=nnx.Rngs(0))
    dtype = self._spec.vae_dtype
    return released.load(self._root / "vae", "vae", dtype=dtype)

  @functools.cached_property
  def _text(self) -> tuple[Any, tokenizer_lib.Tokenizer]:
    if self._spec.checkpoint == RANDOM:
      tokenizer = tokenizer_lib.train_tokenizer(_RANDOM_TEXTS)
      return umt5.Umt5Encoder(_TINY.text_encoder, rngs=nnx.Rngs(1)), tokenizer
    tokenizer = tokenizer_lib.Tokenizer.load(self._root / "tokenizer")
    return released.load(self._root / "umt5", "umt5"), tokenizer


@functools.lru_cache(maxsize=1)
def load(spec: Spec) -> Encoder:
  """The encoder of this process, kept between shards."""
  return Encoder(spec)
