"""Tests from a checkpoint in VideoMLA's early layout to a model and a video."""

import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import early_release
from tests import tiny_project
from tests import tiny_release
from videomla_jax import convert
from videomla_jax import sample
from videomla_jax.models import released
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


def _run(source: pathlib.Path, output: pathlib.Path, **changes: Any) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  return tree_names.flat_dict(model_folder.load_model_state(path)[0])


def _write(path: pathlib.Path, rng: np.random.Generator) -> list[Any]:
  """A training checkpoint; returns the layers of its two generators."""
  plain, averaged = (early_release.draw_network(rng) for _ in range(2))
  inside = "model._fsdp_wrapped_module."
  tiny_release.write_pth(
    path,
    dict(
      generator={f"model.{n}": x for n, x in plain[0].items()},
      generator_ema={f"{inside}{n}": x for n, x in averaged[0].items()},
      step=np.asarray([7]),
    ),
  )
  return [plain[1], averaged[1]]


def test_a_checkpoint_of_the_release_becomes_a_video(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  folder = tmp_path / "stage3_la6_sink1"
  folder.mkdir()
  _write(folder / "model.pt", rng)
  tiny_release.write_wan(tmp_path / "Wan2.1-T2V-1.3B", rng)
  models = tmp_path / "models"
  _run(tmp_path / "Wan2.1-T2V-1.3B", models / "wan_1p3b")
  _run(
    folder / "model.pt",
    models / folder.name / "dit",
    use_ema=True,
    rope_ladder="fresh",
  )
  config = tiny_project.config("sample", folder.name)
  with config.unlocked():
    config.checkpoint = str(tmp_path / config.checkpoint)
    for part in ("vae", "umt5", "tokenizer"):
      config.parts[part] = str(tmp_path / config.parts[part])
  config.height, config.width, config.seconds = 32, 48, 33 / 16
  config.output.folder = str(tmp_path / "out")
  report = sample.sample(config)
  assert report["frames"] == 33
  assert report["cache_scalars_per_token_layer"] == 10 + 8


def test_the_averaged_generator_is_chosen_by_their_flag(tmp_path, seed) -> None:
  source = tmp_path / "model.pt"
  layers = _write(source, np.random.default_rng(seed))
  for use_ema, given in ((None, 1), (True, 1), (False, 0)):
    _run(source, tmp_path / "out", use_ema=use_ema, rope_ladder="wan")
    for n, layer in enumerate(layers[given]):
      np.testing.assert_array_equal(
        _arrays(tmp_path / "out")["blocks/self_attention/w_dq/kernel"][n],
        layer["q_down"],
      )
  _run(
    source,
    tmp_path / "out",
    use_ema=True,
    select="generator_ema",
    rope_ladder="wan",
  )
  with pytest.raises(ValueError, match="contradicts --nouse_ema"):
    _run(source, tmp_path / "o", use_ema=False, select="generator_ema")
  with pytest.raises(ValueError, match="contradicts --use_ema, .*give one"):
    _run(source, tmp_path / "o", use_ema=True, select="critic")
  assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("ladder", ["wan", "fresh"])
def test_the_ladder_is_asked_for_and_kept(ladder, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  file, _ = early_release.draw_network(rng)
  safetensors_numpy.save_file(file, tmp_path / "model.safetensors")
  source = tmp_path / "model.safetensors"
  with pytest.raises(ValueError, match="give --rope_ladder=fresh, which its"):
    _run(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  _run(source, tmp_path / "out", rope_ladder=ladder)
  config = released.config_at(tmp_path / "out")
  assert config.attention.rope_ladder == ladder
  # A folder knows its own, and an export takes it along.
  other = {"wan": "fresh", "fresh": "wan"}[ladder]
  with pytest.raises(ValueError, match=f"whose rope_ladder is '{ladder}'"):
    _run(tmp_path / "out", tmp_path / "o", rope_ladder=other)
  _run(tmp_path / "out", tmp_path / "exported", export="original")
  _run(tmp_path / "exported", tmp_path / "again")
  assert released.config_at(tmp_path / "again") == config
  with pytest.raises(ValueError, match=f"says that its rope_ladder.*{ladder}"):
    _run(tmp_path / "exported", tmp_path / "o", rope_ladder=other)


def test_biases_survive_an_export(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  file, _ = early_release.draw_network(rng, variant="linear", biased=True)
  safetensors_numpy.save_file(file, tmp_path / "model.safetensors")
  _run(tmp_path / "model.safetensors", tmp_path / "a", rope_ladder="fresh")
  _run(tmp_path / "a", tmp_path / "exported", export="original")
  _run(tmp_path / "exported", tmp_path / "b")
  a, b = _arrays(tmp_path / "a"), _arrays(tmp_path / "b")
  assert "blocks/self_attention/w_dkv/bias" in a and a.keys() == b.keys()
  for name, x in a.items():
    np.testing.assert_array_equal(b[name], x)


def test_a_ladder_needs_latent_attention(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  source = tmp_path / "given.safetensors"
  given = tiny_release.draw(tiny_release.dit_table(), rng)
  safetensors_numpy.save_file(given, source)
  with pytest.raises(ValueError, match="is of latent attention.*leave it out"):
    _run(source, tmp_path / "out", rope_ladder="fresh")
  with pytest.raises(ValueError, match="does not go with init='spectral'"):
    _run(source, tmp_path / "out", to="latent", rope_ladder="fresh")
  assert not (tmp_path / "out").exists()
  _run(
    source, tmp_path / "out", to="latent", init="random", rope_ladder="fresh"
  )
  config = released.config_at(tmp_path / "out")
  assert config.attention.rope_ladder == "fresh"
