"""Tests of the command that checks what is stored."""

import json
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import damage
from videomla_jax import verify
from videomla_jax.conversion import moments
from videomla_jax.data import embeddings
from videomla_jax.data import record_files
from videomla_jax.runtime import metrics
from videomla_jax.storage import model_folder

_ROOT = pathlib.Path(__file__).parents[1]


def _make(folder: pathlib.Path, seed: int) -> dict[str, pathlib.Path]:
  """One of each kind of thing that commands store."""
  rng = np.random.default_rng(seed)
  array = rng.standard_normal((5, 8)).astype(np.float32)
  damage.save(folder / "run" / "checkpoints")
  with metrics.MetricWriter(folder / "run") as writer:
    writer.scalars(1, {"train/loss": 0.5})
  model_folder.save_model(folder / "run" / "model", {"x": array}, {"a": 1})
  shutil.copytree(folder / "run" / "model", folder / "release" / "dit")
  shutil.copytree(folder / "run" / "model", folder / "release" / "vae")
  embeddings.add(folder / "texts.safetensors", {"a cat": array}, encoder="e")
  moments.save(folder / "tokens.safetensors", [array, array])
  np.savez(folder / "batch.npz", video=array)
  name = record_files.file_name("train", 0, 1, dataset="video_latents")
  data = folder / "data" / "video_latents" / "1.0.0"
  data.mkdir(parents=True)
  record_files.write(data / name, [rng.bytes(300) for _ in range(4)])
  shutil.copy(data / name, folder / name)
  about = dict(
    bytes=(data / name).stat().st_size,
    sha256=verify.state_digests.sha256(data / name),
  )
  report = dict(identity="x", inputs=4, used=4, excluded={}, quarantined=0)
  report |= dict(clips={"train": 4}, latent_shape=None, text_width=8)
  report |= dict(max_tokens=5, shards={name: about})
  (data / "report.json").write_text(json.dumps(report))
  return {
    "run": folder / "run",
    "state": folder / "run" / "checkpoints" / "4",
    "model": folder / "run" / "model",
    "release": folder / "release",
    "data": folder / "data",
    "shard": folder / name,
    "embeddings": folder / "texts.safetensors",
    "activations": folder / "tokens.safetensors",
    "arrays": folder / "batch.npz",
  }


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, pathlib.Path]:
  return _make(tmp_path_factory.mktemp("stored"), 0)


def test_what_is_whole_passes(stored) -> None:
  for name, path in stored.items():
    count, bad = verify.verify([str(path)])
    # Three states, a model and the lines of metrics.
    assert bad == [] and count == {"run": 5, "release": 2}.get(name, 1), name


def _flip(path: pathlib.Path, rng: np.random.Generator) -> None:
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data) // 4, len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)


@pytest.mark.parametrize("kind", ["run", "state", "model", "release", "data"])
def test_a_flipped_bit_is_told_with_its_file(
  stored, tmp_path, kind, seed
) -> None:
  rng = np.random.default_rng(seed)
  copy = tmp_path / stored[kind].name
  shutil.copytree(stored[kind], copy)
  files = [x for x in damage.files(copy) if x.stat().st_size]
  # Lists of digests have tests of their own, and logs have no checksums.
  known = (".jsonl", ".json")
  files = [x for x in files if x.suffix not in known and "events" not in x.name]
  path = files[rng.integers(len(files))]
  _flip(path, rng)
  _, bad = verify.verify([str(copy)])
  assert [x.path for x in bad] == [str(path)], bad


@pytest.mark.parametrize("kind", ["shard", "arrays"])
def test_files_with_checksums_are_read_to_the_end(
  stored, tmp_path, kind, seed
) -> None:
  copy = tmp_path / stored[kind].name
  data = bytearray(stored[kind].read_bytes())
  at = data.find(bytes([data[len(data) // 2]]), len(data) // 3)
  data[at] ^= 255
  copy.write_bytes(data)
  if kind == "arrays":
    copy.write_bytes(stored[kind].read_bytes()[:-40])
  _, bad = verify.verify([str(copy)])
  assert bad and bad[0].path.startswith(str(copy))


def test_tensors_must_be_finite_and_of_their_prompts(tmp_path, seed) -> None:
  x = np.ones((3, 4), ml_dtypes.bfloat16)
  path = tmp_path / "texts.safetensors"
  embeddings.add(path, {"a cat": x.astype(np.float32)}, encoder="e")
  key = embeddings.key_of("a cat", encoder="e")
  for tensors, prompt, words in (
    ({key: x * np.nan}, "a cat", "not finite"),
    ({key: x}, "a dog", "another prompt"),
    ({"0" * 64: x}, "a cat", "no prompt"),
  ):
    about = {"encoder": "e", f"prompt/{key}": prompt}
    safetensors_numpy.save_file(tensors, path, metadata=about)
    (_, (bad,)) = verify.verify([str(path)])
    assert words in bad.reason
  path.write_bytes(path.read_bytes()[:-1])
  assert verify.verify([str(path)])[1][0].path == str(path)


def test_a_state_without_a_list_is_not_called_whole(stored, tmp_path) -> None:
  copy = tmp_path / "4"
  shutil.copytree(stored["state"], copy)
  (copy / "sha256.json").unlink()
  (_, (bad,)) = verify.verify([str(copy)])
  assert "nothing can be compared" in bad.reason


def test_unfinished_and_broken_states_are_passed_over(stored, tmp_path) -> None:
  run = tmp_path / "run"
  shutil.copytree(stored["run"], run)
  for name in ("8.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-listed"):
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / name)
  (run / "checkpoints" / "4").rename(run / "checkpoints" / "broken-4")
  assert verify.verify([str(run)]) == (4, [])


def test_what_is_unknown_or_missing_is_refused(tmp_path) -> None:
  for paths, words in (
    ([], "no path"),
    ([str(tmp_path / "x")], "does not exist"),
    ([str(tmp_path)], "holds nothing"),
  ):
    with pytest.raises(ValueError, match=words):
      verify.verify(paths)


def _command(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "videomla_jax.verify", *arguments],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


def test_the_exit_code_tells_the_result(stored, tmp_path) -> None:
  copy = tmp_path / "model"
  shutil.copytree(stored["model"], copy)
  (copy / "config.json").write_text("{}")
  report = tmp_path / "report.json"
  bad = _command(str(copy), f"--json={report}")
  assert bad.returncode == 1 and f"{copy}/config.json: " in bad.stdout
  assert json.loads(report.read_text())["bad"][0]["path"].startswith(str(copy))
  good = _command(str(stored["model"]), str(stored["embeddings"]))
  assert good.returncode == 0 and "all whole" in good.stdout, good.stderr


def test_a_file_of_many_bad_lines_gives_one(tmp_path) -> None:
  (tmp_path / "x.jsonl").write_bytes(b"{}\n" + b"x\n" * 1000)
  (_, (bad,)) = verify.verify([str(tmp_path / "x.jsonl")])
  assert bad.reason == "has no JSON in line 2"


def test_a_shipped_model_is_whole() -> None:
  folder = _ROOT / "videomla_jax" / "checkpoints" / "small_latent"
  assert verify.verify([str(folder)]) == (1, [])
