"""Tests of `analyze`: networks of every kind, its files, and mistakes."""

import csv
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import early_release
from tests import tiny_project
from tests import tiny_release
from videomla_jax import analyze
from videomla_jax import convert
from videomla_jax.analysis import figures
from videomla_jax.conversion import moments


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> pathlib.Path:
  """A released DiT in three forms: as downloaded, converted, and latent."""
  folder = tmp_path_factory.mktemp("networks")
  tiny_release.write_converted(folder, np.random.default_rng())
  for d_c in (4, 8):
    convert.convert(
      tiny_release.options(
        source=str(folder / "wan" / "dit"),
        output=str(folder / f"latent_{d_c}"),
        to="latent",
        d_c=d_c,
      )
    )
  return folder


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Any:
  config = tiny_project.config("analyze")
  config.output, config.formats = str(tmp_path / "out"), ""
  return config


def test_shipped_models_are_told_layer_by_layer(
  config: Any, capsys: Any
) -> None:
  config.formats = "svg"
  report = analyze.analyze(config)
  dense, latent = report["summary"]
  # What the paper says of Wan holds for the small world: dense attention uses
  # most of its directions, and a latent all that it has.
  assert dense["kind"] == "dense" and dense["rank_least"] > 0.85 * 128
  assert latent["d_c"] == latent["highest_rank"] == 16
  assert latent["rank_least"] >= 15
  folder = pathlib.Path(config.output)
  assert json.loads((folder / "report.json").read_text()) == report
  lines = [*csv.DictReader((folder / "layers.csv").open())]
  assert [int(x["rank"]) for x in lines] == [
    x["rank"] for x in report["layers"]
  ]
  values = [*csv.DictReader((folder / "spectra.csv").open())]
  assert len(values) == 4 * 128 + 4 * 16
  drawn = {p.name for p in folder.glob("*.svg")}
  assert drawn == {"spectra.svg", "ranks.svg", "energies.svg"}
  assert "99% of the energy needs rank" in capsys.readouterr().out


def test_a_wan_folder_and_its_latents_with_real_inputs(
  config: Any, networks: pathlib.Path, tmp_path: pathlib.Path, seed: int
) -> None:
  rng, sizes = np.random.default_rng(seed), tiny_release.DIT
  tokens = str(tmp_path / "tokens.safetensors")
  x = rng.standard_normal((sizes.num_layers, 90, sizes.width))
  moments.save(tokens, [*x])
  config.checkpoints = "; ".join(
    str(networks / n) for n in ("wan", "latent_4", "latent_8")
  )
  config.activations, config.formats = tokens, "png"
  config.ranks = (2, 4)
  report = analyze.analyze(config)
  found = {(x["checkpoint"], x["inputs"]): x for x in report["summary"]}
  assert len(found) == 6
  for name, d_c in (("latent_4", 4), ("latent_8", 8)):
    assert found[name, "weights"]["highest_rank"] == d_c
    # A latent has no more directions on inputs than in its weights.
    assert found[name, "activations"]["rank_most"] <= d_c
  assert found["latent_4", "weights"]["energy_at_4"] == 1.0
  assert (pathlib.Path(config.output) / "budgets.png").exists()
  # A best product keeps at least as much as any other one of its rank.
  for x in report["layers"]:
    assert x["energy_at_2"] <= x["energy_at_4"] <= 1
    left = 1 - x["energy_at_4"]
    assert x["error_at_4"] == pytest.approx(left**0.5, abs=1e-4)


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("checkpoints", "shipped:small_latent; shipped:small_latent", "different"),
    ("checkpoints", "shipped:nothing", "does not exist"),
    ("checkpoints", "", "checkpoints="),
    ("checkpoints", "/nowhere/at/all", "/nowhere/at/all"),
    ("formats", "svg; bmp", "'bmp'"),
    ("select", "generator_ema", "select"),
    ("num_heads", 3, "num_heads"),
    ("ranks", (0,), "has 0; use 1"),
    ("energy", 1.5, "energy"),
    ("activations", "/nowhere/tokens.safetensors", "activations="),
  ],
)
def test_mistakes_are_said_before_anything_is_written(
  config: Any, key: str, value: Any, words: str
) -> None:
  config[key] = value
  with pytest.raises(ValueError, match=words):
    analyze.analyze(config)
  assert not [*pathlib.Path(config.output).glob("*")]


def test_inputs_of_another_width_and_other_networks_are_refused(
  config: Any, networks: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  tokens = str(tmp_path / "tokens.safetensors")
  moments.save(tokens, [np.ones((3, 5))])
  config.activations = tokens
  with pytest.raises(ValueError, match=r"\(3, 5\) and not \[tokens, 128\]"):
    analyze.analyze(config)
  config.activations = ""
  config.checkpoints = str(networks / "wan" / "vae")
  with pytest.raises(ValueError, match="give a DiT"):
    analyze.analyze(config)


@pytest.mark.parametrize(("number", "refused"), [(0.0, False), (np.nan, True)])
def test_layers_of_zeros_are_drawn_and_others_than_numbers_refused(
  config: Any, tmp_path: pathlib.Path, seed: int, number: float, refused: bool
) -> None:
  tensors = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  for name, x in tensors.items():
    if ".1.self_attn." in name:
      tensors[name] = np.full_like(x, number)
  config.checkpoints = str(tmp_path / "dit.safetensors")
  safetensors_numpy.save_file(tensors, config.checkpoints)
  with pytest.raises(ValueError, match="number of heads"):
    analyze.analyze(config)
  config.formats, config.num_heads = "svg", tiny_release.HEADS
  if refused:
    with pytest.raises(ValueError, match="of layer 1 that are not finite"):
      analyze.analyze(config)
    return
  report = analyze.analyze(config)
  assert [x["rank"] for x in report["layers"]][1] == 1
  # JSON has no words for what is no number.
  text = (pathlib.Path(config.output) / "report.json").read_text()
  json.loads(text, parse_constant=pytest.fail)


def test_a_checkpoint_of_the_authors_needs_no_ladder(
  config: Any, tmp_path: pathlib.Path, seed: int
) -> None:
  tensors, _ = early_release.draw_network(np.random.default_rng(seed))
  path = tmp_path / "model.pt"
  tiny_release.write_pth(path, dict(generator_ema=tensors))
  config.checkpoints = str(path)
  (found,) = analyze.analyze(config)["summary"]
  assert found["kind"] == "latent"
  assert found["d_c"] == found["highest_rank"] > 0


def test_without_matplotlib_tables_are_left(
  config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  config.formats = "svg"

  def absent(name: str) -> Any:
    raise ImportError(name)

  monkeypatch.setattr(figures.importlib, "import_module", absent)
  with pytest.raises(ValueError, match='--config.formats=""'):
    analyze.analyze(config)
  config.formats = ""
  assert analyze.analyze(config)["summary"]
