"""Tests of model folders written and read in pieces."""

import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from videomla_jax.storage import model_folder
from videomla_jax.storage import model_reader
from videomla_jax.storage import model_writer
from videomla_jax.storage import params_skeleton
from videomla_jax.storage import tree_names

_SPECS = {
  "blocks/kernel": params_skeleton.Parameter(
    (3, 7, 5), np.dtype(np.float32), True
  ),
  "blocks/scalar": params_skeleton.Parameter((3,), np.dtype(np.float32), True),
  "layers/0/bias": params_skeleton.Parameter(
    (11,), np.dtype(ml_dtypes.bfloat16), False
  ),
  "zeros": params_skeleton.Parameter((2, 3), np.dtype(np.float32), False),
}


def _values(seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  values = {
    name: rng.standard_normal(spec.shape).astype(spec.dtype)
    for name, spec in _SPECS.items()
  }
  values["zeros"][:] = 0  # what a sparse format might leave out
  return values


def _write(path: pathlib.Path, values: dict[str, np.ndarray]) -> None:
  with model_writer.ModelWriter(path, _SPECS, {"kind": "x"}) as writer:
    for name, spec in _SPECS.items():
      if spec.blocks:
        for n in range(spec.shape[0]):
          writer.write(name, np.asarray(values[name][n]), block=n)
      else:
        writer.write(name, values[name])


@pytest.mark.parametrize("piece_bytes", [1, 60, 10**6])
def test_folders_are_those_of_checkpoint(
  tmp_path, seed: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(params_skeleton, "_PIECE_BYTES", piece_bytes)
  values = _values(seed)
  _write(tmp_path / "model", values)
  arrays, config = model_folder.load_model_state(tmp_path / "model")
  assert config == {"kind": "x"}
  flat = tree_names.flat_dict(arrays)
  assert flat.keys() == values.keys()
  for name, x in values.items():
    assert flat[name].dtype == x.dtype
    np.testing.assert_array_equal(flat[name], x)


@pytest.mark.parametrize("pieces", [True, False])
def test_reading_block_by_block(tmp_path, seed: int, pieces: bool) -> None:
  values = _values(seed)
  if pieces:
    _write(tmp_path / "model", values)
  else:
    tree = tree_names.nested_dict(values)
    model_folder.save_model(tmp_path / "model", tree, {}, keep_dtypes=True)
  reader = model_reader.ModelReader(tmp_path / "model")
  assert sorted(reader.names()) == sorted(values)
  for name, x in values.items():
    assert (reader.shape(name), reader.dtype(name)) == (x.shape, x.dtype)
    np.testing.assert_array_equal(reader.read(name), x)
  np.testing.assert_array_equal(
    reader.read("blocks/kernel", block=1), values["blocks/kernel"][1]
  )


def test_what_is_forgotten_is_noticed(tmp_path) -> None:
  with (
    pytest.raises(AssertionError, match="not written: .*zeros"),
    model_writer.ModelWriter(tmp_path / "m", _SPECS, {}) as writer,
  ):
    writer.write("layers/0/bias", np.zeros(11))
  assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_noticed(tmp_path, seed: int) -> None:
  _write(tmp_path / "model", _values(seed))
  rng = np.random.default_rng(seed)
  files = sorted(
    p
    for p in (tmp_path / "model").rglob("*")
    if p.is_file() and p.stat().st_size
  )
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  with pytest.raises(ValueError, match=str(tmp_path)):
    model_reader.ModelReader(tmp_path / "model")


_FILLED = """
import sys, pathlib, resource
import numpy as np
from videomla_jax.storage import model_writer as w
from videomla_jax.storage import params_skeleton
specs = {"x": params_skeleton.Parameter((8, 1000, 1000), np.dtype(np.float32), True)}
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
  with w.ModelWriter(sys.argv[1], specs, {}) as writer:
    for n in range(8):
      writer.write("x", np.ones((1000, 1000)), block=n)
except OSError as error:
  print("refused", error)
print(sorted(p.name for p in pathlib.Path(sys.argv[1]).parent.iterdir()))
"""


def test_a_full_disk_leaves_nothing(tmp_path) -> None:
  done = subprocess.run(
    [sys.executable, "-c", _FILLED, str(tmp_path / "model")],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  assert done.stdout.startswith("refused")
  assert done.stdout.rstrip().endswith("[]")


_MEASURED = """
import resource, sys
import numpy as np
from videomla_jax.storage import model_writer as w
from videomla_jax.storage import params_skeleton

def write(path, count, side):
  spec = params_skeleton.Parameter((count, side, side), np.dtype(np.float32), True)
  with w.ModelWriter(path, {"x": spec}, {}) as writer:
    for n in range(count):
      writer.write("x", np.full((side, side), n, np.float32).T, block=n)

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

write(sys.argv[1] + "/warm", 2, 8)
before = peak()
write(sys.argv[1] + "/real", 24, 2048)
print(peak() - before)
"""


def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path) -> None:
  tensor = 2048 * 2048 * 4
  done = subprocess.run(
    [sys.executable, "-c", _MEASURED, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  grown = int(done.stdout)
  print(f"grew by {grown / tensor:.2f} of 24 tensors")
  # The tensor and one piece of it.
  assert grown < 1.2 * tensor + params_skeleton._PIECE_BYTES
