"""Tests of embeddings on disk: exact, complete, never mistaken."""

import json
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from videomla_jax.data import embeddings

_PROMPTS = ["a red fox", "", "café &amp; cats"]


def _embeddings(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Values that bfloat16 holds exactly."""
  return {
    prompt: rng.standard_normal((i + 2, 5))
    .astype(ml_dtypes.bfloat16)
    .astype(np.float32)
    for i, prompt in enumerate(_PROMPTS)
  }


def test_embeddings_come_back_padded(tmp_path, seed: int) -> None:
  path, made = (
    tmp_path / "p.safetensors",
    _embeddings(np.random.default_rng(seed)),
  )
  embeddings.add(path, made, encoder="e")
  # Another spelling of the same text, another order.
  rows = embeddings.read(path, ["  café & cats", "", "a  red fox"])
  assert rows.shape == (3, 512, 5) and rows.dtype == np.float32
  for row, prompt in zip(rows, reversed(_PROMPTS), strict=True):
    count = len(made[prompt])
    np.testing.assert_array_equal(row[:count], made[prompt])
    assert not row[count:].any()


def test_adding_keeps_what_is_there(tmp_path, seed: int) -> None:
  path, made = (
    tmp_path / "p.safetensors",
    _embeddings(np.random.default_rng(seed)),
  )
  for prompt, embedding in made.items():
    embeddings.add(path, {prompt: embedding}, encoder="e")
  assert len(embeddings.known(path, encoder="e")) == 3
  np.testing.assert_array_equal(
    embeddings.read(path, _PROMPTS)[1, : len(made[""])], made[""]
  )
  assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
  with safetensors.safe_open(path, framework="numpy") as file:
    assert "café & cats" in json.dumps(file.metadata(), ensure_ascii=False)


def test_absent_prompts_are_listed_with_the_command(tmp_path, seed) -> None:
  path = tmp_path / "p.safetensors"
  embeddings.add(path, _embeddings(np.random.default_rng(seed)), encoder="e")
  words = r"\['a cat', 'a dog'\]; add them with python -m videomla_jax.embed"
  with pytest.raises(ValueError, match=words):
    embeddings.read(path, ["a cat", "a red fox", "a dog"])


def test_another_encoder_is_another_file(tmp_path, seed: int) -> None:
  path = tmp_path / "p.safetensors"
  made = _embeddings(np.random.default_rng(seed))
  embeddings.add(path, made, encoder="e")
  before = path.read_bytes()
  with pytest.raises(ValueError, match="another text encoder"):
    embeddings.add(path, made, encoder="f")
  assert path.read_bytes() == before
  a, b = (embeddings.key_of("a", encoder=e) for e in "ef")
  assert a != b


def test_damaged_and_missing_files_are_refused(tmp_path, seed: int) -> None:
  path = tmp_path / "p.safetensors"
  with pytest.raises(ValueError, match="does not exist"):
    embeddings.read(path, ["a"])
  embeddings.add(path, _embeddings(np.random.default_rng(seed)), encoder="e")
  data = path.read_bytes()
  for content in (data[:-1], data[:20], b"", b"text"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
      embeddings.read(path, ["a red fox"])


# Both begin at once, or one would often have ended before.
_ADDS = """
import os, sys
import numpy as np
from videomla_jax.data import embeddings
path, name, folder = sys.argv[1:]
open(os.path.join(folder, name), "w").close()
while len(os.listdir(folder)) < 2:
  pass
for i in range(20):
  made = {f"{name} {i}": np.full((2, 3), i + 1.0, np.float32)}
  embeddings.add(path, made, encoder="e")
"""


def test_two_processes_lose_nothing_of_either(tmp_path) -> None:
  path = tmp_path / "p.safetensors"
  command = [sys.executable, "-c", _ADDS, str(path)]
  (tmp_path / "ready").mkdir()
  ready = str(tmp_path / "ready")
  running = [subprocess.Popen([*command, name, ready]) for name in "ab"]
  assert [process.wait() for process in running] == [0, 0]
  prompts = [f"{name} {i}" for name in "ab" for i in range(20)]
  rows = embeddings.read(path, prompts)
  assert [row[0, 0] for row in rows] == [i + 1 for _ in "ab" for i in range(20)]
  assert embeddings.check(path) == []
  assert {p.name for p in tmp_path.iterdir()} == {"p.safetensors", "ready"}


_KILLED = """
import os, signal, sys
import numpy as np
from videomla_jax.data import embeddings
events = []
def see(event, args):
  if event in ("os.rename", "os.remove") and str(args[0]).startswith(sys.argv[1]):
    events.append(event)
    if len(events) == int(sys.argv[2]):
      os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(see)
folder = sys.argv[1]
for i in range(3):
  made = {f"late {i}": np.ones((2, 3), np.float32)}
  embeddings.add(folder + "/p.safetensors", made, encoder="e")
"""


def test_a_killed_process_leaves_all_that_was_there(tmp_path, seed) -> None:
  path = tmp_path / "p.safetensors"
  made = _embeddings(np.random.default_rng(seed))
  made = {prompt: x[:, :3] for prompt, x in made.items()}
  embeddings.add(path, made, encoder="e")
  last = int(np.random.default_rng(seed).integers(1, 7))
  done = subprocess.run([sys.executable, "-c", _KILLED, tmp_path, str(last)])
  assert done.returncode == -signal.SIGKILL
  embeddings.read(path, _PROMPTS)
  embeddings.add(path, {"after": made[""]}, encoder="e")
  assert len(embeddings.known(path, encoder="e")) >= 4
  assert embeddings.check(path) == []


def test_each_flipped_bit_is_found_or_harmless(tmp_path, seed) -> None:
  path = tmp_path / "p.safetensors"
  rng = np.random.default_rng(seed)
  embeddings.add(path, _embeddings(rng), encoder="e")
  before, good = path.read_bytes(), embeddings.read(path, _PROMPTS)
  for _ in range(200):
    data = bytearray(before)
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
      found = embeddings.read(path, _PROMPTS)
    except ValueError as error:
      assert str(path) in str(error)
    else:
      np.testing.assert_array_equal(found, good)


def test_files_of_older_versions_are_read_and_extended(tmp_path, seed) -> None:
  path = tmp_path / "p.safetensors"
  made = _embeddings(np.random.default_rng(seed))
  key = embeddings.key_of("a red fox", encoder="e")
  x = made["a red fox"].astype(ml_dtypes.bfloat16)
  safetensors.numpy.save_file({key: x}, path, metadata={"encoder": "e"})
  embeddings.add(path, {"": made[""]}, encoder="e")
  rows = embeddings.read(path, ["a red fox", ""])
  np.testing.assert_array_equal(rows[0, : len(x)], x.astype(np.float32))
  assert embeddings.check(path) == []


@pytest.mark.parametrize(
  ("shape", "dtype", "value"),
  [
    ((3,), np.float32, 1.0),
    ((513, 2), np.float32, 1.0),
    ((0, 2), np.float32, 1.0),
    ((3, 2), np.int64, 1),
    ((3, 2), np.float32, np.nan),
    ((1, 100_000), np.float16, 1.0),
  ],
)
def test_what_is_no_embedding_is_refused(tmp_path, shape, dtype, value) -> None:
  path = tmp_path / "p.safetensors"
  key = embeddings.key_of("a", encoder="e")
  x = np.full(shape, value, dtype)
  safetensors.numpy.save_file({key: x}, path, metadata={"encoder": "e"})
  with pytest.raises(ValueError, match="cannot be read"):
    embeddings.read(path, ["a"])


_FULL_DISK = """
import resource, sys
import numpy as np
from videomla_jax.data import embeddings
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
  made = {"large": np.ones((500, 64), np.float32)}
  embeddings.add(sys.argv[1], made, encoder="e")
except ValueError as error:
  print(error)
"""


def test_a_full_disk_is_one_sentence(tmp_path) -> None:
  path = tmp_path / "p.safetensors"
  embeddings.add(path, {"a": np.ones((2, 64), np.float32)}, encoder="e")
  before = path.read_bytes()
  command = [sys.executable, "-c", _FULL_DISK, str(path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert "cannot be written (File too large)" in done.stdout, done.stderr
  assert path.read_bytes() == before
  assert [*tmp_path.iterdir()] == [path]
