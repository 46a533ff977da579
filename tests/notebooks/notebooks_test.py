"""Notebooks run from top to bottom, and their two files say the same."""

import os
import pathlib

import jupytext
import nbclient
import pytest

_FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
_NAMES = sorted(path.stem for path in _FOLDER.glob("*.ipynb"))
_MAX_BYTES = 400_000  # A notebook is read in a browser and kept in git.
_SECONDS = 600  # Of one cell; a notebook takes 3 minutes on two free cores.


def _cells(name: str, suffix: str) -> list[tuple[str, str]]:
  notebook = jupytext.read(_FOLDER / f"{name}{suffix}")
  return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_notebooks_exist_in_pairs():
  assert _NAMES
  texts = {path.stem for path in _FOLDER.glob("[0-9]*.md")}
  assert texts == set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_pair_is_in_sync(name):
  assert _cells(name, ".ipynb") == _cells(name, ".md")


@pytest.mark.parametrize("name", _NAMES)
def test_notebook_holds_outputs_without_errors(name):
  notebook = jupytext.read(_FOLDER / f"{name}.ipynb")
  outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
  assert any("image/png" in output.get("data", {}) for output in outputs)
  assert not [o for o in outputs if o.output_type == "error"]
  assert (_FOLDER / f"{name}.ipynb").stat().st_size < _MAX_BYTES


@pytest.mark.skipif(
  "VIDEOMLA_NOTEBOOKS" not in os.environ, reason="run by make test-notebooks"
)
@pytest.mark.parametrize("name", _NAMES)
def test_notebook_runs_in_a_fresh_kernel(name):
  notebook = jupytext.read(_FOLDER / f"{name}.md")
  client = nbclient.NotebookClient(
    notebook,
    timeout=_SECONDS,
    kernel_name="python3",
    resources={"metadata": {"path": str(_FOLDER)}},
  )
  client.execute()  # Raises with the cell's traceback if one fails.
