"""Tests of MP4 files, by decoding them again."""

from collections.abc import Iterator
import pathlib
import resource

import av
import numpy as np
import pytest

from videomla_jax.generation import mp4


def _digits(rng: np.random.Generator, *shape: int) -> np.ndarray:
  """Draws block pictures, which survive a lossy codec."""
  *lead, height, width, channels = shape
  small = (*lead, -(-height // 4), -(-width // 4), channels)
  blocks = rng.integers(0, 2, small, dtype=np.uint8) * 255
  large = blocks.repeat(4, axis=-3).repeat(4, axis=-2)
  return large[..., :height, :width, :]


@pytest.mark.parametrize("channels", [1, 3])
def test_browser_plays_what_was_written(
  tmp_path: pathlib.Path, channels: int, seed: int
) -> None:
  frames = _digits(np.random.default_rng(seed), 30, 24, 24, channels)
  path = tmp_path / "a.mp4"
  assert mp4.write_mp4(path, frames, fps=4, scale=4) == 30
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert (stream.width, stream.height) == (96, 96)
    assert float(stream.duration * stream.time_base) == pytest.approx(30 / 4)
  data = path.read_bytes()
  assert data.index(b"moov") < data.index(b"mdat")
  assert list(tmp_path.iterdir()) == [path]


def test_pixels_times_and_count_come_back(
  tmp_path: pathlib.Path, seed: int
) -> None:
  frames = _digits(np.random.default_rng(seed), 23, 24, 16, 1)
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=12.5, scale=4)
  decoded, fps = mp4.read_mp4(tmp_path / "a.mp4")
  assert fps == 12.5
  assert decoded.shape == (23, 96, 64, 3)
  # Centres of the enlarged pixels, away from ringing at the edges.
  error = np.abs(decoded[:, 2::4, 2::4].astype(int) - frames)
  assert error.mean() < 4


def test_chunks_give_the_same_video_as_one_array(
  tmp_path: pathlib.Path, seed: int
) -> None:
  frames = _digits(np.random.default_rng(seed), 12, 24, 24, 1)
  chunks = (frames[i : i + 3] for i in range(0, 12, 3))
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  mp4.write_mp4(tmp_path / "b.mp4", chunks, fps=4)
  whole, chunked = (mp4.read_mp4(tmp_path / x)[0] for x in ("a.mp4", "b.mp4"))
  np.testing.assert_array_equal(whole, chunked)


def test_colours_come_back(tmp_path: pathlib.Path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  colours = rng.integers(0, 256, (5, 1, 1, 3), dtype=np.uint8)
  frames = np.broadcast_to(colours, (5, 32, 32, 3)).copy()
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  decoded, _ = mp4.read_mp4(tmp_path / "a.mp4")
  # Limited range and rounding, no more.
  assert np.abs(decoded.astype(int) - frames).max() <= 6


def test_odd_sizes_are_padded(tmp_path: pathlib.Path, seed: int) -> None:
  frames = _digits(np.random.default_rng(seed), 2, 17, 31, 3)
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  assert mp4.read_mp4(tmp_path / "a.mp4")[0].shape == (2, 18, 32, 3)


def test_failure_while_frames_come_leaves_the_old_file_only(
  tmp_path: pathlib.Path, seed: int
) -> None:
  frames = _digits(np.random.default_rng(seed), 4, 16, 16, 1)
  path = tmp_path / "a.mp4"
  mp4.write_mp4(path, frames, fps=4)
  before = path.read_bytes()

  def chunks():
    yield frames
    raise RuntimeError("out of memory")

  with pytest.raises(RuntimeError):
    mp4.write_mp4(path, chunks(), fps=4)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("shape", "message"),
  [((2, 8, 8, 2), "move the channels"), ((0, 8, 8, 1), "no frames")],
)
def test_bad_frames_leave_nothing(
  tmp_path: pathlib.Path, shape: tuple[int, ...], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    mp4.write_mp4(tmp_path / "a.mp4", np.zeros(shape, np.uint8), fps=4)
  assert not list(tmp_path.iterdir())


def test_change_of_size_is_an_error(tmp_path: pathlib.Path) -> None:
  chunks = [np.zeros((1, n, 8, 1), np.uint8) for n in (8, 10)]
  with pytest.raises(ValueError, match="same size"):
    mp4.write_mp4(tmp_path / "a.mp4", chunks, fps=4)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fps", "scale"), [(0, 1), (-1.0, 1), (4, 0)])
def test_bad_numbers_are_errors(
  tmp_path: pathlib.Path, fps: float, scale: int
) -> None:
  with pytest.raises(ValueError, match="must be"):
    mp4.Mp4Writer(tmp_path / "a.mp4", fps=fps, scale=scale)


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_unreadable_video_is_an_error(
  tmp_path: pathlib.Path, content: bytes | None
) -> None:
  if content is not None:
    (tmp_path / "a.mp4").write_bytes(content)
  with pytest.raises(ValueError, match="cannot be read"):
    mp4.read_mp4(tmp_path / "a.mp4")


def test_unwritable_folder_is_refused_before_the_first_frame(
  tmp_path: pathlib.Path,
) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="choose a folder"):
    mp4.Mp4Writer(tmp_path / "file" / "out" / "a.mp4", fps=4)


@pytest.fixture
def limited() -> Iterator[None]:
  """Files may have 20,000 bytes, as if the disk were full then."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_leaves_nothing(
  tmp_path: pathlib.Path, seed: int, limited: None
) -> None:
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
  with pytest.raises(OSError, match="File too large.*a.mp4"):
    mp4.write_mp4(tmp_path / "a.mp4", frames, fps=4)
  assert not list(tmp_path.iterdir())


def test_what_cannot_have_the_name_is_refused_before_the_first_frame(
  tmp_path: pathlib.Path,
) -> None:
  (tmp_path / "a.mp4").mkdir()
  with pytest.raises(ValueError, match="is a folder"):
    mp4.Mp4Writer(tmp_path / "a.mp4", fps=4)
  with pytest.raises(ValueError, match="255 bytes"):
    mp4.Mp4Writer(tmp_path / ("狐" * 90 + ".mp4"), fps=4)


def test_two_writers_of_one_file_leave_one_whole_video(
  tmp_path: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "a.mp4"
  writers = [mp4.Mp4Writer(path, fps=4) for _ in range(2)]
  for count, writer in zip((3, 5), writers, strict=True):
    writer.append(_digits(rng, count, 16, 16, 1))
  for writer in writers:
    writer.close()
  # The last one wins.
  assert len(mp4.read_mp4(path)[0]) == 5
  assert list(tmp_path.iterdir()) == [path]
