"""Tests that reading a clip opens that clip and nothing else."""

import os
import pathlib
import socket
import struct

import pytest

from tests.media import films
from videomla_jax.generation import given_frames
from videomla_jax.media import containers
from videomla_jax.media import fitting

_SHAPE = fitting.FrameShape(height=32, width=48)


def _read(path):
  return given_frames.read_given(
    image="", clip=path, shape=_SHAPE, fps=16, most=100
  )


@pytest.fixture
def secret(tmp_path) -> pathlib.Path:
  """A clip beside the one that is given, which nobody asked for."""
  return films.write(tmp_path / "secret.mp4", films.numbered(8))


_SCRIPTS = {
  "concat": "ffconcat version 1.0\nfile '{url}'\n",
  "concat without its header": "file '{url}'\n",
  "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n"
  "#EXT-X-ENDLIST\n",
  "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
  "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
  "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
  'type="static" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" '
  'mediaPresentationDuration="PT1S" minBufferTime="PT1S"><Period>'
  '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9">'
  "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
  "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
  "smil": '<smil><body><video src="{url}"/></body></smil>',
}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", _SCRIPTS)
@pytest.mark.parametrize("name", ["clip.mp4", "clip"])
def test_a_list_under_the_name_of_a_clip_opens_nothing(
  tmp_path, secret, kind, local, name
):
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    url = secret.name if local else f"http://127.0.0.1:{port}/v.mp4"
    text = _SCRIPTS[kind].format(url=url, port=port)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"clip=.* cannot be read"):
      _read(tmp_path / name)
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
      server.accept()


@pytest.mark.parametrize(
  "name",
  [
    *("http://127.0.0.1:{port}/v.mp4", "tcp://127.0.0.1:{port}"),
    *("rtmp://127.0.0.1:{port}/x", "file://{file}", "file:{file}"),
    *("concat:{file}|{file}", "subfile,,start,0,end,0,,:{file}"),
    *("async:{file}", "cache:{file}", "crypto:{file}", "data:,x"),
    *("lavfi:testsrc", "testsrc", "pipe:0", "fd:0", "-", "{folder}/%03d.png"),
    "{folder}/*.png",
  ],
)
def test_only_names_of_files_are_names(tmp_path, secret, name):
  (tmp_path / "001.png").write_bytes(b"x")
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    clip = name.format(port=port, file=secret, folder=tmp_path)
    with pytest.raises(ValueError, match="there is no such file"):
      _read(clip)
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
      server.accept()


def test_pictures_that_lie_in_another_file_stay_there(tmp_path, secret):
  """QuickTime's data references may name any file of this machine."""
  data = secret.read_bytes()
  at = data.index(b"dref") - 4
  size = struct.unpack(">I", data[at : at + 4])[0]
  name = str(secret).encode()
  alias = _alias(name)
  entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
  table = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
  changed = data[:at] + table + data[at + size :]
  # The boxes around it grow, too; the index stands behind the data.
  changed = bytearray(changed)
  for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
    place = changed.index(box) - 4
    old = struct.unpack(">I", changed[place : place + 4])[0]
    new = struct.pack(">I", old + len(table) - size)
    changed[place : place + 4] = new
  (tmp_path / "clip.mov").write_bytes(changed)
  # Here are no pictures: they would come from the other file.
  start = changed.index(b"mdat") + 4
  end = changed.index(b"moov") - 4
  changed[start:end] = bytes(end - start)
  (tmp_path / "clip.mov").write_bytes(changed)
  with pytest.raises(ValueError, match=r"clip\.mov' cannot be read"):
    _read(tmp_path / "clip.mov")


def _alias(name: bytes) -> bytes:
  """A Macintosh alias record that leads to a path, as FFmpeg reads it."""
  volume, file = b"disk", name.rsplit(b"/", 1)[1]
  record = struct.pack(">I", 0) + bytes(6)
  record += bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(12)
  record += bytes([len(file)]) + file.ljust(63, b"\0") + bytes(16)
  record += struct.pack(">hh", 1, 1) + bytes(16)
  for kind, text in ((2, name), (18, name)):
    record += (
      struct.pack(">hH", kind, len(text)) + text + b"\0" * (len(text) % 2)
    )
  return record + struct.pack(">h", -1) + b"\0\0"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "none", "empty"])
def test_only_regular_files_are_opened(tmp_path, kind):
  path = tmp_path / "clip.mp4"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  elif kind == "device":
    path = pathlib.Path("/dev/zero")
  elif kind == "empty":
    path.touch()
  with pytest.raises(ValueError, match="cannot be read"):
    _read(path)


def test_links_and_odd_names_are_followed(tmp_path, secret):
  path = tmp_path / "a b: ü 日本 %03d.mp4"
  path.symlink_to(secret)
  assert len(_read(path).frames) == 8


@pytest.mark.parametrize("name", ["a\0b.mp4", "a\x1b[31mb\nc.mp4", "x" * 5000])
def test_messages_are_one_printable_line(tmp_path, name):
  with pytest.raises(ValueError) as error:
    _read(f"{tmp_path}/{name}")
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 600


def test_formats_that_open_other_files_are_not_among_those_read():
  known = {x for names in containers.FORMATS for x in names.split(",")}
  assert not known & {
    *("hls", "dash", "concat", "image2", "image2pipe", "sdp", "rtsp", "rtp"),
    *("lavfi", "tee", "data", "imf", "ffmetadata", "webm_dash_manifest"),
    *("avisynth", "vapoursynth", "hds", "tty", "txt", "sap", "svg_pipe"),
  }
