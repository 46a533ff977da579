"""The colour world through all stages, with tiny random networks."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny_colour
from tests import tiny_project
import videomla_jax
from videomla_jax import convert
from videomla_jax import sample
from videomla_jax import train
from videomla_jax.generation import mp4
from videomla_jax.runtime import metrics
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib
from videomla_jax.training import resumption
from videomla_jax.training.stages import table

PROMPT = "on a plain navy background, a slow red 3 moves left"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
  tiny_colour.shrink(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("colour")
  tiny_colour.write_vae(root / "vae")
  return root


def _config(root: pathlib.Path, stage: str, arg: str = "", **networks) -> Any:
  config = tiny_project.config(
    stage, f"world,runlocal,steps=3,vae={root / 'vae'}{arg}"
  )
  config.data.update(root=str(root / "data"), num_clips=8)
  config.networks.update({n: str(root / p) for n, p in networks.items()})
  config.checkpoint.every = 1
  return config


@pytest.mark.slow
def test_every_stage_trains_and_the_last_model_is_complete(root) -> None:
  first = dict(model="pretraining/model")
  jump = dict(model="consistency/model", real=first["model"])
  for name, networks in (
    ("images", {}),
    ("pretraining", dict(model="images/model")),
    ("teacher_forcing", dict(model="converted")),
    ("consistency", dict.fromkeys(("model", "teacher"), "teacher_forcing/model")),
    ("dmd", jump | dict(critic=first["model"])),
  ):  # fmt: skip
    images = name == "images"
    stage, arg = ("pretraining", ",images") if images else (name, "")
    train.train(_config(root, stage, arg, **networks), str(root / name))
    lines = metrics.read_jsonl(root / name)
    assert np.isfinite(
      [x["train/loss"] for x in lines if "train/loss" in x]
    ).all()
    film = mp4.read_mp4(root / name / "samples" / "step-0000003.mp4")[0]
    # A whole clip of one or six latent frames, or two seconds.
    frames = {"images": 1, "pretraining": 21}.get(name, 32)
    assert film.shape == (frames, 256, 256, 3)
    if name == "pretraining":
      convert.convert(
        convert.Options(
          source=str(root / first["model"]),
          output=str(root / "converted"),
          to="latent",
        )
      )
  model = model_lib.load(root / "dmd" / "model")
  assert model.codec == codecs.open_vae(root / "vae")
  (root / "dmd" / "model").rename(root / "moved")
  made = videomla_jax.generate(
    videomla_jax.load(root / "moved"), PROMPT, seconds=1.0
  )
  assert made.pixels.shape == (1, 16, 64, 64, 3)
  assert made.fps == 16
  config = tiny_project.config("sample", "world,runlocal")
  config.checkpoint = str(root / "moved")
  config.output.folder = str(root / "out")
  sample.sample(config)
  films = [*(root / "out").glob("*.mp4")]
  assert films
  for film in films:
    assert mp4.read_mp4(film)[0].shape[0] == 32


def _stage(config: Any) -> tuple[Any, Any]:
  return table.read(config)


def test_networks_and_data_have_one_vae(root, tmp_path, seed) -> None:
  other = tiny_colour.write_vae(tmp_path / "vae", seed=1)
  model_lib.save(
    tmp_path / "model", tiny_colour.video("dense", other, seed), init={}
  )
  config = _config(root, "pretraining", model=str(tmp_path / "model"))
  stage, settings = _stage(config)
  with pytest.raises(ValueError, match="another VAE than data.vae=.*NAME/vae"):
    train.load_networks(stage, settings)
  config.networks.model = "shipped:small_dense"
  config.model.size = ""
  with pytest.raises(ValueError, match="is a model of 'moving_digits'"):
    train.load_networks(*_stage(config))


def test_what_cannot_be_trained_is_refused_first(root, tmp_path) -> None:
  config = _config(root, "pretraining", model="")
  config.networks.model = ""
  config.data.vae = str(tmp_path / "none")
  with pytest.raises(ValueError, match="is not a directory"):
    train.check(*_stage(config))
  config.data.vae = str(root / "vae")
  train.check(*_stage(config))
  config.data.latent_shape = (6, 6, 16)
  with pytest.raises(ValueError, match=r"latent_shape=.* must be \(8, 8, 16\)"):
    train.check(*_stage(config))
  with pytest.raises(ValueError, match="vae='here' has no effect with size"):
    tiny_project.config("pretraining", "small,vae=here")


def test_products_are_in_the_dtype_of_the_config(root) -> None:
  config = _config(root, "pretraining")
  config.networks.model = ""
  for dtype, wanted in (("", "float32"), ("bfloat16", "bfloat16")):
    config.network.dtype = dtype
    stage, settings = _stage(config)
    model = train.load_networks(stage, settings)["model"]
    assert model.dit.config.dtype == wanted
    assert {x.dtype.name for x in jax.tree.leaves(model)} == {"float32"}


def test_a_run_goes_on_with_its_vae_alone(root, tmp_path) -> None:
  config = _config(root, "pretraining")
  config.networks.model = ""
  before = resumption.identity(*_stage(config))
  (tmp_path / "copy").symlink_to(root / "vae")
  config.data.vae = str(tmp_path / "copy")
  assert resumption.identity(*_stage(config)) == before
  config.data.vae = str(tiny_colour.write_vae(tmp_path / "other", seed=1))
  assert resumption.identity(*_stage(config)) != before
