"""Wan-shaped networks trained on prepared clips, with tiny random networks."""

import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest

from tests import tiny_project
from tests import tiny_videos
from videomla_jax import prepare
from videomla_jax import train
from videomla_jax.conversion import release
from videomla_jax.conversion import to_latent
from videomla_jax.data import dataset
from videomla_jax.generation import mp4
from videomla_jax.models import released
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.runtime import metrics

TEXT = (20, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder with prepared data and a dense network like a converted release."""
  root = tmp_path_factory.mktemp("prepared")
  videos = tiny_videos.write(root / "videos", 5)
  config = tiny_videos.config(videos, root / "data", shard_size=1)
  config.test_fraction = 0.7
  prepare.prepare(config)
  sizes = wan_config.tiny(kind="dense", text_dim=TEXT[1], text_tokens=TEXT[0])
  released.save(root / "dense", wan.WanDiT(sizes, rngs=nnx.Rngs(0)))
  released.save(
    root / "vae", vae.WanVAE(vae_coders.tiny_vae(), rngs=nnx.Rngs(1))
  )
  latent = to_latent.Recipe(method="spectral", d_c=8, d_rope=8, d_q=16)
  with release.open_network(root / "dense") as (network, tensors):
    release.write_model(root / "latent", network, tensors, latent=latent)
  return root


def _config(root: pathlib.Path, stage: str, **networks: str) -> Any:
  config = tiny_project.config(stage, "wan_1p3b,videos=2")
  config.networks.update({n: str(root / p) for n, p in networks.items()})
  config.model.size = ""  # as it comes
  config.network.update(dtype="float32")
  config.data.update(
    root=str(root / "data"),
    num_frames=3,
    latent_shape=(4, 4, 4),
    text_shape=TEXT,
    batch_size=2,
    verify=True,
  )
  config.optim.update(steps=2, learning_rate=1e-3)
  config.mesh.update(data=1, fsdp=1)
  config.eval.update(every=2, batches=1)
  config.samples.update(every=2, num_steps=2, codec=str(root / "vae"))
  if stage != "pretraining":
    config.samples.seconds = 0.5
  config.checkpoint.every = 1
  return config


def _lines(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
  return [x for x in metrics.read_jsonl(folder) if name in x]


@pytest.mark.slow
def test_pretraining_and_teacher_forcing_read_clips(root) -> None:
  for stage, start in (("pretraining", "dense"), ("teacher_forcing", "latent")):
    config = _config(root, stage, model=start)
    train.train(config, str(root / stage))
    losses = [x["train/loss"] for x in _lines(root / stage, "train/loss")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    rates = _lines(root / stage, "perf/teraflops")
    assert min(x["perf/teraflops"] for x in rates) > 0
    held_out = [x for x in metrics.read_jsonl(root / stage) if "eval/loss" in x]
    assert [x["step"] for x in held_out] == [2]
    film = mp4.read_mp4(root / stage / "samples" / "step-0000002.mp4")[0]
    # The one held-out caption: a whole clip, or half a second.
    num_frames = 9 if stage == "pretraining" else 8
    assert film.shape == (num_frames, 32, 32, 3)
    model = released.load(root / stage / "model", "wan_dit")
    before = released.load(root / start, "wan_dit")
    moved = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max()),
      nnx.state(model, nnx.Param),
      nnx.state(before, nnx.Param),
    )
    assert max(jax.tree.leaves(moved)) > 0


def test_samples_need_the_vae(root, tmp_path) -> None:
  config = _config(root, "pretraining", model="dense")
  config.samples.codec = str(tmp_path / "none")
  with pytest.raises(ValueError, match="samples.codec="):
    train.train(config, str(tmp_path / "run"))


def test_a_corrupt_shard_ends_training_before_it_starts(root, tmp_path) -> None:
  folder = dataset.locate(root / "data")
  shard = sorted(folder.glob("*train.array_record-*"))[0]
  good = shard.read_bytes()
  shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
  try:
    config = _config(root, "pretraining", model="dense")
    with pytest.raises(ValueError, match="another sha256"):
      train.train(config, str(tmp_path))
  finally:
    shard.write_bytes(good)


def test_networks_must_read_the_text_that_is_there(root, tmp_path) -> None:
  sizes = wan_config.tiny(kind="dense", text_dim=TEXT[1], text_tokens=24)
  released.save(tmp_path / "other", wan.WanDiT(sizes, rngs=nnx.Rngs(0)))
  config = _config(root, "pretraining", model=str(tmp_path / "other"))
  with pytest.raises(ValueError, match="networks.model reads 24 tokens"):
    train.train(config, str(tmp_path / "run"))
