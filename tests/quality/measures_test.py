"""Measures see what they are named for, and nothing else."""

import pathlib

import numpy as np
import pytest

from tests import tolerances
from videomla_jax.generation import mp4
from videomla_jax.quality import measures

_CHUNKS = measures.Chunks(first=3, following=4)


def _frames(seed: int, num: int, *, channels: int = 3) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (num, 9, 11, channels)).astype(np.uint8)


def _measured(
  frames: np.ndarray, *, fps: float = 2.0, drift: float = 2.0
) -> measures.Values:
  series = measures.Series.of(frames, fps=fps)
  return measures.measure(series, chunks=_CHUNKS, drift_seconds=drift)


def test_a_still_video_does_not_flicker_drift_or_jump(seed: int) -> None:
  found = _measured(np.repeat(_frames(seed, 1), 12, axis=0))
  assert found == {
    "temporal_flickering": 1.0,
    "frame_difference": 0.0,
    "largest_difference": 0.0,
    "drift_brightness": 0.0,
    "drift_contrast": 0.0,
    "drift_saturation": 0.0,
    "drift_sharpness": 1.0,
    "chunk_jump": 0.0,
    "chunk_ratio": None,  # nothing changes, so there is nothing to compare with
  }
  assert [*found] == [*measures.MEANINGS]


def test_flicker_is_the_published_formula_in_float64(seed: int) -> None:
  # VBench: 255 minus the mean of the pairs' mean absolute errors, over 255.
  frames = _frames(seed, 7)
  wide = frames.astype(np.float64)
  errors = [
    np.mean(np.abs(a - b)) for a, b in zip(wide, wide[1:], strict=False)
  ]
  expected = (255.0 - np.mean(errors)) / 255.0
  found = _measured(frames)["temporal_flickering"]
  tolerances.assert_close(np.array(found), np.array(expected), "float32")
  assert found == pytest.approx(expected, abs=1e-12)


def test_a_jump_where_chunks_begin_is_seen_there_alone() -> None:
  level = np.array([10, 10, 10, 40, 40, 40, 40, 10, 10, 10, 10, 40])
  frames = np.broadcast_to(level[:, None, None, None], (12, 4, 4, 3))
  found = _measured(frames.astype(np.uint8))
  assert (found["chunk_jump"], found["chunk_ratio"]) == (30.0, None)
  moved = _measured(np.roll(frames, 1, axis=0).astype(np.uint8))
  assert moved["chunk_jump"] < 0 and moved["chunk_ratio"] == 0


def test_an_even_motion_has_no_jump() -> None:
  level = 10 + 5 * np.arange(12)
  frames = np.broadcast_to(level[:, None, None, None], (12, 4, 4, 3))
  found = _measured(frames.astype(np.uint8))
  assert (found["chunk_jump"], found["chunk_ratio"]) == (0.0, 1.0)


def test_chunks_begin_as_pixels_of_wan_do() -> None:
  wan = measures.Chunks(first=9, following=12)
  assert wan.begins(46) == [9, 21, 33, 45]
  with pytest.raises(ValueError, match=r"chunks\.first=0 .* at least 1"):
    measures.Chunks(first=0, following=12)


@pytest.mark.parametrize("channels", [1, 3])
def test_drift_is_that_of_the_statistic_that_changes(
  seed: int, channels: int
) -> None:
  frame = _frames(seed, 1, channels=channels).astype(np.float64) / 2
  brighter = [frame[0] + 8 * t for t in range(12)]
  found = _measured(np.stack(brighter).astype(np.uint8))
  # The last four frames are eight steps later than the first four.
  assert found["drift_brightness"] == pytest.approx(64 / 255, abs=1e-6)
  assert found["drift_contrast"] == pytest.approx(0, abs=1e-5)
  assert found["drift_sharpness"] == pytest.approx(1, abs=1e-4)
  flatter = np.stack([128 + (frame[0] - 64) / (1 + t) for t in range(12)])
  found = _measured(flatter.astype(np.uint8))
  assert found["drift_contrast"] < -0.02 and found["drift_sharpness"] < 0.5


def test_drift_of_saturation_is_that_of_colour() -> None:
  grey = np.full((6, 4, 4, 3), 100, np.uint8)
  red = grey.copy()
  red[..., 1:] = 0
  found = _measured(np.concatenate([grey, red]))
  assert found["drift_saturation"] == 1.0


def test_beginning_and_end_of_a_short_video_do_not_overlap() -> None:
  frames = np.zeros((4, 4, 4, 3), np.uint8)
  frames[2:] = 255
  assert _measured(frames, drift=1000.0)["drift_brightness"] == 1.0
  single = _measured(frames[:1])
  assert {*single.values()} == {None}


def test_summary_leaves_out_what_has_no_meaning() -> None:
  found = measures.summarise(
    [
      dict(chunk_ratio=1.0, chunk_jump=2.0),
      dict(chunk_ratio=None, chunk_jump=4.0),
    ]
  )
  assert found["chunk_ratio"] == dict(mean=1.0, std=0.0, n=1)
  assert found["chunk_jump"] == dict(mean=3.0, std=np.sqrt(2), n=2)
  assert "drift_contrast" not in found
  assert "| chunk_jump | 3.0000 ± 1.4142 | 2 |" in measures.table(found)


def test_files_are_measured_as_their_frames_are(
  seed: int, tmp_path: pathlib.Path
) -> None:
  frames = _frames(seed, 1).repeat(6, axis=1).repeat(6, axis=2)
  path = tmp_path / "a.mp4"
  mp4.write_mp4(path, np.repeat(frames, 5, axis=0), fps=8)
  series = measures.read_series(path)
  assert (series.num_frames, series.fps) == (5, 8.0)
  decoded, _ = mp4.read_mp4(path)
  expected = measures.Series.of(decoded, fps=8)
  np.testing.assert_array_equal(series.change, expected.change)
  np.testing.assert_array_equal(series.sharpness, expected.sharpness)


def test_a_file_that_cannot_be_read_is_one_sentence(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "a.mp4"
  mp4.write_mp4(path, np.zeros((30, 32, 32, 3), np.uint8), fps=8)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=r"video '.*a\.mp4' cannot be measured"):
    measures.read_series(path)
  with pytest.raises(ValueError, match="no such file"):
    measures.read_series(tmp_path / "b.mp4")
