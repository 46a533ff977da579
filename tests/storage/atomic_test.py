"""Tests of files and folders that are whole or not there."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from videomla_jax.storage import atomic
from videomla_jax.storage import folder_swap
from videomla_jax.storage import temporary_names

_ROOT = pathlib.Path(__file__).parents[2]


def _any(folder: pathlib.Path) -> bool:
  return folder.is_dir()


def _put(path: pathlib.Path, text: str, **how) -> None:
  with atomic.replacing_folder(path, is_ours=_any, **how) as temporary:
    (temporary / "a").write_text(text)
    (temporary / "deep").mkdir()
    (temporary / "deep" / "b").write_text(text)


def _texts(path: pathlib.Path) -> set[str]:
  return {(path / name).read_text() for name in ("a", "deep/b")}


def test_the_file_appears_when_the_block_ends(tmp_path) -> None:
  path = tmp_path / "a.txt"
  with atomic.replacing(path) as temporary:
    temporary.write_text("new")
    assert not path.exists() and temporary.parent == tmp_path
  assert path.read_text() == "new"
  assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, OSError])
def test_after_an_error_the_file_is_the_one_before(tmp_path, kind) -> None:
  path, folder = tmp_path / "a.txt", tmp_path / "b"
  atomic.write_text(path, "é\n")
  _put(folder, "old")
  with pytest.raises(kind):
    with atomic.replacing(path) as temporary:
      temporary.write_text("half")
      raise kind
  with pytest.raises(kind):
    with atomic.replacing_folder(folder, is_ours=_any) as temporary:
      (temporary / "a").write_text("half")
      raise kind
  assert path.read_bytes() == "é\n".encode() and _texts(folder) == {"old"}
  assert sorted(tmp_path.iterdir()) == [path, folder]


def test_two_writers_do_not_meet(tmp_path) -> None:
  path, folder = tmp_path / "a.txt", tmp_path / "b"
  with atomic.replacing(path) as one, atomic.replacing(path) as two:
    assert one != two
    one.write_text("one")
    two.write_text("two")
  assert path.read_text() == "one"  # the outer block ends last
  for _ in range(2):  # at first there is no folder, then there is one
    with atomic.replacing_folder(folder, is_ours=_any) as one:
      (one / "a").write_text("outer")
      (one / "deep").mkdir()
      (one / "deep" / "b").write_text("outer")
      _put(folder, "inner")
      assert _texts(folder) == {"inner"}
    assert _texts(folder) == {"outer"}
  assert sorted(tmp_path.iterdir()) == [path, folder]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "字" * 85, "a.b.c"])
def test_a_name_of_any_length_has_a_temporary_one(tmp_path, name) -> None:
  with atomic.replacing(tmp_path / name) as temporary:
    assert len(os.fsencode(temporary.name)) <= 255
    temporary.write_text("x")
  assert [x.name for x in tmp_path.iterdir()] == [name]
  with pytest.raises(ValueError, match="255 bytes"):
    with atomic.replacing(tmp_path / f"{name}{'é' * 130}"):
      pass


def test_links_stay_links(tmp_path) -> None:
  disk = tmp_path / "disk"
  (disk / "model").mkdir(parents=True)
  (disk / "text").write_text("old")
  for name in ("model", "text"):
    (tmp_path / name).symlink_to(disk / name)
  (tmp_path / "new").symlink_to(disk / "missing")
  _put(tmp_path / "model", "1")
  _put(tmp_path / "new", "1")
  atomic.write_text(tmp_path / "text", "1")
  assert all((tmp_path / x).is_symlink() for x in ("model", "text", "new"))
  assert _texts(disk / "model") == _texts(disk / "missing") == {"1"}
  assert (disk / "text").read_text() == "1"
  assert sorted(os.listdir(disk)) == ["missing", "model", "text"]
  (tmp_path / "round").symlink_to(tmp_path / "round")
  with pytest.raises(ValueError, match="leads back to itself"):
    atomic.write_text(tmp_path / "round", "1")


def test_what_would_be_lost_is_refused_before_any_work(tmp_path) -> None:
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "thesis.txt").write_text("mine")
  os.mkfifo(tmp_path / "pipe")
  for make, name in (
    (atomic.replacing_folder, "file"),
    (atomic.replacing_folder, "folder"),
    (atomic.replacing, "folder"),
    (atomic.replacing, "pipe"),
  ):
    with pytest.raises(ValueError, match=f"{name}.*give"):
      with make(tmp_path / name):
        raise AssertionError("the block must not run")
  assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]
  assert os.listdir(tmp_path / "folder") == ["thesis.txt"]
  (tmp_path / "empty").mkdir()
  with atomic.replacing_folder(tmp_path / "empty") as temporary:
    (temporary / "a").write_text("x")
  assert os.listdir(tmp_path / "empty") == ["a"]


_CHILD = """
import os, pathlib, signal, sys
from videomla_jax.storage import atomic, folder_swap, temporary_names
kind, path, at = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
if kind == "slow":
  def refuse(*unused): raise OSError(22, "no exchange")
  folder_swap._exchange = refuse
