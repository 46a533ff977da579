"""The data set of the colour world's latents, encoded once by a VAE.

Drawing is cheap and encoding is not, so training stages read latents of clips
that were drawn and encoded when a set was first asked for.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Int32
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from videomla_jax.models import vae as vae_lib
from videomla_jax.ops import convolution
from videomla_jax.small_world import codecs
from videomla_jax.small_world import stored_world
from videomla_jax.small_world import world as small_world
from videomla_jax.small_world.colour import motion
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world

# Clips that are drawn and encoded at a time. They do not depend on it.
_BATCH = {"cpu": 8}
_LARGE_BATCH = 64


@dataclasses.dataclass(kw_only=True)
class LatentsConfig(stored_world.StoredWorldConfig):
  """Says what a built data set contains, see `StoredWorldConfig`.

  The VAE's digest is part of the name, so that a set is of one VAE whatever
  its folder is called.

  Attributes:
    num_clips: Clips of the train split.
    num_test_clips: Clips of the test split; 0 is a fiftieth, at least 16.
    num_frames: Pixel frames of every clip, one more than a multiple of the
      VAE's stride.
    vae: Folder of the VAE.
  """

  num_clips: int = 5_000
  num_test_clips: int = 0
  num_frames: int = 81
  vae: str
  from_start: ClassVar[bool] = True
  clip_feature: ClassVar[str] = "latents"

  def __post_init__(self) -> None:
    self.num_test_clips = self.num_test_clips or max(16, self.num_clips // 50)
    super().__post_init__()
    stride = self.stored_vae.temporal_stride
    if (self.num_frames - 1) % stride:
      raise ValueError(
        f"clip_frames={self.num_frames} must be one more than a multiple of "
        f"{stride}, the frames of a latent; use "
        f"{self.num_frames - (self.num_frames - 1) % stride}."
      )
    self.name += f"_vae{self.stored_vae.digest[:16]}"

  @functools.cached_property
  def stored_vae(self) -> codecs.StoredVae:
    """The VAE, not loaded."""
    return codecs.open_vae(self.vae)

  @property
  def clip_length(self) -> int:
    """Latent frames of a stored clip."""
    return (self.num_frames - 1) // self.stored_vae.temporal_stride + 1

  def builder(self, data_dir: str) -> "ColourLatents":
    """Returns the builder of this data set.

    Args:
      data_dir: Root folder of TFDS data sets.
    """
    return ColourLatents(data_dir=data_dir, config=self)

  def tokenize(self, prompt: bytes) -> Int32[np.ndarray, "places"]:
    """Returns the token ids of a stored prompt.

    Args:
      prompt: Sentence that `prompts.parse` understands, UTF-8.
    """
    return _tokenize(prompt.decode())


class ColourLatents(stored_world.StoredWorld):
  """TFDS builder of encoded clips, see `StoredWorld`.

  A record has "latents" in float16, normalised, and "prompt". The clips are
  those of `dataset.ColourWorld` with the same seed.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    vae = config.stored_vae
    side = motion.SIZE // vae.spatial_stride
    return tfds.core.DatasetInfo(
      builder=self,
      description="Latents of handwritten digits in colour that bounce.",
      features=tfds.features.FeaturesDict(
        {
          "latents": tfds.features.Tensor(
            shape=(config.clip_length, side, side, vae.channels),
            dtype=np.float16,
            encoding="bytes",
          ),
          "prompt": tfds.features.Text(),
        }
      ),
    )

  def _generate_examples(
    self, split: str, num_clips: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    vae = config.stored_vae.load()
    batch = _BATCH.get(jax.default_backend(), _LARGE_BATCH)
    draw = _encoder(
      jax.random.fold_in(
        jax.random.key(config.seed), small_world.SPLITS.index(split)
      ),
      size=min(batch, num_clips),
      num_frames=config.num_frames,
      split=split,
    )
    with tqdm.tqdm(
      total=num_clips, desc=f"{split} latents", unit=" clips", mininterval=1.0
    ) as bar:
      for first in range(0, num_clips, batch):
        latents, choices = jax.device_get(draw(vae, first))
        _check_finite(latents, config.vae)
        for i in range(min(batch, num_clips - first)):
          prompt = words.prompt_of(choices[i]).text()
          yield first + i, {"latents": latents[i], "prompt": prompt}
          bar.update()


@functools.lru_cache(maxsize=2**16)  # each prompt comes in every epoch
def _tokenize(prompt: str) -> Int32[np.ndarray, "places"]:
  tokens = words.tokenize(prompt)
  tokens.setflags(write=False)  # shared by every example
  return tokens


def _encoder(
  key: Array, *, size: int, num_frames: int, split: str
) -> Callable[
  [vae_lib.WanVAE, int],
  tuple[Float[Array, "B T H W C"], Int32[Array, "B places"]],
]:
  """Returns what draws and encodes clips from a number on."""

  def draw(
    vae: vae_lib.WanVAE, first: Int32[Array, ""]
  ) -> tuple[Float[Array, "B T H W C"], Int32[Array, "B places"]]:
    clips = world.sample(
      key, size=size, num_frames=num_frames, split=split, first=first
    )
    return vae.encode(clips.video).astype(np.float16), clips.choices

  compiled = jax.jit(draw, compiler_options=convolution.CHANNELS_LAST)
  return lambda vae, first: compiled(vae, np.int32(first))


def _check_finite(latents: Float[np.ndarray, "B T H W C"], vae: str) -> None:
  """Refuses latents that float16 cannot hold."""
  if not np.isfinite(latents).all():
    raise ValueError(
      f"the VAE {vae!r} makes latents that are not finite in float16; train it "
      "again, or convert another one."
    )
