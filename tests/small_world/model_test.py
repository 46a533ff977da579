import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax.small_world import model as small_model
from videomla_jax.small_world import prompts


def test_padding_has_no_embedding() -> None:
  model = small_model.load("shipped:small_latent")
  tokens = np.array([[1, prompts.PADDING, 2, prompts.PADDING]])
  norms = np.abs(model.encode_text(jnp.asarray(tokens))).sum(-1)[0]
  assert (norms[1::2] == 0).all() and (norms[::2] > 0).all()


def test_only_folders_of_small_models_are_taken_for_them(
  tmp_path: pathlib.Path,
) -> None:
  folder = small_model.checkpoint_path("shipped:small_latent")
  assert small_model.is_model(folder)
  assert not small_model.is_model(tmp_path)
  with pytest.raises(ValueError, match="shipped are"):
    small_model.checkpoint_path("shipped:nothing")


def test_configs_of_earlier_versions_have_wans_ladder() -> None:
  fresh = dataclasses.replace(
    tiny_project.video_config("latent"), rope_ladder="fresh"
  )
  assert fresh.network.attention.rope_ladder == "fresh"
  stored = fresh.to_dict()
  assert small_model.VideoModelConfig.from_dict(stored) == fresh
  del stored["rope_ladder"]
  older = small_model.VideoModelConfig.from_dict(stored)
  assert older.network.attention.rope_ladder == "wan"
  with pytest.raises(ValueError, match="is of latent attention"):
    dataclasses.replace(fresh, kind="dense")
