"""Every name that a file takes from one of our modules exists there.

Mypy looks at the package alone; a name that was changed is found here in tests,
configs, notebooks' sources and pages as well, without running them.
"""

import ast
import importlib
import pathlib
import types

_ROOT = pathlib.Path(__file__).parents[2]
_OURS = ("videomla_jax", "tests")
# Their modules only exist in environments of their own.
_ELSEWHERE = {_ROOT / "tests" / "peers"}
_FILES = sorted(
  path
  for folder in ("videomla_jax", "tests", "configs", "docs", "launch")
  for path in (_ROOT / folder).rglob("*.py")
  if not _ELSEWHERE & {*path.parents} and "_build" not in path.parts
)


def _modules(tree: ast.AST) -> dict[str, types.ModuleType]:
  """Returns our modules that a file imports, by the names it gives them."""
  found = {}
  for node in ast.walk(tree):
    if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
      continue
    if node.module.split(".")[0] not in _OURS:
      continue
    for alias in node.names:
      try:
        named = importlib.import_module(f"{node.module}.{alias.name}")
      except ModuleNotFoundError:
        named = getattr(importlib.import_module(node.module), alias.name)
      if isinstance(named, types.ModuleType):
        found[alias.asname or alias.name] = named
  return found


def _hidden(tree: ast.AST) -> set[str]:
  """Names that a file gives to something else, too: those are not followed."""
  stores = {
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  return stores | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def missing_names(source: str) -> list[str]:
  """Returns attributes of our modules that a file reads and they lack."""
  tree = ast.parse(source)
  modules = _modules(tree)
  for name in _hidden(tree):
    modules.pop(name, None)
  return [
    f"line {node.lineno}: {modules[node.value.id].__name__}.{node.attr}"
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in modules
    and not hasattr(modules[node.value.id], node.attr)
  ]


def test_names_exist_where_they_are_taken_from():
  missing = {
    str(path.relative_to(_ROOT)): names
    for path in _FILES
    if (names := missing_names(path.read_text()))
  }
  assert not missing


def test_a_name_that_is_gone_is_found():
  source = (
    "from videomla_jax.conversion import calibration\n"
    "def f(x):\n  return calibration.embed(x), calibration._embed(x)\n"
  )
  assert missing_names(source) == [
    "line 3: videomla_jax.conversion.calibration._embed"
  ]
