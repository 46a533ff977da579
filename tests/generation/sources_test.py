"""Tests of where models come from: names, folders, and what they tell."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import sources
from videomla_jax.generation import wan_source
from videomla_jax.models import layers
from videomla_jax.small_world import model as model_lib

_PROMPTS = ["slow 1 vertical", "fast 2 diagonal"]


@pytest.mark.parametrize("name", ["small_latent", "small_dense"])
def test_shipped_model_tells_what_it_was_trained_on(name: str) -> None:
  source = sources.open_source(
    networks_lib.Networks(checkpoint=f"shipped:{name}", height=24, width=0)
  )
  assert isinstance(source, sources.Source)
  assert (source.pixels, source.pixel_channels) == ((24, 24), 1)
  assert (source.fps, source.shift) == (4, 2)
  assert source.window == tiny_project.WINDOW
  assert not source.distilled


def test_name_decides_what_is_opened(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  tiny_project.shrink(monkeypatch)
  model = tiny_project.video("latent", np.random.default_rng(seed))
  for stage in ("teacher_forcing", "consistency", "dmd"):
    model_lib.save(tmp_path / stage, model, training=dict(stage=stage))
    networks = networks_lib.Networks(checkpoint=str(tmp_path / stage))
    source = sources.open_source(networks)
    assert isinstance(source, sources.SmallSource)
    assert source.distilled == (stage != "teacher_forcing")
  random = networks_lib.Networks(checkpoint="random:wan_tiny")
  source = sources.open_source(random)
  assert isinstance(source, wan_source.WanSource)
  assert isinstance(source, sources.Source)
  # One named folder is enough to look for a converted release.
  parts = networks_lib.Folders(vae="elsewhere")
  networks = networks_lib.Networks(
    checkpoint=str(tmp_path / "dmd"), parts=parts
  )
  with pytest.raises(ValueError, match=r"lacks .*'elsewhere'"):
    sources.open_source(networks)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_folder_says_whether_its_stage_distils(
  tmp_path: pathlib.Path, seed: int, distilled: bool
) -> None:
  model = tiny_project.video("latent", np.random.default_rng(seed))
  about = dict(training=dict(stage="a stage to come"), distilled=distilled)
  model_lib.save(tmp_path / "model", model, **about)
  assert sources.open_small(tmp_path / "model").distilled == distilled


def test_guidance_of_small_models_runs_against_padding(
  seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  tiny_project.shrink(monkeypatch)
  model = tiny_project.video("latent", np.random.default_rng(seed))
  source = sources.SmallSource(model=model)
  plain = source.embed(_PROMPTS, negative=None)
  guided = source.embed(_PROMPTS, negative="whatever it says")
  padding = model.encode_text(jnp.zeros((2, 4), jnp.int32))
  np.testing.assert_array_equal(guided, jnp.concatenate([plain, padding]))
  with pytest.raises(ValueError, match="'cat'"):
    source.check(["slow cat vertical"])


@pytest.mark.parametrize("name", ["wan_tiny", "wan_tiny_dense"])
def test_layers_of_a_release_lie_apart_if_they_are_wanted(name: str) -> None:
  name = f"random:{name}"
  for apart in (False, True):
    asked = networks_lib.Networks(
      checkpoint=name, layers_apart=apart, products="float8_per_token"
    )
    source = sources.open_source(asked)
    # A second time, too, whatever the first one did with the weights.
    assert source.load().dit.layers_apart == apart
    assert source.load().dit.layers_apart == apart


def test_layers_apart_and_spared_memory_exclude_each_other() -> None:
  with pytest.raises(ValueError, match="layers_apart=True has no stack"):
    networks_lib.Networks(
      checkpoint="random:wan_tiny", layers_apart=True, spare_memory=True
    )


@pytest.mark.parametrize("name", ["shipped:small_latent", "random:wan_tiny"])
def test_products_are_of_every_model(name: str) -> None:
  asked = networks_lib.Networks(checkpoint=name, products="float8_per_tensor")
  dit = sources.open_source(asked).load().dit
  assert dit.config.products == "float8_per_tensor"
  assert isinstance(dit.blocks.ffn.into, layers.Float8Linear)
  with pytest.raises(ValueError, match="products='int4' is unknown; use one"):
    networks_lib.Networks(checkpoint=name, products="int4")
