"""Latents are encoded once for each VAE, and belong to their prompts."""

import pathlib

import jax
import numpy as np
import pytest

from tests import tiny_colour
from videomla_jax.models import released
from videomla_jax.small_world import builder
from videomla_jax.small_world import loader
from videomla_jax.small_world.colour import latents
from videomla_jax.small_world.colour import words
from videomla_jax.small_world.colour import world


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("latents")
  tiny_colour.write_vae(root / "vae")
  builder.open_split(root, split="train", config=_config(root))
  return root


def _config(root: pathlib.Path, vae: str = "vae", **changes):
  values = dict(num_clips=10, num_test_clips=2, num_frames=9, seed=3)
  return latents.LatentsConfig(vae=str(root / vae), **(values | changes))


def test_records_are_encoded_clips_of_their_seed(root) -> None:
  vae = released.load(root / "vae", "wan_vae")
  for number, split in enumerate(("train", "test")):
    records = builder.open_split(root, split=split, config=_config(root))
    key = jax.random.fold_in(jax.random.key(3), number)
    clips = world.sample(key, size=10, num_frames=9, split=split)
    wanted = np.asarray(vae.encode(clips.video))
    by_prompt = {
      words.prompt_of(np.asarray(clips.choices[i])).text(): wanted[i]
      for i in range(len(wanted))
    }
    assert len(records) == (10, 2)[number]
    for record in records:
      expected = by_prompt[record["prompt"].decode()]
      assert record["latents"].dtype == np.float16
      # Half a unit in the last place of float16, and another sum's order.
      np.testing.assert_allclose(
        record["latents"], expected, rtol=2**-10, atol=1e-4
      )


def test_examples_are_the_first_frames(root, seed) -> None:
  config = _config(root)
  stored = builder.open_split(root, split="train", config=config)
  firsts = {x["latents"][:2].tobytes(): x["prompt"] for x in stored}
  batches = iter(
    loader.make_loader(
      root,
      batch_size=4,
      num_frames=2,
      seed=seed,
      prompt_dropout=0.0,
      word_dropout=0.0,
      config=config,
    )
  )
  batch = next(batches)
  assert batch["latents"].shape == (4, 2, 8, 8, 16)
  for clip, tokens in zip(batch["latents"], batch["tokens"], strict=True):
    prompt = firsts[clip.tobytes()].decode()
    np.testing.assert_array_equal(tokens, words.tokenize(prompt))
  with pytest.raises(ValueError, match="from 1 to the 3 frames"):
    loader.make_loader(root, batch_size=2, num_frames=4, seed=0, config=config)


def test_a_set_is_of_one_vae_wherever_it_lies(root, tmp_path) -> None:
  with pytest.raises(ValueError, match="pass build=True"):
    tiny_colour.write_vae(root / "other", seed=1)
    builder.open_split(
      root, split="train", config=_config(root, "other"), build=False
    )
  (root / "vae").rename(root / "renamed")
  try:
    config = _config(root, "renamed")
    assert builder.open_split(root, split="test", config=config, build=False)
  finally:
    (root / "renamed").rename(root / "vae")


def test_clips_must_fit_the_stride(root) -> None:
  with pytest.raises(ValueError, match="clip_frames=12 must be one more .* 9"):
    _config(root, num_frames=12)
  assert _config(root, num_clips=2000, num_test_clips=0).num_test_clips == 40
