"""Programs are kept where they may be, and compiling is counted."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from videomla_jax.runtime import compiled_programs

_FIELDS = (
  "jax_compilation_cache_dir",
  "jax_compilation_cache_max_size",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_enable_compilation_cache",
)


@pytest.fixture(autouse=True)
def _as_before():
  before = {name: getattr(jax.config, name) for name in _FIELDS}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize(
  ("environment", "folder"),
  [
    (dict(HOME="/home/a"), "/home/a/.cache/videomla_jax/programs"),
    (dict(HOME="/home/a", XDG_CACHE_HOME="/c"), "/c/videomla_jax/programs"),
    (
      dict(HOME="/home/a", XDG_CACHE_HOME="not/absolute"),
      "/home/a/.cache/videomla_jax/programs",
    ),
  ],
)
def test_default_lies_in_the_cache_of_the_user(environment, folder):
  found = compiled_programs.default_folder(environment)
  assert found == pathlib.Path(folder)


def test_without_a_gpu_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  assert not compiled_programs.keep()
  assert jax.config.jax_compilation_cache_dir is None
  assert not [*tmp_path.iterdir()]


def test_with_a_gpu_programs_are_kept_for_the_user_alone(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compiled_programs, "_has_gpu", lambda: True)
  jax.config.update("jax_compilation_cache_dir", None)
  said = compiled_programs.keep()
  folder = tmp_path / "videomla_jax" / "programs"
  assert said == f"compiled programs are kept in {folder}"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_the_environment_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled_programs, "_has_gpu", lambda: True)
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert not compiled_programs.keep()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.mark.parametrize(
  ("platforms", "looked"),
  [(None, True), ("cuda,cpu", True), ("cpu,cuda", False), ("tpu", False)],
)
def test_the_first_platform_decides(monkeypatch, platforms, looked):
  asked = []
  monkeypatch.setattr(
    compiled_programs.importlib.util,
    "find_spec",
    lambda name: asked.append(name),
  )
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", platforms)
    assert not compiled_programs._has_gpu()
  finally:
    jax.config.update("jax_platforms", before)
  assert bool(asked) is looked


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
  (tmp_path / "videomla_jax").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compiled_programs, "_has_gpu", lambda: True)
  jax.config.update("jax_compilation_cache_dir", None)
  said = compiled_programs.keep()
  assert said.startswith("compiled programs are not kept: programs=")
  assert jax.config.jax_compilation_cache_dir is None


def test_off_keeps_nothing():
  assert not compiled_programs.keep("off")
  assert not jax.config.jax_enable_compilation_cache


def test_folders_that_others_may_write_into_are_refused(tmp_path):
  shared = tmp_path / "shared"
  shared.mkdir()
  shared.chmod(0o777)
  with pytest.raises(ValueError, match="others may write into it"):
    compiled_programs.keep(str(shared))
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="cannot be made"):
    compiled_programs.keep(str(tmp_path / "file"))


_PROGRAM = """
import sys, jax
from videomla_jax.runtime import compiled_programs
compiled_programs.keep(sys.argv[1])
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
with compiled_programs.clock() as clock:
  jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
assert clock.seconds > 0
counted = clock.seconds
jax.jit(lambda x: x - 7)(1.0)
assert clock.seconds == counted
hits = found.count("/jax/compilation_cache/cache_hits")
misses = found.count("/jax/compilation_cache/cache_misses")
print(hits, misses)
"""


def test_a_second_start_compiles_nothing_unless_programs_are_damaged(tmp_path):
  counts = []
  for start in range(3):
    if start == 2:
      for path in (tmp_path / "programs").glob("*-cache"):
        path.write_bytes(path.read_bytes()[:-40])
    ended = subprocess.run(
      [sys.executable, "-c", _PROGRAM, str(tmp_path / "programs")],
      capture_output=True,
      text=True,
      check=True,
      env={
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
      },
    )
    counts.append(tuple(map(int, ended.stdout.split())))
  (_, first), (hits, second), (_, third) = counts
  assert first > 0
  assert hits > 0
  assert second == 0
  assert third == first
