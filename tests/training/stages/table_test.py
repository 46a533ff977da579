"""The stages one after the other, as a user runs them, with tiny networks."""

import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import train
from videomla_jax.conversion import to_latent
from videomla_jax.runtime import metrics
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder
from videomla_jax.training import networks
from videomla_jax.training import origins
from videomla_jax.training.stages import table


def _config(stage: str, arg: str, root: pathlib.Path) -> Any:
  config = tiny_project.config(stage, f"small,runlocal,{arg}".rstrip(","))
  config.data.root = str(root / "data")
  config.optim.update(steps=3)
  config.samples.every = 100
  if config.eval.batches:
    config.eval.every = 100
  if "first_frame_every" in config.diffusion:
    config.diffusion.first_frame_every = 0  # one program less to compile
  return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  """Runs all stages; returns the root and the config of each."""
  root = tmp_path_factory.mktemp("stages")
  patch = pytest.MonkeyPatch()
  tiny_project.shrink(patch)

  def run(stage: str, arg: str = "", **changes: Any) -> Any:
    config = _config(stage, arg, root)
    config.update(changes)
    train.train(config, str(root / stage))
    return config

  configs = {"pretraining": run("pretraining", "init=")}
  dense = root / "pretraining" / "model"
  latent = to_latent.Recipe(method="spectral", d_c=16, d_rope=8, d_q=64)
  to_latent.convert_small(
    root / "converted", model_lib.load(dense), latent, source=str(dense)
  )
  configs["teacher_forcing"] = run(
    "teacher_forcing", f"init={root / 'converted'}"
  )
  configs["consistency"] = run(
    "consistency",
    f"init={root / 'teacher_forcing' / 'model'}",
    optim=dict(accumulate=2),
  )
  configs["dmd"] = run(
    "dmd",
    f"init={root / 'consistency' / 'model'},real={dense},critic={dense}",
  )
  yield dict(root=root, configs=configs)
  patch.undo()


_ALL = ["pretraining", "teacher_forcing", "consistency", "dmd"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", _ALL)
def test_every_stage_trains_and_hands_on_its_average(folders, stage) -> None:
  root = folders["root"] / stage
  model = model_lib.load(root / "model")
  kind = "dense" if stage == "pretraining" else "latent"
  assert model.dit.config.attention.kind == kind
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(model))
  assert origins.of(model_folder.read_config(root / "model")) == stage
  losses = [x for x in metrics.read_jsonl(root) if "train/loss" in x]
  assert [x["step"] for x in losses] == [1, 2, 3]
  assert all(np.isfinite(x["train/loss"]) for x in losses)
  assert all(x["train/skipped"] == 0 for x in losses)
  assert [*(root / "samples").glob("*.png")]


def test_the_critic_is_trained_with_the_student(folders) -> None:
  lines = metrics.read_jsonl(folders["root"] / "dmd")
  named = {name for line in lines for name in line}
  assert {"train/loss_critic", "train/critic_grad_norm"} <= named


