"""Folders of models of the colour world, which hold their VAE."""

import pathlib
import shutil

from flax import nnx
import jax
import numpy as np
import pytest

from tests import tiny_colour
from tests import tiny_project
from videomla_jax import convert
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
  tiny_colour.shrink(monkeypatch)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  return tiny_colour.write_vae(tmp_path_factory.mktemp("vae") / "vae")


def _equal(a: object, b: object) -> None:
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_moved_folder_is_the_model_with_its_vae(vae, tmp_path, seed) -> None:
  model = tiny_colour.video("latent", vae, seed)
  model_lib.save(tmp_path / "model", model, note="kept")
  shutil.move(tmp_path / "model", tmp_path / "moved")
  found = model_lib.load(tmp_path / "moved")
  # Equal structures, too: the path of a VAE is no part of them.
  _equal(found, model)
  assert found.codec.folder == tmp_path / "moved" / "vae"
  _equal(found.codec.load(), released.load(vae, "wan_vae", dtype="float32"))
  # Saving it over itself keeps the VAE.
  model_lib.save(tmp_path / "moved", found)
  assert model_lib.load(tmp_path / "moved").codec == model.codec


def test_no_weight_of_the_vae_is_one_of_the_model(vae, seed) -> None:
  model = tiny_colour.video("dense", vae, seed)
  parts = [model.dit, model.text]
  assert len(jax.tree.leaves(model)) == sum(
    len(jax.tree.leaves(part)) for part in parts
  )


def test_damage_of_the_vae_is_found_by_loading(vae, tmp_path, seed) -> None:
  model_lib.save(tmp_path / "model", tiny_colour.video("dense", vae, seed))
  file = max(
    (p for p in (tmp_path / "model/vae/params").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match="wrong checksum"):
    model_lib.load(tmp_path / "model")
  shutil.rmtree(tmp_path / "model/vae")
  with pytest.raises(ValueError, match="vae' is not a directory"):
    model_lib.load(tmp_path / "model")


def test_another_vae_is_not_saved_as_that_of_the_model(tmp_path, seed) -> None:
  folder = tiny_colour.write_vae(tmp_path / "vae")
  model = tiny_colour.video("dense", folder, seed)
  tiny_colour.write_vae(folder, seed=1)
  with pytest.raises(ValueError, match="another one than when this began"):
    model_lib.save(tmp_path / "model", model)
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
  "changes",
  [dict(temporal=(False, False, True)), dict(channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)],
)  # fmt: skip
def test_a_vae_with_other_latents_is_refused(tmp_path, seed, changes) -> None:
  folder = tiny_colour.write_vae(tmp_path / "vae", **changes)
  with pytest.raises(ValueError, match="need 4, 8 and 16; train one"):
    tiny_colour.video("dense", folder, seed)


def test_only_a_vae_is_a_vae(tmp_path, seed) -> None:
  with pytest.raises(ValueError, match="holds a 'video model'; give a folder"):
    codecs.open_vae(model_lib.checkpoint_path("shipped:small_dense"))
  sizes = wan_config.tiny(num_layers=1)
  released.save(tmp_path / "dit", wan.WanDiT(sizes, rngs=nnx.Rngs(seed)))
  with pytest.raises(ValueError, match="is no VAE; give the folder"):
    codecs.open_vae(tmp_path / "dit")


def test_conversion_keeps_the_vae(vae, tmp_path, seed) -> None:
  model_lib.save(tmp_path / "dense", tiny_colour.video("dense", vae, seed))
  options = convert.Options(
    source=str(tmp_path / "dense"), output=str(tmp_path / "latent"), to="latent"
  )
  convert.convert(options)
  latent = model_lib.load(tmp_path / "latent")
  assert latent.config.kind == "latent"
  assert latent.codec == codecs.open_vae(vae)


def test_prompts_are_those_of_the_world(vae, tmp_path, seed) -> None:
  model_lib.save(tmp_path / "model", tiny_colour.video("dense", vae, seed))
  source = sources.open_small(tmp_path / "model")
  assert (source.pixels, source.pixel_channels, source.fps) == ((64, 64), 3, 16)
  source.check(["on a plain black background, a slow red 3 moves left"])
  with pytest.raises(ValueError, match="has no background"):
    source.check(["a slow three moving horizontally"])
  held_out = source.model.config.of_world.held_out()
  text = source.embed(held_out, negative="")
  assert text.shape == (2 * len(held_out), 13, 8)
  assert not text[len(held_out) :].any()


def test_sizes_are_of_one_world(tmp_path, seed) -> None:
  values = tiny_project.video_config("dense").to_dict()
  assert model_lib.VideoModelConfig.from_dict(values).world == "moving_digits"
  del values["world"]  # as older folders
  assert model_lib.VideoModelConfig.from_dict(values).world == "moving_digits"
  with pytest.raises(ValueError, match="reads 4 words but prompts of"):
    model_lib.VideoModelConfig.from_dict(values | dict(world="colour_world"))
  with pytest.raises(ValueError, match="is unknown; use one of"):
    model_lib.VideoModelConfig.from_dict(values | dict(world="mars"))
