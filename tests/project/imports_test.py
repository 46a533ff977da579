"""Tests of the layout: imports go down, files stay small, tests mirror code."""

import ast
import collections.abc
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGE = _ROOT / "videomla_jax"
_MAX_LINES = 400
_MAX_KERNEL_LINES = 600  # one pipeline is read in one piece

# Folders and files at the top of the package from the bottom up, and what each
# may import beside itself. A name may only stand in rows below its own, so
# there is no way back up. Every other file at the top is a command.
BELOW: dict[str, set[str]] = {
  "media": set(),
  "storage": set(),
  "shapes": set(),
  "sharding": {"storage"},
  "runtime": {"storage"},
  "ops": {"shapes"},
  "models": {"shapes", "sharding", "storage", "ops"},
  "diffusion": {"shapes", "sharding", "ops", "models"},
  "data": {"media", "storage", "ops", "models"},
  "small_world": {"storage", "ops", "models", "data"},
  "costs": {"shapes", "sharding", "ops", "models", "diffusion"},
  "conversion": {"storage", "ops", "models", "small_world"},
  "analysis": {
    *("storage", "ops", "models", "diffusion", "small_world", "conversion"),
  },
  "generation": {
    *("shapes", "media", "storage", "runtime", "ops", "models", "diffusion"),
    *("data", "small_world", "costs"),
  },
  "training": {
    *("sharding", "storage", "runtime", "ops", "models", "diffusion", "data"),
    *("small_world", "costs", "conversion", "analysis", "generation"),
  },
  "measuring": {
    *("sharding", "storage", "runtime", "ops", "models", "diffusion", "data"),
    *("small_world", "costs", "generation", "training"),
  },
  "quality": {
    *("shapes", "media", "storage", "runtime", "models", "data"),
    *("small_world", "costs", "generation"),
  },
  "autoencoding": {
    *("media", "storage", "runtime", "ops", "models", "data"),
    *("small_world", "generation", "training"),
  },
  "chain": {
    *("storage", "runtime", "ops", "models", "small_world", "costs"),
    *("conversion", "training", "autoencoding"),
  },
  "ablations": {
    *("media", "runtime", "models", "diffusion", "data", "small_world"),
    *("conversion", "analysis", "generation", "training", "measuring"),
  },
}
# Folders of tests that look at more than one module.
_WHOLE_PROJECT = {"aot", "clips", "notebooks", "parity", "peers", "project"}


def _room(module: str) -> str:
  """The row of a module such as `videomla_jax.ops.rope`, or "command"."""
  top = module.split(".")[1]
  return top if top in BELOW else "command"


def _sources() -> list[pathlib.Path]:
  return sorted(_PACKAGE.rglob("*.py"))


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(_ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_module(name: str) -> bool:
  path = _ROOT / name.replace(".", "/")
  return path.with_suffix(".py").exists() or path.is_dir()


def _imported(path: pathlib.Path) -> collections.abc.Iterator[str]:
  """Yields the package's modules that a file imports, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import; write the full name"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      names = [x if _is_module(x) else str(node.module) for x in names]
    else:
      continue
    yield from (x for x in names if x.split(".")[0] == "videomla_jax")


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_imports_go_down(path: pathlib.Path) -> None:
  module = _module(path)
  if module == "videomla_jax":  # What it exports is imported when asked for.
    return
  room = _room(module)
  for name in set(_imported(path)) - {"videomla_jax", module}:
    below = _room(name)
    allowed = BELOW[room] | {room} if room != "command" else set(BELOW)
    assert below in allowed, f"{room} must not import {below} ({name})"


def test_table_of_imports_has_no_way_up() -> None:
  rows = [*BELOW]
  for i, room in enumerate(rows):
    assert BELOW[room] <= {*rows[:i]}, room


def test_table_of_imports_names_what_exists_and_is_used() -> None:
  used: dict[str, set[str]] = {room: set() for room in BELOW}
  for path in _sources():
    module = _module(path)
    if module != "videomla_jax" and _room(module) in used:
      names = set(_imported(path)) - {"videomla_jax"}
      used[_room(module)] |= {_room(name) for name in names}
  assert {room: below - {room} for room, below in used.items()} == BELOW


def test_top_of_the_package_is_commands_and_rooms() -> None:
  rooms = {p.stem for p in _PACKAGE.iterdir() if not p.name.startswith("_")}
  others = rooms - {"checkpoints"} - {*BELOW}
  assert others == {
    *("train", "train_vae", "sample", "evaluate", "convert"),
    *("calibrate", "prepare", "embed", "analyze", "ablate", "benchmark"),
    "verify",
  }


def test_imports_have_no_cycle() -> None:
  graph = {_module(p): set(_imported(p)) - {_module(p)} for p in _sources()}
  done: set[str] = set()
  while ready := [m for m in graph.keys() - done if not graph[m] - done]:
    done.update(ready)
  unknown = set().union(*graph.values()) - graph.keys()
  assert done == graph.keys(), f"cycle in {graph.keys() - done}, {unknown=}"


def test_core_is_read_in_forty_seven_files() -> None:
  # Kernels, and how one of them is chosen.
  kernels = ("pallas_", "triton", "library", "blocks", "selection")
  core = [
    _PACKAGE / f"{x}.py" for x in ("shapes", "sharding", "train", "sample")
  ]
  for folder in ("ops", "models", "diffusion", "training/stages"):
    core += (_PACKAGE / folder).rglob("*.py")
  core = [
    p for p in core if p.stem != "__init__" and not p.stem.startswith(kernels)
  ]
  assert len(core) <= 47, sorted(p.stem for p in core)


@pytest.mark.parametrize("folder", ["videomla_jax", "tests", "configs"])
def test_files_are_small_and_named_for_what_they_are(folder: str) -> None:
  for path in (_ROOT / folder).rglob("*.py"):
    assert path.stem not in ("utils", "util", "helpers", "misc"), path
    lines = len(path.read_text().splitlines())
    kernel = path.stem.startswith("pallas_")
    limit = _MAX_KERNEL_LINES if kernel else _MAX_LINES
    assert lines <= limit, f"{path} has {lines} lines; split it by idea"


def test_annotations_stay_checkable() -> None:
  for path in _sources():
    assert "from __future__ import annotations" not in path.read_text(), path


def _mirrors(test: pathlib.Path) -> bool:
  """True if a test file begins with the name of a module of its folder."""
  folder = _PACKAGE / test.parent.relative_to(_ROOT / "tests")
  stem = test.stem.removesuffix("_test")
  modules = {p.stem for p in folder.glob("*.py")}
  return any(stem == m or stem.startswith(f"{m}_") for m in modules)


def test_tests_mirror_the_package() -> None:
  for path in (_ROOT / "tests").rglob("*_test.py"):
    folder = path.parent.relative_to(_ROOT / "tests")
    if {*folder.parts[:1]} <= _WHOLE_PROJECT and folder.parts:
      continue
    assert _mirrors(path), f"{path} mirrors no module of the package"
