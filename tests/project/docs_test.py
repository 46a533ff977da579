"""Documents: what is cited exists, links lead somewhere, numbers have no gaps."""

import collections
import functools
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDERS = ("configs", "docs", "launch", "notebooks", "tests", "videomla_jax")
_CITING = (".ipynb", ".md", ".py", ".toml", ".yaml", ".sbatch")
_METHOD = "docs/method.md"

# A citation may continue on the next line of a docstring or a comment.
_GAP = r"[\s#]+"
_CITED = re.compile(
  rf"docs/method\.md,{_GAP}(?:section{_GAP}(\d+(?:\.\d+)?)"
  rf"|Eq\.{_GAP}\((\d+\.\d+)\))"
)
# Whatever follows the file and speaks of a place in it.
_ALMOST = re.compile(
  rf"docs/method\.md,?{_GAP}(?:part|chapter|sections?\b|§|eqs?\b|equation)",
  re.IGNORECASE,
)
_PATH = re.compile(
  r"(?<![\w./-])"
  rf"(?:{'|'.join(_FOLDERS)})(?:/[\w.-]+)*/[\w-]+\.(?:ipynb|jsonl?|md|png|py)\b"
)
# What stands for a name that the reader chooses, and a file that a test misses.
_PLACEHOLDER = re.compile(r"\bNAME\b|\bFILE\b|/none\.")
_DOTTED = re.compile(r"\bvideomla_jax((?:\.[a-z_][a-z0-9_]*)+)")


@functools.cache
def _files() -> dict[str, str]:
  """Text of every file that can cite something, by its path."""
  found = [p for p in _ROOT.iterdir() if p.name == "Makefile"]
  found += [p for p in _ROOT.iterdir() if p.suffix in _CITING]
  for folder in _FOLDERS:
    found += [p for p in (_ROOT / folder).rglob("*") if p.suffix in _CITING]
  names = {p.relative_to(_ROOT).as_posix(): p for p in found if p.is_file()}
  hidden = re.compile(r"(^|/)[._]build|(^|/)\.|checkpoints/")
  return {n: p.read_text() for n, p in names.items() if not hidden.search(n)}


def _prose(markdown: str) -> str:
  """Markdown without its blocks of code and its code spans."""
  markdown = re.sub(
    r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE
  )
  return re.sub(r"`[^`\n]*`", "", markdown)


def _headings(markdown: str) -> list[str]:
  """Titles of a document, without their marks."""
  markdown = re.sub(
    r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE
  )
  return re.findall(r"^#+ +(.+?) *$", markdown, re.MULTILINE)


def _anchor(heading: str) -> str:
  """The anchor that GitHub gives a heading, numbering of repeats apart."""
  text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)  # the text of a link
  return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _anchors(markdown: str) -> set[str]:
  """All anchors of a document; those of repeated headings have a number."""
  anchors: set[str] = set(re.findall(r'(?:id|name)="([^"]+)"', markdown))
  seen: collections.Counter[str] = collections.Counter()
  for anchor in map(_anchor, _headings(markdown)):
    anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
    seen[anchor] += 1
  return anchors


def _sections() -> list[str]:
  """Numbers of the sections of docs/method.md, in order."""
  found = (
    re.match(r"(\d+(?:\.\d+)?)\.? ", heading)
    for heading in _headings(_files()[_METHOD])
  )
  return [match[1] for match in found if match]


def _equations() -> list[str]:
  """Tags of the equations of docs/method.md, in order."""
  return re.findall(r"\\tag\{([^}]*)\}", _files()[_METHOD])


def _is_module_or_member(dotted: str) -> bool:
  """True if `.models.cache.commit` names a module or something in one."""
  path = _ROOT / "videomla_jax"
  for part in dotted.strip(".").split("."):
    if (path / f"{part}.py").exists():
      return True  # the rest is an attribute
    if not (path / part).is_dir():
      return part in (path / "__init__.py").read_text()
    path = path / part
  return True


def _documents() -> list[str]:
  return [name for name in sorted(_files()) if name.endswith(".md")]


@pytest.mark.parametrize(
  ("heading", "anchor"),
  [
    ("8.2 Slots of the ring buffer", "82-slots-of-the-ring-buffer"),
    ("`wan.py`, and its VAE", "wanpy-and-its-vae"),
    ("One [link](README.md) in it", "one-link-in-it"),
    ("Four steps - or fifty", "four-steps---or-fifty"),
  ],
)
def test_anchor_is_githubs(heading: str, anchor: str) -> None:
  assert _anchor(heading) == anchor


