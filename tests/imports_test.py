"""Tests of the layout: imports go one way, files stay small and named."""

import ast
import collections.abc
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = _ROOT / "videomla_jax"
_MAX_LINES = 450
_MAX_KERNEL_LINES = 600  # one pipeline is read in one piece

# A module may import its own layer and those listed for it. Leaves serve one
# purpose each; they know the model but no entry point does their work twice.
_MODEL = {"shapes", "ops", "models", "storage"}
_LEAVES = {"analysis", "data", "leaf"}
_BELOW = {
  "shapes": set(),
  "ops": {"shapes", "storage"},
  # Files of arrays, without any knowledge of what they are.
  "storage": set(),
  "models": {"shapes", "ops", "storage"},
  "diffusion": _MODEL,
  "init": _MODEL,
  "leaf": _MODEL,
  "data": _MODEL | {"leaf"},
  "analysis": _MODEL | {"diffusion", "data", "leaf"},
  "entry": _MODEL | _LEAVES | {"diffusion", "init"},
}
_STORAGE_FILES = {
  "checkpoint",
  "checkpoint_writer",
  "tensor_files",
  "sharding",
  "torch_pickle",
  "train_checkpoints",
  "tree_names",
  "whole_file",
}
_LEAF_FILES = {"aot", "cli", "distributed", "machine_code", "metrics", "video"}
# Every other file at the top of the package is an entry point.


def _layer(module: str) -> str:
  """Names the layer of a module such as `videomla_jax.ops.rope`."""
  top = [*module.split("."), ""][1]
  if top in _STORAGE_FILES:
    return "storage"
  if top in _BELOW and top not in ("leaf", "entry", "storage"):
    return top
  return "leaf" if top in _LEAF_FILES else "entry"


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
def test_imports_go_one_way(path: pathlib.Path) -> None:
  layer = _layer(_module(path))
  for name in _imported(path):
    if name == "videomla_jax":  # The version.
      continue
    below = _layer(name)
    allowed = _BELOW[layer] | {layer}
    assert below in allowed, f"{layer} must not import {below} ({name})"


def test_imports_have_no_cycle() -> None:
  graph = {_module(p): set(_imported(p)) - {_module(p)} for p in _sources()}
  done: set[str] = set()
  while ready := [m for m in graph.keys() - done if not graph[m] - done]:
    done.update(ready)
  unknown = set().union(*graph.values()) - graph.keys()
  assert done == graph.keys(), f"cycle in {graph.keys() - done}, {unknown=}"


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


def test_tests_mirror_the_package() -> None:
  for path in (_ROOT / "tests").rglob("*_test.py"):
    folder = path.parent.relative_to(_ROOT / "tests")
    known = (_PACKAGE / folder).is_dir() or folder.parts[0] in (
      "aot",
      "clips",
      "configs",
      "entry",
      "notebooks",
      "parity",
      "peers",
    )
    assert known, f"{path} mirrors no folder of the package"