def test_every_stage_moves_its_network(folders) -> None:
  root = folders["root"]
  for stage, before in (
    ("teacher_forcing", root / "converted"),
    ("consistency", root / "teacher_forcing" / "model"),
    ("dmd", root / "consistency" / "model"),
  ):
    old, new = (model_lib.load(p) for p in (before, root / stage / "model"))
    pairs = zip(jax.tree.leaves(old.dit), jax.tree.leaves(new.dit), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


def test_conversion_keeps_words_and_everything_but_attention(folders) -> None:
  root = folders["root"]
  dense = model_lib.load(root / "pretraining" / "model")
  latent = model_lib.load(root / "converted")
  assert (dense.text.table[...] == latent.text.table[...]).all()
  assert (dense.dit.head.kernel[...] == latent.dit.head.kernel[...]).all()
  about = model_folder.read_config(root / "converted")
  assert origins.of(about) == "conversion"
  assert about["init"]["method"] == "spectral" and about["layers"]


@pytest.mark.parametrize(
  ("stage", "role", "folder", "words"),
  [
    ("consistency", "model", "converted", "made by 'conversion'"),
    ("consistency", "teacher", "pretraining", "starts from teacher_forcing"),
    ("dmd", "model", "teacher_forcing", "starts from consistency"),
    ("dmd", "real", "teacher_forcing", "starts from pretraining or release"),
    ("teacher_forcing", "model", "dmd", "made by 'dmd'"),
    ("pretraining", "model", "consistency", "made by 'consistency'"),
    ("dmd", "critic", "", "must name a model folder"),
  ],
)
def test_wrong_order_is_refused_before_anything_is_loaded(
  folders, monkeypatch, tmp_path, stage, role, folder, words
) -> None:
  config = folders["configs"][stage].copy_and_resolve_references()
  path = folders["root"] / folder
  model = path / "model" if (path / "model").exists() else path
  config.networks[role] = str(model) if folder else ""

  def too_late(*unused):
    raise AssertionError("something was loaded")

  monkeypatch.setattr(train, "load_networks", too_late)
  with pytest.raises(ValueError, match=words):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_another_architecture_than_asked_for_is_refused(folders) -> None:
  for changes, words in (
    (dict(kind="dense"), "has latent attention but model.kind='dense'"),
    (dict(d_c=8), "d_c=16 but model.d_c=8"),
    (dict(d_rope=4), "d_rope=8 but model.d_rope=4"),
    (
      dict(rope_ladder="fresh"),
      "rope_ladder='wan' but model.rope_ladder='fresh'.*leave it ''",
    ),
  ):
    config = folders["configs"]["consistency"].copy_and_resolve_references()
    config.model.update(changes)
    with pytest.raises(ValueError, match=words):
      train.load_networks(*table.read(config))


def test_sizes_of_latent_attention_are_arguments(tmp_path) -> None:
  config = tiny_project.config("teacher_forcing", "small,d_c=8,d_rope=4,init=")
  _, settings = table.read(config)
  made = networks.build(settings)
  networks.save(tmp_path / "model", made, stage="teacher_forcing")
  sizes = model_lib.load(tmp_path / "model").dit.config.attention
  assert (sizes.d_c, sizes.d_rope, sizes.d_nope) == (8, 4, 28)
  dense = model_lib.VideoModel(
    dataclasses.replace(made.config, kind="dense"), rngs=nnx.Rngs(0)
  )
  latent = to_latent.Recipe(method="spectral", d_c=8, d_rope=4, d_q=64)
  converted, _ = to_latent.small_to_latent(dense, latent)
  networks.prepare(converted, settings)  # a converted model has them, too


def test_scores_must_be_dense(folders) -> None:
  config = folders["configs"]["dmd"].copy_and_resolve_references()
  config.networks.real = str(folders["root"] / "teacher_forcing" / "model")
  with pytest.raises(ValueError, match="must have dense"):
    train.load_networks(*table.read(config))


@pytest.mark.parametrize(
  ("stage", "changes", "words"),
  [
    ("pretraining", dict(model=dict(kind="latent")), "must be 'dense'"),
    ("consistency", dict(diffusion=dict(num_levels=1)), "num_levels=1"),
    ("consistency", dict(optim=dict(ema_decay=0.0)), "its own target"),
    ("dmd", dict(optim=dict(critic_updates=0)), "critic_updates=0"),
    ("dmd", dict(optim=dict(critic_learning_rate=0.0)), "must be positive"),
    ("dmd", dict(rollout=dict(num_frames=4)), "num_frames=4 must"),
    ("dmd", dict(data=dict(kind="tape")), "data.kind='tape'"),
  ],
)
def test_mistakes_of_a_stage_are_refused(folders, stage, changes, words):
  config = folders["configs"][stage].copy_and_resolve_references()
  config.update(changes)
  with pytest.raises(ValueError, match=words):
    train.check(*table.read(config))