def test_every_cited_path_exists() -> None:
  missing = {
    f"{name}: {path}"
    for name, text in _files().items()
    if name != "CHANGELOG.md"  # it speaks of what was
    for path in _PATH.findall(text)
    if not _PLACEHOLDER.search(path) and not (_ROOT / path).exists()
  }
  assert not missing, sorted(missing)


def test_every_cited_module_exists() -> None:
  missing = {
    f"{name}: videomla_jax{dotted}"
    for name, text in _files().items()
    if name != "CHANGELOG.md"
    for dotted in _DOTTED.findall(text)
    if not _is_module_or_member(dotted)
  }
  assert not missing, sorted(missing)


def test_every_cited_section_and_equation_exists() -> None:
  sections, equations = set(_sections()), set(_equations())
  count, unknown = 0, []
  for name, text in _files().items():
    for section, equation in _CITED.findall(text):
      count += 1
      if section not in sections and equation not in equations:
        unknown.append(f"{name}: {section or equation}")
    if name.endswith(".py"):  # the file is named once, at the top of a module
      dotted = re.findall(r"\bEq\.\s+\((\d+\.\d+)\)", text)
      unknown += [f"{name}: {x}" for x in dotted if x not in equations]
  assert not unknown
  assert count > 20  # else the pattern has stopped to find them


def test_citations_of_the_method_can_be_read_by_this_test() -> None:
  for name, text in _files().items():
    for almost in _ALMOST.finditer(text):
      citation = text[almost.start() : almost.start() + 60]
      assert _CITED.match(citation), (
        f"{name} has {citation!r}; write '{_METHOD}, section 8.2' or "
        f"'{_METHOD}, Eq. (8.2)'."
      )


def test_method_refers_to_its_own_sections_and_equations() -> None:
  text = re.sub(r"\s+", " ", _files()[_METHOD])
  named = re.findall(r"\bsection (\d+(?:\.\d+)?)", text)
  assert set(named) <= set(_sections())
  numbers = re.findall(r"\bEq\. \((\d+\.\d+)\)", text)
  assert set(numbers) <= set(_equations())


def test_sections_of_the_method_are_numbered_without_gaps() -> None:
  chapter = part = 0
  for number in _sections():
    if "." in number:
      part += 1
      assert number == f"{chapter}.{part}"
    else:
      chapter, part = chapter + 1, 0
      assert number == f"{chapter}"


def test_equations_of_the_method_are_numbered_without_gaps() -> None:
  # Headings of chapters, labels in plain text and tags, in their order.
  found = re.findall(
    r"^## (\d+)\.|^\*\*Eq\. \(([^)]*)\)\*\*|\\tag\{([^}]*)\}",
    _files()[_METHOD],
    re.MULTILINE,
  )
  chapter, index, label = "", 0, ""
  for heading, labelled, tag in found:
    if heading:
      chapter, index = heading, 0
    elif labelled:
      index += 1
      label = labelled
      assert label == f"{chapter}.{index}"
    else:
      assert tag == label, f"equation {label} has the tag {tag}"
      label = ""  # one equation per label
  assert not label, f"equation {label} has no tag"
  assert len(set(_equations())) == len(_equations()) > 50


def test_no_file_cites_documents_outside_the_repository() -> None:
  citing = [
    f"{name}: {citation}"
    for name, text in _files().items()
    for citation in re.findall(r"\bspec/[a-z_]+\.md[^\n]{,20}", text)
  ]
  assert not citing, f"cite {_METHOD} instead: {citing}"


@pytest.mark.parametrize("name", _documents())
def test_links_lead_to_files_and_headings(name: str) -> None:
  text = _prose(_files()[name])
  links = re.findall(r"\]\(([^()\s]+)(?: \"[^\"]*\")?\)", text)
  links += re.findall(r'\b(?:href|src)="([^"]+)"', text)
  for link in links:
    if re.match(r"[a-z]+:", link):
      continue  # another site
    path, _, anchor = link.partition("#")
    target = (_ROOT / name).parent / path if path else _ROOT / name
    assert target.exists(), f"{link} leads nowhere"
    if anchor and target.suffix == ".md":
      assert anchor in _anchors(target.read_text()), f"{link}: no such heading"
