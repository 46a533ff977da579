"""Says what one stored record holds, and writes and reads it.

Latents are float16: they are of the order of one, so its 11 bits of mantissa
lose less than bfloat16 would. Embeddings are bfloat16, in which UMT5 computes
them, and have only their real tokens; they are stored as bit patterns, since
TFDS knows no bfloat16 without TensorFlow.
"""

import dataclasses
from typing import Any

from jaxtyping import Float
import numpy as np
import tensorflow_datasets as tfds

from videomla_jax.data import record_files
from videomla_jax.data import table
from videomla_jax.media import clips

_SCORES = ("aesthetic_score", "motion_score", "temporal_consistency_score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordShape:
  """Shapes of what the records of a data set hold.

  Attributes:
    latents: Latent frames, rows, columns and channels; None is a data set of
      prompts alone.
    text_width: Channels of an embedded token.
  """

  latents: tuple[int, int, int, int] | None
  text_width: int


def features(sizes: RecordShape) -> tfds.features.FeaturesDict:
  """Returns names and types of a record's fields.

  Unknown numbers are stored as NaN and unknown texts are empty.

  Args:
    sizes: Shapes of the records.
  """
  fields: dict[str, Any] = {
    "text": tfds.features.Tensor(
      shape=(None, sizes.text_width), dtype=np.uint16, encoding="bytes"
    ),
    "caption": tfds.features.Text(),
    "index": tfds.features.Scalar(dtype=np.int64),  # row of the table
  }
  if sizes.latents is not None:
    fields |= {
      "latents": tfds.features.Tensor(
        shape=sizes.latents, dtype=np.float16, encoding="bytes"
      ),
      "video": tfds.features.Text(),
      "camera_motion": tfds.features.Text(),
      "start": tfds.features.Scalar(dtype=np.float32),  # s, of this clip
      "height": tfds.features.Scalar(dtype=np.int32),  # of the file
      "width": tfds.features.Scalar(dtype=np.int32),
      "fps": tfds.features.Scalar(dtype=np.float32),
      "seconds": tfds.features.Scalar(dtype=np.float32),
      **{n: tfds.features.Scalar(dtype=np.float32) for n in _SCORES},
    }
  return tfds.features.FeaturesDict(fields)


def prompt_example(
  item: table.Item, text: Float[np.ndarray, "m E"]
) -> dict[str, Any]:
  """Returns the record of a prompt without video.

  Args:
    item: The prompt.
    text: Embeddings of its real tokens.
  """
  return {
    "text": record_files.pack(text),
    "caption": item.caption,
    "index": item.index,
  }


def clip_example(
  item: table.Item,
  text: Float[np.ndarray, "m E"],
  latents: Float[np.ndarray, "F H W C"],
  facts: clips.Facts,
  *,
  start: float | int,
) -> dict[str, Any]:
  """Returns the record of a clip.

  Args:
    item: Video that the clip is of, as it was listed.
    text: Embeddings of the caption's real tokens.
    latents: Normalised latents.
    facts: What the file says about itself.
    start: Second of the video where the clip begins.
  """
  return prompt_example(item, text) | {
    "latents": latents.astype(np.float16),
    "video": item.video,
    "camera_motion": item.camera_motion,
    "start": start,
    "height": facts.height,
    "width": facts.width,
    "fps": _or_nan(facts.fps),
    "seconds": _or_nan(facts.seconds),
    **{n: _or_nan(getattr(item, n)) for n in _SCORES},
  }


def _or_nan(value: float | int | None) -> float | int:
  return float("nan") if value is None else value
