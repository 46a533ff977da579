"""Measures which ranks attention occupies, in weights and on real inputs.

  python -m videomla_jax.analyze --config=configs/analyze.py \
    --config.checkpoints="shipped:small_dense; shipped:small_latent"
  python -m videomla_jax.analyze --config=configs/analyze.py \
    --config.checkpoints=Wan2.1-T2V-1.3B \
    --config.activations=activations.safetensors

For every layer: the singular values of what makes keys and values, the rank of
99 % of the energy, and what smaller ranks keep (docs/method.md, section 16).
Writes layers.csv, spectra.csv, report.json and figures. A network is read layer
by layer, and none is loaded as a whole.
"""

from collections.abc import Iterator
import dataclasses
import json
import time
from typing import Annotated, Any

import numpy as np

from videomla_jax.analysis import attention_layers
from videomla_jax.analysis import figures
from videomla_jax.analysis import operators
from videomla_jax.analysis import rank_table
from videomla_jax.conversion import moments
from videomla_jax.generation import unused
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

# The latent sizes of the paper's ablation and its own, as shares of the width.
_SHARES = (24, 12, 8, 6, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
  """What is analysed; the fields are the keys of `configs/analyze.py`.

  Attributes:
    checkpoints: Networks, dense or latent: small models, model folders,
      releases of Wan, or files of a DiT.
    select: Name of the network inside training checkpoints.
    num_heads: Heads of DiTs in files whose shapes do not tell them; None where
      they do.
    activations: File of inputs that `calibrate` wrote, of networks of the same
      width and depth; empty analyses weights only.
    energy: Share of the energy that the effective rank holds.
    ranks: Ranks of which the kept energy is told; without any, those of the
      paper's ablation at this width.
    formats: Endings of figures, some of "svg", "png" and "pdf"; none draws
      nothing.
    output: Folder of the results.
  """

  checkpoints: tuple[config_values.Path, ...]
  select: str
  num_heads: Annotated[int | None, config_values.Range(1, 2**20)]
  activations: config_values.Path
  energy: Annotated[float, config_values.Range(0.01, 0.999999)]
  ranks: tuple[int, ...]
  formats: tuple[str, ...]
  output: config_values.Path

  def __post_init__(self) -> None:
    names = [*map(attention_layers.name_of, self.checkpoints)]
    if not all(names) or len(set(names)) < len(names):
      raise ValueError(
        f"checkpoints={list(self.checkpoints)} must be networks with different "
        "last names, which tables and figures show; rename a folder."
      )
    if bad := [r for r in self.ranks if not 1 <= r <= 2**20]:
      raise ValueError(f"ranks={list(self.ranks)} has {bad[0]}; use 1 or more.")
    if bad := sorted({*self.formats} - {*figures.FORMATS, ""}):
      raise ValueError(
        f"formats={list(self.formats)} has {bad[0]!r}; use some of "
        f"{list(figures.FORMATS)}."
      )
    if any(self.formats):
      figures.check_installed()


def analyze(config: config_reader.Values) -> dict[str, Any]:
  """Measures the ranks of all networks and writes what was found.

  Args:
    config: Values of the keys in `configs/analyze.py`.

  Returns:
    The report: a summary for each network, and a line for each layer.

  Raises:
    ValueError: If a network or the file of activations cannot be read, or they
      do not belong together.
  """
  request = config_reader.read(Analysis, config)
  if all(map(attention_layers.is_folder_of_ours, request.checkpoints)):
    unused.refuse(
      dict(select=request.select, num_heads=request.num_heads),
      why="on model folders, which hold one network and all of its sizes",
    )
  # What cannot be written would cost the whole work.
  folder = output_folder.check(request.output)
  started = time.perf_counter()
  layers = [
    layer for path in request.checkpoints for layer in _layers(request, path)
  ]
  widest = max(x.size for x in layers)
  table = rank_table.Table(
    layers=tuple(layers),
    ranks=request.ranks or tuple(max(widest // s, 1) for s in _SHARES),
    energy=request.energy,
  )
  files = table.write(folder)
  files += figures.write(table, folder, [*filter(None, request.formats)])
  report = dict(
    energy=request.energy,
    seconds=round(time.perf_counter() - started, 2),
    summary=table.summary(),
    layers=table.lines(),
  )
  atomic.write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
  for line in table.summary():
    print(_said(line, request.energy), flush=True)
  print(f"{folder}: report.json, {', '.join(files)}", flush=True)
  return report


def _layers(request: Analysis, path: str) -> Iterator[rank_table.LayerSpectrum]:
  """Yields what is found of every layer of a network."""
  name = attention_layers.name_of(path)
  with attention_layers.open_layers(
    path, select=request.select, num_heads=request.num_heads
  ) as network:
    attention, count = network.config.attention, network.config.num_layers
    with progress_bar.Progress(count, name, unit="layer") as progress:
      for n in range(count):
        parameters = network.read(n)
        _check_finite(parameters, path, n)
        operator = operators.operator_of(parameters)
        found = {"weights": operator.spectrum()}
        if request.activations:
          tokens = moments.load(request.activations, n)
          _check_width(request, tokens, attention.width)
          found["activations"] = operators.spectrum_on(parameters, tokens)
        for inputs, spectrum in found.items():
          yield rank_table.LayerSpectrum(
            checkpoint=name,
            layer=n,
            kind=attention.kind,
            inputs=inputs,  # type: ignore[arg-type]
            d_c=attention.d_c if attention.kind == "latent" else 0,
            size=operator.size,
            energy=request.energy,
            spectrum=spectrum,
          )
        progress.update(1)


def _check_finite(
  parameters: attention_layers.Parameters, path: str, layer: int
) -> None:
  """Refuses weights that have no singular values."""
  for name, x in parameters.items():
    if not np.isfinite(x).all():
      raise ValueError(
        f"checkpoint={path!r} has numbers in {name!r} of layer {layer} that "
        "are not finite; give a network that was trained to its end."
      )


def _check_width(request: Analysis, tokens: moments.Tokens, width: int) -> None:
  if tokens.shape[1:] != (width,):
    raise ValueError(
      f"activations={request.activations!r} has tokens of shape "
      f"{tokens.shape} and not [tokens, {width}]; write them with "
      "python -m videomla_jax.calibrate for this network."
    )


def _said(line: dict[str, Any], energy: float) -> str:
  """Says a line of the summary in words."""
  kept = ", ".join(
    f"{value:.1%} at {key.removeprefix('energy_at_')}"
    for key, value in line.items()
    if key.startswith("energy_at_")
  )
  return (
    f"{line['checkpoint']}, {line['inputs']}: {energy:.0%} of the energy needs "
    f"rank {line['rank_median']:.0f} of {line['highest_rank']} "
    f"({line['rank_least']} to {line['rank_most']}); kept {kept}"
  )


if __name__ == "__main__":
  cli.run(analyze)
