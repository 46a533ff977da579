"""Writes tables of docs/kernels.md: our programs beside PyTorch's."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

type Line = Mapping[str, Any]


def markers(name: str) -> tuple[str, str]:
  """Returns what stands before and behind a table."""
  return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def table(lines: Iterable[Line], name: str) -> str:
  """Returns the table of one measurement, a line for each program.

  Args:
    lines: What the programs of tests/peers recorded; the newest day and commit
      is shown.
    name: What was measured.
  """
  own = [line for line in lines if line["name"] == name]
  newest = own[-1]
  own = [line for line in own if line["commit"] == newest["commit"]]
  # A second run at one commit replaces the first.
  found = {(line["case"], line["program"]): line for line in own}
  titles = ["", "program", "seconds (least to most)", "speed / PyTorch's"]
  rows, before = [titles, ["---"] * len(titles)], ""
  for (case, program), line in found.items():
    digits = 2 if line["value"] >= 1 else 3
    time = f"{line['value']:.{digits}f}"
    spread = f"{line['least']:.{digits}f} to {line['most']:.{digits}f}"
    rows.append(
      [
        "" if case == before else case,
        f"{program}; {line['about']}",
        f"{time} ({spread})",
        f"{line['speed']:.2f}",
      ]
    )
    before = case
  head = (
    f"{newest['processor']}, {newest['date']}, commit {newest['commit']},"
    f" {newest['rounds']} rounds:\n\n"
  )
  return head + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