calls = 0
def dying(call):
  def wrapped(*given, **named):
    global calls
    calls += 1
    if calls == at:
      os.kill(os.getpid(), signal.SIGKILL)
    return call(*given, **named)
  return wrapped
for module, name in (
  (os, "rename"), (os, "replace"), (os, "fsync"), (os, "rmdir"), (os, "mkdir"),
  (os, "unlink"), (folder_swap, "_exchange"),
):
  setattr(module, name, dying(getattr(module, name)))
if kind == "file":
  atomic.write_text(path, "new")
else:
  with atomic.replacing_folder(path, is_ours=lambda x: True) as temporary:
    (temporary / "a").write_text("new")
    (temporary / "deep").mkdir()
    (temporary / "deep" / "b").write_text("new")
print("done", calls)
"""


def _child(kind: str, path: pathlib.Path, at: int) -> bool:
  """Writes in a process that is killed before a call; False if it was."""
  done = subprocess.run(
    [sys.executable, "-S", "-c", _CHILD, kind, str(path), str(at)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode in (0, -signal.SIGKILL), done.stderr
  return done.returncode == 0


@pytest.mark.parametrize("kind", ["file", "fast", "slow"])
def test_a_kill_at_any_moment_leaves_something_whole(tmp_path, kind) -> None:
  path = tmp_path / "result"
  seen = set()
  for at in range(1, 40):
    (atomic.write_text if kind == "file" else _put)(path, "old")
    finished = _child(kind, path, at)
    if kind == "file":
      seen.add(path.read_text())
    else:
      temporary_names.recover(path)  # as every reader does
      texts = _texts(path)
      assert len(texts) == 1
      seen |= texts
    if finished:
      break
  else:
    raise AssertionError("never finished")
  assert at > 3 and seen == {"old", "new"}
  # Whoever writes next removes what the dead left.
  (atomic.write_text if kind == "file" else _put)(path, "last")
  assert [*tmp_path.iterdir()] == [path]


def test_leftovers_of_others_stay(tmp_path, monkeypatch) -> None:
  path = tmp_path / "a.b"
  living = temporary_names.beside(path)
  host, process = os.uname().nodename, str(os.getpid())
  assert process in living.name
  living.write_text("mine")
  strangers = []
  # Another host, and a living process of another start.
  monkeypatch.setattr(temporary_names, "_host", lambda: "elsewhere")
  strangers.append(temporary_names.beside(path))
  monkeypatch.undo()
  dead = path.with_name(living.name.replace(f".{process}.", ".999999999."))
  earlier = tmp_path / ".a.b.999999999.tmp"  # of an earlier version
  again = living.name.split(".")
  again[-3] = "1"  # start of the process
  reused = path.with_name(".".join(again))
  for other in (*strangers, dead, earlier, reused, tmp_path / ".c.1.tmp"):
    other.write_text("x")
  with temporary_names.held(reused):
    atomic.write_text(path, "new")
    assert reused.exists()  # somebody holds its lock
  assert not dead.exists() and not earlier.exists()
  atomic.write_text(path, "new")
  left = {x.name for x in tmp_path.iterdir()}
  assert left == {"a.b", living.name, strangers[0].name, ".c.1.tmp"}, host


def test_names_are_on_disk_before_and_after_the_rename(
  tmp_path, monkeypatch
) -> None:
  events = []
  sync, replace, swap = os.fsync, os.replace, folder_swap.swap

  def synced(descriptor: int) -> None:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    events.append(os.path.relpath(path, tmp_path))
    sync(descriptor)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(
    os, "replace", lambda *x: (events.append("rename"), replace(*x))
  )
  monkeypatch.setattr(
    folder_swap, "swap", lambda *x: (events.append("rename"), swap(*x))
  )
  atomic.write_text(tmp_path / "a", "x")
  assert [x[:3] for x in events] == [".a.", "rename"[:3], "."]
  events.clear()
  _put(tmp_path / "b", "x")
  at = events.index("rename")
  inside = {x.partition("/")[2] for x in events[:at]}
  assert inside == {"", "a", "deep", "deep/b"} and events[at + 1 :] == ["."]
