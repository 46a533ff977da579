"""Our temporal flickering against VBench's own code.

`make test-peers` runs `vbench_peer.py` first, beside the package.
"""

import os
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tolerances
from videomla_jax.quality import measures

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")
_CLIPS = pathlib.Path(os.environ.get("VIDEOMLA_CLIPS_DIR", ".clips"))

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs the package vbench"
)


def _score(series: measures.Series) -> np.ndarray:
  found = measures.measure(series, chunks=None, drift_seconds=1.0)
  return np.array([found["temporal_flickering"]])


@pytest.mark.parametrize("num_frames", [2, 5, 16])
def test_flicker_of_frames_equals_vbenchs(num_frames: int) -> None:
  path = pathlib.Path(_FOLDER) / f"vbench_{num_frames}.safetensors"
  golden = safetensors_numpy.load_file(path)
  series = measures.Series.of(golden["frames"], fps=8)
  tolerances.assert_close(series.change, golden["change"], "peer")
  tolerances.assert_close(_score(series), golden["score"], "peer")


def test_flicker_of_a_file_equals_vbenchs() -> None:
  folder = pathlib.Path(_FOLDER)
  golden = safetensors_numpy.load_file(folder / "vbench_file.safetensors")
  series = measures.read_series(folder / "vbench.avi")
  assert series.num_frames == 9
  tolerances.assert_close(_score(series), golden["score"], "peer")


def test_flicker_of_real_clips_equals_vbenchs() -> None:
  # OpenCV decodes them there, PyAV here.
  goldens = sorted(pathlib.Path(_FOLDER).glob("vbench_*.mp4.txt"))
  if not goldens:
    pytest.skip("`make test-clips` fetches them")
  for golden in goldens:
    name = golden.name.removeprefix("vbench_").removesuffix(".txt")
    found = _score(measures.read_series(_CLIPS / name))
    expected = np.array([float(golden.read_text())])
    tolerances.assert_close(found, expected, "peer")
