"""docs/architecture.md: its drawing is the table of imports, its walks are ten.

That what a walk says is true is for people to check; that every file it leads
to exists is checked by `docs_test`.
"""

import pathlib
import re

from tests.project import imports_test

_ROOT = pathlib.Path(__file__).parents[2]
_TABLE = imports_test.BELOW


def _floors() -> list[set[str]]:
  """Words of each floor of the drawing that name a folder, from the top."""
  drawing = (_ROOT / "docs" / "floors.svg").read_text()
  floors: list[set[str]] = []
  for tag, rest in re.findall(r"<(rect|text)\b(.*)", drawing):
    if tag == "rect":
      floors.append(set())
    elif "font-size='11.5'" not in rest:  # a sentence about the floor
      floors[-1] |= {*re.findall(r"\w+", rest.split(">")[1])} & {*_TABLE}
  return [floor for floor in floors if floor]


def test_drawing_of_the_floors_is_the_table_of_imports() -> None:
  floors = _floors()
  drawn = [name for floor in floors for name in floor]
  assert sorted(drawn) == sorted(_TABLE)
  for index, floor in enumerate(floors):
    below = set().union(*floors[index + 1 :])
    for name in floor:
      assert _TABLE[name] <= below, f"{name} is drawn beside what it imports"


def test_every_walk_has_ten_lines_with_links() -> None:
  text = (_ROOT / "docs" / "architecture.md").read_text()
  walks = re.findall(r"^## (A .+)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
  assert [title for title, _ in walks] == [
    *("A prompt", "A batch", "A cache entry"),
  ]
  for title, body in walks:
    lines = re.findall(r"^(\d+)\. ((?:.*\n(?!\d))*.*)", body, re.MULTILINE)
    assert [number for number, _ in lines] == [str(n) for n in range(1, 11)]
    for number, line in lines:
      assert "](../" in line, f"{title}, line {number} has no link"
