"""Figures of spectra and ranks, which matplotlib draws without a screen."""

from collections.abc import Sequence
import importlib
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from videomla_jax.analysis import rank_table
from videomla_jax.storage import atomic

# Colours that people with any kind of colour vision tell apart (Okabe and Ito).
_COLOURS = (
  *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
  *("#000000", "#F0E442"),
)
_STYLES = {"weights": "-", "activations": "--"}
FORMATS = ("svg", "png", "pdf")


class Drawn(NamedTuple):
  """A figure and the name of its file, without an ending."""

  name: str
  figure: Any


def check_installed() -> None:
  """Raises `ValueError` if there is nothing to draw with."""
  try:
    importlib.import_module("matplotlib")
  except ImportError as error:
    raise ValueError(
      "figures need matplotlib; install the extra notebook, or use "
      '--config.formats="".'
    ) from error


def _axes(
  columns: int, *, height: float = 3.2, width: float = 4.2
) -> tuple[Any, list[Any]]:
  # Nothing here has global state, unlike `pyplot`.
  figure = importlib.import_module("matplotlib.figure").Figure(
    figsize=(width * columns, height), layout="constrained"
  )
  axes = [*figure.subplots(1, columns, squeeze=False)[0]]
  for one in axes:
    one.grid(alpha=0.25)
    one.spines[["top", "right"]].set_visible(False)
  return figure, axes


def spectra(table: rank_table.Table) -> Drawn:
  """Draws the singular values of every layer, a panel for each network."""
  groups = table.groups()
  figure, axes = _axes(len(groups))
  maps = importlib.import_module("matplotlib").colormaps
  colour = maps["viridis"].resampled(256)
  for one, (title, layers) in zip(axes, groups.items(), strict=True):
    for layer in layers:
      values = layer.spectrum / max(layer.spectrum[0], 1e-300)
      depth = layer.layer / max(len(layers) - 1, 1)
      one.plot(
        np.arange(1, len(values) + 1),
        np.maximum(values, 1e-8),
        color=colour(0.92 * depth),
        linewidth=1,
        label=f"layer {layer.layer}" if depth in (0, 1) else None,
      )
    if layers[0].d_c:
      _mark(one, layers[0].d_c, f"d_c = {layers[0].d_c}")
    one.set(
      title=", ".join(title),
      xlabel="index of the singular value",
      ylabel="singular value / largest",
      yscale="log",
    )
    one.xaxis.get_major_locator().set_params(integer=True)
    one.legend(fontsize=8)
  return Drawn("spectra", figure)


def _mark(axes: Any, x: int, text: str) -> None:
  axes.axvline(x, color="0.35", linewidth=1, linestyle=":")
  axes.annotate(
    text,
    (x, 0.98),
    xycoords=("data", "axes fraction"),
    fontsize=8,
    rotation=90,
    ha="right",
    va="top",
  )


def _styled(table: rank_table.Table) -> dict[tuple[str, str], dict[str, Any]]:
  """Gives every network a colour, and every kind of inputs a kind of line."""
  names = [*dict.fromkeys(name for name, _ in table.groups())]
  return {
    (name, inputs): dict(
      color=_COLOURS[names.index(name) % len(_COLOURS)],
      linestyle=_STYLES[inputs],
      label=f"{name}, {inputs}",
    )
    for name, inputs in table.groups()
  }


def ranks(table: rank_table.Table) -> Drawn:
  """Draws the rank that the energy needs, layer by layer."""
  figure, (axes,) = _axes(1, width=6.0)
  styles = _styled(table)
  for group, layers in table.groups().items():
    axes.plot(
      [x.layer for x in layers],
      [x.rank for x in layers],
      marker="o",
      markersize=3,
      **styles[group],
    )
  for d_c in sorted({x.d_c for x in table.layers if x.d_c}):
    axes.axhline(d_c, color="0.5", linewidth=1, linestyle=":")
    axes.annotate(
      f"d_c = {d_c}",
      (1, d_c),
      xycoords=("axes fraction", "data"),
      fontsize=8,
      ha="right",
      va="bottom",
    )
  axes.set(
    xlabel="layer",
    ylabel=f"rank of {table.energy:.0%} of the energy",
    ylim=(0, None),
  )
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.legend(fontsize=8)
  return Drawn("ranks", figure)


def energies(table: rank_table.Table) -> Drawn:
  """Draws the energy that a rank keeps and the error that is left."""
  figure, (kept, error) = _axes(2)
  styles = _styled(table)
  for group, layers in table.groups().items():
    most = min(len(x.spectrum) for x in layers)
    shares = np.stack(
      [
        np.cumsum(x.spectrum**2)[:most] / max(np.sum(x.spectrum**2), 1e-300)
        for x in layers
      ]
    )
    x = np.arange(1, most + 1)
    for axes, y in (
      (kept, shares),
      (error, np.sqrt(np.maximum(1 - shares, 0))),
    ):
      axes.plot(x, np.median(y, axis=0), **styles[group])
      axes.fill_between(
        x, y.min(0), y.max(0), color=styles[group]["color"], alpha=0.15
      )
  kept.set(xlabel="rank", ylabel="energy kept", ylim=(0, 1.02))
  error.set(xlabel="rank", ylabel="relative error", ylim=(0, 1.02))
  for axes in (kept, error):
    for rank in table.ranks:
      axes.axvline(rank, color="0.6", linewidth=0.8, linestyle=":")
  kept.legend(fontsize=8, title="median, and all layers")
  return Drawn("energies", figure)


def budgets(table: rank_table.Table) -> Drawn | None:
  """Draws occupied ranks over the ranks that latents allow, if they differ."""
  latent = {g: x for g, x in table.groups().items() if x[0].d_c}
  if len({x[0].d_c for x in latent.values()}) < 2:
    return None
  figure, (axes,) = _axes(1)
  largest = max(x[0].d_c for x in latent.values())
  axes.plot([0, largest], [0, largest], color="0.5", linestyle=":")
  styles = _styled(table)
  for group, layers in latent.items():
    found = np.array([x.rank for x in layers])
    middle = np.median(found)
    spread = [[middle - found.min()], [found.max() - middle]]
    style = {k: v for k, v in styles[group].items() if k != "linestyle"}
    axes.errorbar(
      layers[0].d_c, middle, yerr=spread, fmt="o", capsize=3, **style
    )
  axes.set(
    xlabel="d_c", ylabel=f"rank of {table.energy:.0%} of the energy",
    xlim=(0, None), ylim=(0, None),
  )  # fmt: skip
  axes.legend(fontsize=8, title="median, and all layers")
  return Drawn("budgets", figure)


def write(
  table: rank_table.Table,
  folder: str | os.PathLike[str],
  formats: Sequence[str],
) -> list[str]:
  """Writes every figure that the table has lines for.

  Args:
    table: What was found.
    folder: Folder that exists.
    formats: Names in `FORMATS`.

  Returns:
    Names of the files.
  """
  if not formats:
    return []
  drawn = (spectra(table), ranks(table), energies(table), budgets(table))
  names = []
  for one in filter(None, drawn):
    for ending in formats:
      names.append(f"{one.name}.{ending}")
      with atomic.replacing(pathlib.Path(folder) / names[-1]) as temporary:
        # No file depends on the day, so equal results are equal files.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        one.figure.savefig(
          temporary, format=ending, dpi=150, metadata=metadata.get(ending)
        )
  return names
