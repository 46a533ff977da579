"""Test that one module puts files on disk, so that all of them are whole."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).parents[2] / "videomla_jax"
_WRITERS = {"atomic", "temporary_names", "folder_swap"}

_INSIDE = "writes inside of a folder that `atomic` gave and renames"
_GIVEN = "writes to the path that `atomic` gave"
# Modules that write by other ways, and why they may.
ALLOWED: dict[str, str] = {
  "chain/run": _INSIDE,
  "costs/machine_code": "feeds a compiler, in a temporary folder",
  "costs/toolchain": "links compilers, in a temporary folder",
  "conversion/moments": _GIVEN,
  "conversion/components": _GIVEN,
  "conversion/targets": "proves that a folder can be written",
  "data/embeddings": _GIVEN,
  "data/preparation": _INSIDE,
  "data/record_files": _INSIDE,
  "data/shards": _GIVEN,
  "generation/contact_sheet": _GIVEN,
  "generation/mp4": "FFmpeg writes by itself, under a temporary name",
  "quality/judge": "another program writes, in a temporary folder",
  "runtime/event_files": _GIVEN,
  "runtime/metrics": "appends lines to a log",
  "runtime/terminal": "opens the device that forgets everything",
  "small_world/codecs": _INSIDE,
  "small_world/judge_cache": _GIVEN,
  "storage/model_folder": _INSIDE,
  "storage/model_writer": _INSIDE,
  "storage/output_folder": "proves that a folder can be written",
  "storage/params_skeleton": _INSIDE,
  "storage/safetensors_writer": _GIVEN,
  "storage/state_commit": "gives the folders that Orbax wrote their names",
  "storage/state_digests": "lists a folder that Orbax has yet to rename",
  "storage/train_states": "Orbax writes by itself; bad states are renamed",
  "training/finite_watch": _GIVEN,
  "training/interrupts": "holds a lock; nothing is in the file",
}
_CALLS = {
  *("write_text", "write_bytes", "touch", "rename", "renames", "link"),
  *("symlink", "symlink_to", "hardlink_to", "move", "copy", "copy2"),
  *("copyfile", "copyfileobj", "copytree", "tofile", "save", "savez"),
  *("savez_compressed", "savetxt", "save_file", "dump", "mkstemp"),
  *("NamedTemporaryFile", "TemporaryFile"),
}
_RENAMES = {"rename", "renames", "replace", "move"}


def _modules() -> list[pathlib.Path]:
  paths = sorted(_PACKAGE.rglob("*.py"))
  return [x for x in paths if x.stem not in _WRITERS]


def _name(path: pathlib.Path) -> str:
  return path.relative_to(_PACKAGE).with_suffix("").as_posix()


def _mode(call: ast.Call, at: int) -> str:
  """The mode of a call of `open`, or "r"."""
  given = [x.value for x in call.keywords if x.arg == "mode"]
  given += call.args[at : at + 1]
  constants = [x.value for x in given if isinstance(x, ast.Constant)]
  return str(constants[0]) if constants else "r"


def _writes(path: pathlib.Path) -> Iterator[str]:
  """Yields the calls of a module that create, fill or rename files."""
  for call in ast.walk(ast.parse(path.read_text())):
    if not isinstance(call, ast.Call):
      continue
    if isinstance(call.func, ast.Name) and call.func.id == "open":
      if set(_mode(call, 1)) & set("wax+"):
        yield f"open, line {call.lineno}"
    if not isinstance(call.func, ast.Attribute):
      continue
    name, owner = call.func.attr, ast.unparse(call.func.value)
    if name == "open":
      # `av.open` and kin have the path in front of the mode.
      at = 1 if owner in ("av", "io", "os", "gzip") else 0
      found = set(_mode(call, at)) & set("wax+")
    elif name == "replace":
      # Texts and dataclasses have a `replace`, too.
      found = owner == "os" or (len(call.args) == 1 and not call.keywords)
      found = found and owner not in ("dataclasses", "nnx")
    elif name in ("copy", "save", "dump", "link"):
      found = owner in ("shutil", "np", "numpy", "os", "image", "json")
    else:
      found = name in _CALLS
    if found and owner != "atomic":
      yield f"{owner}.{name}, line {call.lineno}"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_files_are_written_by_one_module(path: pathlib.Path) -> None:
  found = [*_writes(path)]
  if _name(path) in ALLOWED:
    assert found, f"{_name(path)} writes nothing; take it off the list"
    if ALLOWED[_name(path)] in (_GIVEN, _INSIDE):
      renames = [x for x in found if x.split(",")[0].split(".")[-1] in _RENAMES]
      assert not renames, f"{path} renames by itself: {renames}"
    return
  assert not found, (
    f"{path}: {found}; write through storage/atomic.py, or say in the table of"
    " this test why not"
  )
