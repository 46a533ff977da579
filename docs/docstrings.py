"""Writes the page of the public functions from the sources, without imports.

Sphinx's autodoc would import JAX and every module, takes a minute, and reads
docstrings as a markup that they are not written in. Here signatures and
docstrings are shown as they stand in the code.
"""

import ast
from collections.abc import Iterator
import pathlib
import textwrap

Definition = ast.FunctionDef | ast.ClassDef


def page(package: pathlib.Path) -> str:
  """Returns Markdown for all public names of a package, module by module.

  Args:
    package: Folder of the package.
  """
  files = sorted(package.rglob("*.py"))
  return "\n".join(line for path in files for line in _module(path, package))


def _module(path: pathlib.Path, package: pathlib.Path) -> Iterator[str]:
  """Yields the section of one module."""
  source = path.read_text()
  tree = ast.parse(source)
  if not tree.body or (path.stem.startswith("_") and path.stem != "__init__"):
    return
  parts = path.relative_to(package.parent).with_suffix("").parts
  yield f"\n## {'.'.join(p for p in parts if p != '__init__')}\n"
  yield from _fenced("text", ast.get_docstring(tree) or "")
  for node in _public(tree):
    yield from _definition(node, source.splitlines())


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
  """Yields functions and classes whose names begin without underscore."""
  for node in tree.body:
    is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
    if is_definition and not node.name.startswith("_"):
      yield node


def _definition(node: Definition, lines: list[str]) -> Iterator[str]:
  """Yields signature and docstring, of a class its public methods, too."""
  signature = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
  yield from _fenced("python", textwrap.dedent(signature).strip())
  if text := ast.get_docstring(node):
    yield from _fenced("text", text)
  if isinstance(node, ast.ClassDef):
    for method in _public(node):
      yield from _definition(method, lines)


def _fenced(language: str, text: str) -> Iterator[str]:
  if text:
    yield f"\n~~~~{language}\n{text}\n~~~~"
