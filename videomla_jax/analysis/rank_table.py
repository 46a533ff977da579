"""The table of ranks and energies, layer by layer, and its files."""

from collections.abc import Iterable
from collections.abc import Iterator
import csv
import dataclasses
import io
import os
import pathlib
from typing import Any, Literal

from jaxtyping import Float
import numpy as np

from videomla_jax.conversion import low_rank
from videomla_jax.storage import atomic

Inputs = Literal["weights", "activations"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerSpectrum:
  """What was found of one layer.

  Attributes:
    checkpoint: Name of the network.
    layer: Number of the layer, from 0.
    kind: "latent" or "dense".
    inputs: "weights" for the matrix alone, "activations" for keys and values on
      real inputs.
    d_c: Channels of the content latent, 0 for dense attention.
    size: The highest rank that there could be.
    energy: Share of the energy that `rank` is for.
    spectrum: Singular values, descending.
  """

  checkpoint: str
  layer: int
  kind: str
  inputs: Inputs
  d_c: int
  size: int
  energy: float
  spectrum: Float[np.ndarray, "n"]

  @property
  def rank(self) -> int:
    """How many singular values hold the energy."""
    return low_rank.effective_rank(self.spectrum, energy=self.energy)

  def line(self, ranks: Iterable[int]) -> dict[str, Any]:
    """Returns the layer as a line of the table.

    Args:
      ranks: Ranks of which the kept energy and the error are told.
    """
    kept = {r: low_rank.energy_kept(self.spectrum, r) for r in ranks}
    return dict(
      checkpoint=self.checkpoint,
      layer=self.layer,
      kind=self.kind,
      inputs=self.inputs,
      d_c=self.d_c,
      highest_rank=self.size,
      rank=self.rank,
      rank_share=round(self.rank / self.size, 6),
      **{f"energy_at_{r}": round(k, 9) for r, k in kept.items()},
      **{
        f"error_at_{r}": round(max(1 - k, 0.0) ** 0.5, 9)
        for r, k in kept.items()
      },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Layers of one or several networks.

  Attributes:
    layers: What was found, network by network.
    ranks: Ranks of which the kept energy is told.
    energy: Share of the energy of the effective rank.
  """

  layers: tuple[LayerSpectrum, ...]
  ranks: tuple[int, ...]
  energy: float

  def groups(self) -> dict[tuple[str, str], list[LayerSpectrum]]:
    """Returns the layers by network and inputs."""
    found: dict[tuple[str, str], list[LayerSpectrum]] = {}
    for x in self.layers:
      found.setdefault((x.checkpoint, x.inputs), []).append(x)
    return found

  def lines(self) -> list[dict[str, Any]]:
    """Returns a line for every layer."""
    return [x.line(self.ranks) for x in self.layers]

  def summary(self) -> list[dict[str, Any]]:
    """Returns a line for every network and inputs: medians over layers."""
    return [*self._summary()]

  def _summary(self) -> Iterator[dict[str, Any]]:
    for (name, inputs), layers in self.groups().items():
      lines = [x.line(self.ranks) for x in layers]
      found = np.array([x["rank"] for x in lines])
      yield dict(
        checkpoint=name,
        kind=layers[0].kind,
        inputs=inputs,
        layers=len(layers),
        d_c=layers[0].d_c,
        highest_rank=layers[0].size,
        rank_median=float(np.median(found)),
        rank_least=int(found.min()),
        rank_most=int(found.max()),
        **{
          f"energy_at_{r}": round(
            float(np.median([x[f"energy_at_{r}"] for x in lines])), 6
          )
          for r in self.ranks
        },
      )

  def write(self, folder: str | os.PathLike[str]) -> list[str]:
    """Writes the lines and all singular values as CSV.

    Args:
      folder: Folder that exists.

    Returns:
      Names of the files.
    """
    values = (
      dict(
        checkpoint=x.checkpoint,
        inputs=x.inputs,
        layer=x.layer,
        index=i,
        singular_value=f"{value:.9g}",
      )
      for x in self.layers
      for i, value in enumerate(x.spectrum, 1)
    )
    files = {"layers.csv": self.lines(), "spectra.csv": [*values]}
    for name, lines in files.items():
      text = io.StringIO()
      writer = csv.DictWriter(text, [*lines[0]], lineterminator="\n")
      writer.writeheader()
      writer.writerows(lines)
      atomic.write_text(pathlib.Path(folder) / name, text.getvalue())
    return [*files]
