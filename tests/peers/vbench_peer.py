"""Runs VBench's own temporal flickering on random frames and on a video.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `vbench_test.py` compares with. The package is
installed without what its other dimensions need, so the one module is loaded
by itself.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import types

import cv2
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

_FOLDER = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
_CLIPS = pathlib.Path(os.environ.get("VIDEOMLA_CLIPS_DIR", ".clips"))
# Names that the module imports from its neighbours and needs for lists only.
_NEIGHBOURS = {
  "vbench.utils": ["load_dimension_info"],
  "vbench.distributed": [
    *("get_world_size", "get_rank", "all_gather", "barrier"),
    *("distribute_list_to_rank", "gather_list_of_dict"),
  ],
}


def _flickering(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
  root = importlib.metadata.distribution("vbench").locate_file("vbench")
  package = types.ModuleType("vbench")
  package.__path__ = [str(root)]
  monkeypatch.setitem(sys.modules, "vbench", package)
  for name, members in _NEIGHBOURS.items():
    neighbour = types.ModuleType(name)
    for member in members:
      setattr(neighbour, member, None)
    monkeypatch.setitem(sys.modules, name, neighbour)
  spec = importlib.util.spec_from_file_location(
    "vbench.temporal_flickering", root / "temporal_flickering.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("num_frames", [2, 5, 16])
def test_flicker_of_frames(
  num_frames: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  module = _flickering(monkeypatch)
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (num_frames, 48, 64, 3)).astype(np.uint8)
  monkeypatch.setattr(module, "get_frames", lambda path: [*frames])
  safetensors_numpy.save_file(
    {
      "frames": frames,
      "change": module.mae_seq([*frames]).astype(np.float64),
      "score": np.array([module.cal_score("none")]),
    },
    _FOLDER / f"vbench_{num_frames}.safetensors",
  )


def test_flicker_of_a_file(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
  module = _flickering(monkeypatch)
  rng = np.random.default_rng(seed)
  path = _FOLDER / "vbench.avi"
  # Without loss, and of smooth colours: what is compared is not a codec.
  codec = cv2.VideoWriter_fourcc(*"FFV1")
  writer = cv2.VideoWriter(str(path), codec, 8, (64, 48))
  for _ in range(9):
    small = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    writer.write(small.repeat(16, axis=0).repeat(16, axis=1))
  writer.release()
  safetensors_numpy.save_file(
    {"score": np.array([module.cal_score(str(path))])},
    _FOLDER / "vbench_file.safetensors",
  )


def test_flicker_of_real_clips(monkeypatch: pytest.MonkeyPatch) -> None:
  paths = sorted(_CLIPS.glob("*.mp4"))
  if not paths:
    pytest.skip("`make test-clips` fetches them")
  module = _flickering(monkeypatch)
  for path in paths:
    (_FOLDER / f"vbench_{path.name}.txt").write_text(
      repr(float(module.cal_score(str(path))))
    )
