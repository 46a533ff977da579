"""Shapes that training expects of prepared data, checked before it starts."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from videomla_jax.data import dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleShape:
  """Shapes of one training example.

  Attributes:
    latents: Latent frames, rows, columns and channels; None reads prompts
      alone.
    text: Tokens M, to which embeddings are padded, and their channels.
  """

  latents: tuple[int, int, int, int] | None
  text: tuple[int, int]


def check(
  folder: str | os.PathLike[str], shapes: ExampleShape
) -> dict[str, Any]:
  """Compares a data set with what training wants, by its report alone.

  Args:
    folder: Output of `prepare`.
    shapes: Shapes of the examples that training wants.

  Returns:
    The report.

  Raises:
    ValueError: If there is no data set, a shard is cut off, or sizes differ.
  """
  if not str(folder):
    raise ValueError(
      "data.root='' must name a folder of prepared clips; make one with python"
      " -m videomla_jax.prepare --config=configs/prepare.py."
    )
  report = dataset.read_report(folder)
  # Sizes find shards that were cut off. Digests would read every byte at each
  # start, so `data.verify` has to ask for them.
  dataset.verify(folder, digests=False)
  tokens, width = shapes.text
  if report["text_width"] != width or report["max_tokens"] > tokens:
    raise ValueError(
      f"data.root={str(folder)!r} has embeddings of up to"
      f" {report['max_tokens']} tokens of {report['text_width']} channels, but"
      f" data.text_shape={shapes.text}; use the text encoder of the network."
    )
  if shapes.latents is not None:
    _check_latents(folder, report["latent_shape"], shapes.latents)
  return report


def _check_latents(
  folder: str | os.PathLike[str],
  stored: Sequence[int] | None,
  wanted: tuple[int, ...],
) -> None:
  """Refuses latents of another size, or clips that are too short."""
  if stored is None:
    raise ValueError(
      f"data.root={str(folder)!r} has prompts and no clips, which is enough for"
      " stage 3 alone; prepare videos for this stage."
    )
  if tuple(stored[1:]) != wanted[1:]:
    raise ValueError(
      f"data.root={str(folder)!r} has latents of {tuple(stored[1:])} but"
      f" data.latent_shape={wanted[1:]}; prepare clips of that size, or change"
      " the config."
    )
  if stored[0] < wanted[0]:
    raise ValueError(
      f"data.root={str(folder)!r} has clips of {stored[0]} latent frames but"
      f" data.num_frames={wanted[0]}; use fewer, or prepare longer clips."
    )
