"""Training a VAE: to the end, across a stop, and what is refused."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import train_vae
from videomla_jax.autoencoding import objective
from videomla_jax.autoencoding import run
from videomla_jax.autoencoding import settings
from videomla_jax.generation import mp4
from videomla_jax.models import released
from videomla_jax.models import vae as vae_lib
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import metrics
from videomla_jax.training import interrupts


@pytest.fixture
def config(tmp_path: pathlib.Path, seed: int) -> Any:
  """Four steps of a tiny VAE on a short film."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (30, 2, 2, 3), dtype=np.uint8)
  (tmp_path / "films").mkdir()
  video = small.repeat(8, 1).repeat(8, 2)
  mp4.write_mp4(tmp_path / "films" / "a.mp4", video, fps=16)
  config = tiny_project.config("vae", "films,runlocal")
  config.data.films = str(tmp_path / "films")
  config.data.update(num_frames=3, height=8, width=8)
  config.unlock()
  config.network.update(
    multipliers=(1, 1), temporal=(True,), channels=2, width=2
  )
  return config.lock()


def _leaves(path: pathlib.Path) -> list[np.ndarray]:
  return [*map(np.asarray, jax.tree.leaves(released.load(path, "wan_vae")))]


def test_a_run_hands_on_a_vae_that_encodes_and_goes_on_after_a_stop(
  config, tmp_path, monkeypatch, seed
) -> None:
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  found = train_vae.train_vae(config, str(whole))
  vae = released.load(whole / "model", "wan_vae")
  assert np.isfinite(found.psnr) and found.chunked < 1e-5
  assert max(map(abs, vae.config.mean)) > 0  # measured
  rng = np.random.default_rng(seed)
  video = rng.integers(0, 256, (1, 3, 8, 8, 3), dtype=np.uint8)
  assert vae.decode(vae.encode(jnp.asarray(video))).shape == video.shape
  lines = metrics.read_jsonl(whole)
  assert [x["step"] for x in lines] == [2, 4, 4]
  assert {"vae/kl", "vae/temporal", "perf/step_seconds"} <= lines[0].keys()
  assert lines[-1]["eval/psnr"] == pytest.approx(found.psnr, abs=1e-3)
  assert [p.name for p in (whole / "samples").iterdir()] == ["step-0000004.png"]
  assert json.loads((whole / "quality.json").read_text())["steps"] == 4
  # The same with a stop between its two calls.
  pending = interrupts.StopRequest.pending
  monkeypatch.setattr(
    interrupts.StopRequest, "pending", lambda self, step: step == 2
  )
  with pytest.raises(SystemExit):
    train_vae.train_vae(config, str(parts))
  assert not (parts / "model").exists()
  monkeypatch.setattr(interrupts.StopRequest, "pending", pending)
  train_vae.train_vae(config, str(parts))
  for a, b in zip(
    _leaves(whole / "model"), _leaves(parts / "model"), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  # A finished run has nothing left to do.
  train_vae.train_vae(config, str(parts))
  # Another run does not go on here, but one that only logs more often does.
  config.every.log = 4
  config.loss.kl = 0.5
  with pytest.raises(ValueError, match="loss.kl=0.0001"):
    train_vae.train_vae(config, str(parts))


def test_a_new_vae_tells_pictures_apart_before_it_is_trained(
  config, seed
) -> None:
  config.seed = seed % 1000
  config.unlock()
  # As deep as Wan's, since every layer takes its share.
  config.network.update(
    multipliers=(1, 1, 1, 1), temporal=(False, True, True), width=4
  )
  config.data.update(num_frames=5, height=16, width=16)
  vae = run.new_vae(config_reader.read(settings.Settings, config))
  black = jnp.zeros((1, 5, 16, 16, 3), jnp.uint8)
  state = vae.start_encode(1, 16, 16)
  pixels = lambda video: video.astype(jnp.float32) / 127.5 - 1
  mean, log_variance, _ = vae.moments(pixels(black), state)
  other, *_ = vae.moments(pixels(black + 255), state)
  # Latents of black and white are further apart than the noise of both.
  noise = np.exp(0.5 * np.asarray(log_variance)).mean()
  assert np.abs(np.asarray(other - mean)).mean() > noise
  # And the decoder turns them into different pixels.
  dark, light = (
    objective.reconstruct(vae, vae.normalise(x)) for x in (mean, other)
  )
  assert np.abs(np.asarray(light - dark)).mean() > 0.01


def test_a_decoder_alone_is_trained_from_a_folder(config, tmp_path) -> None:
  train_vae.train_vae(config, str(tmp_path / "first"))
  before = released.load(tmp_path / "first" / "model", "wan_vae")
  with config.unlocked():
    config.images.steps = 0
    config.network.update(
      start=str(tmp_path / "first" / "model"),
      decoder_only=True,
      **dict.fromkeys(("width", "channels", "num_blocks"), 0),
      **dict.fromkeys(("multipliers", "temporal"), ()),
    )
  train_vae.train_vae(config, str(tmp_path / "second"))
  after = released.load(tmp_path / "second" / "model", "wan_vae")
  assert after.config == before.config
  same = lambda a, b: all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
  assert same(after.encoder, before.encoder) and same(after.quant, before.quant)
  assert not same(after.decoder, before.decoder)


@pytest.mark.parametrize(
  ("group", "key", "value", "words"),
  [
    ("network", "decoder_only", True, "network.start, which is empty"),
    ("network", "start", "missing", "width=2 has no effect with network.start"),
    ("network", "temporal", (True, True), "one entry per halving"),
    ("data", "kind", "photos", "data.kind='photos' is unknown"),
    ("data", "films", "", "names a folder of videos"),
    ("data", "num_frames", 1, "num_frames=1 must be at least 2"),
    ("data", "num_frames", 4, "must have one more than a multiple of 2"),
    ("data", "height", 7, "height=7 must be a positive multiple of 2"),
    ("every", "log", 3, "every.log=3 must be a multiple"),
    ("optim", "accumulate", 2, "accumulate=2 is not offered"),
    ("optim", "ema_decay", 0.0, "keeps no average"),
    ("optim", "steps", 1, "must exceed"),
  ],
)
def test_mistakes_are_one_sentence(
  config, tmp_path, monkeypatch, group, key, value, words
) -> None:
  monkeypatch.setattr(run.programs, "start", None)  # nothing is compiled
  config[group][key] = value
  with pytest.raises(ValueError, match=words):
    train_vae.train_vae(config, str(tmp_path / "run"))


def test_updates_that_are_no_numbers_end_the_run(
  config, tmp_path, monkeypatch
) -> None:
  loss = objective.loss

  def broken(*arguments, **how):
    total, terms = loss(*arguments, **how)
    return total * float("nan"), terms

  monkeypatch.setattr(objective, "loss", broken)
  config.optim.max_skipped = 2
  with pytest.raises(ValueError, match="not finite in 2 steps in a row"):
    train_vae.train_vae(config, str(tmp_path / "run"))
  # What they were given is kept, and no state of theirs.
  names = [p.name for p in (tmp_path / "run" / "skipped").iterdir()]
  assert sorted(names) == [f"step-{n}-process-0.npz" for n in (2, 4)]
  assert not [*(tmp_path / "run" / "checkpoints").glob("[0-9]*")]


@pytest.mark.parametrize("variant", ["world", "films,start=models/vae"])
def test_sizes_are_those_that_the_config_says(variant: str) -> None:
  asked = config_reader.read(
    settings.Settings, tiny_project.config("vae", variant)
  )
  if asked.network.start:
    assert not asked.network.width
    return
  leaves = jax.tree.leaves(vae_lib.abstract(asked.network.config()))
  count = sum(x.size for x in leaves)
  text = (tiny_project.CONFIGS / "vae.py").read_text()
  assert f"{count / 1e6:.2f} million parameters" in text
  assert asked.network.config().spatial_stride == 8
