"""Builds the documentation site: `make docs`, offline, warnings are errors.

Pages stay where they are read in the repository, so the root of the sources is
the root of the repository, and links between pages are the same in both.
Notebooks are shown with their stored outputs and are not run.
"""

import pathlib
import sys

from docutils import nodes
from sphinx import addnodes
import sphinx.application

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import docstrings  # noqa: E402

project = "videomla_jax"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = [
  "*.md",
  "docs/*.md",
  "launch/*.md",
  "notebooks/*.ipynb",
]
# Not searched for pages, which takes long in an environment.
exclude_patterns = [".*", "build", "dist", "out", "runs", "tests"]

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as on GitHub

# The README opens the site; the table of contents is of the site alone.
_CONTENTS = """

```{toctree}
:hidden:
:glob:
:caption: Documentation
docs/*
launch/README
```

```{toctree}
:hidden:
:glob:
:caption: Notebooks
notebooks/*
```

```{toctree}
:hidden:
:caption: Project
CONTRIBUTING
CHANGELOG
```
"""


def add_generated(
  app: sphinx.application.Sphinx, docname: str, source: list[str]
) -> None:
  """Adds the table of contents to the opening page, docstrings to theirs."""
  if docname == app.config.root_doc:
    source[0] += _CONTENTS
  if docname == "docs/api":
    source[0] += docstrings.page(ROOT / "videomla_jax")


def keep_equations(
  app: sphinx.application.Sphinx, document: nodes.document
) -> None:
  r"""Hands equations to MathJax as they are written.

  Sphinx would wrap those of several lines in an environment in which `\tag` is
  an error.
  """
  for equation in document.findall(nodes.math_block):
    text = nodes.Text(rf"\[{equation.astext()}\]")
    equation.children, equation["no-wrap"] = [text], True


def show_folders(
  app: sphinx.application.Sphinx, document: nodes.document
) -> None:
  """Shows links to folders, of which the site has no pages, as plain text."""
  page = pathlib.Path(app.env.doc2path(app.env.docname))
  for link in list(document.findall(addnodes.pending_xref)):
    folder = (page.parent / link["reftarget"]).resolve()
    if folder.is_dir() and ROOT in folder.parents:
      link.replace_self(link.children)


def add_index(app: sphinx.application.Sphinx, error: Exception | None) -> None:
  """Sends who opens the folder of the site to the opening page."""
  page = f"{app.config.root_doc}.html"
  text = f'<meta http-equiv="refresh" content="0; url={page}">\n'
  (app.outdir / "index.html").write_text(text)


def setup(app: sphinx.application.Sphinx) -> None:
  """Connects the functions above with the build."""
  app.connect("source-read", add_generated)
  app.connect("doctree-read", keep_equations)
  app.connect("doctree-read", show_folders)
  app.connect("build-finished", add_index)
