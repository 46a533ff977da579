"""Lists of prompts in the two forms in which VBench publishes them.

`VBench_full_info.json` is a list of objects with `prompt_en` and `dimension`;
all other lists are text with one prompt per line. A second text file may hold
longer wordings of the same prompts, line by line: files keep the names of the
first, and the model is given the second.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import re

from videomla_jax.data import prompt_files
from videomla_jax.quality import scores
from videomla_jax.storage import ordinary_files

_MOST_BYTES = 16 * ordinary_files.MIB  # VBench's own list has 0.2 MiB
_MOST_PROMPTS = 100_000
# Bytes of a name without "-INDEX.mp4" and what VBench-Long adds, "_INDEX".
_MOST_NAME = 230
# A name that ends as if a digest had been added to it.
_DIGEST = re.compile(r"(^| )[0-9a-f]{8}\Z")
# What VBench-Long splits names at, and what no file may be called.
_SPECIAL = re.compile(r"[_/\x00-\x1f\x7f]|\.mp4|-Scene")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """One prompt of a list.

  Attributes:
    prompt: The prompt as the list has it.
    name: The same as the beginning of a file name.
    text: What the model is given.
    dimensions: What VBench judges its videos for; empty if the list does not
      say it.
  """

  prompt: str
  name: str
  text: str
  dimensions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptList:
  """The prompts of a list, each once.

  Attributes:
    entries: The prompts in their order.
    standard: Whether the list says which dimensions each prompt is for.
  """

  entries: tuple[Entry, ...]
  standard: bool = False

  @property
  def needs_case(self) -> bool:
    """Whether names differ in capital letters only, as one of VBench's does."""
    names = {x.name.casefold() for x in self.entries}
    return len(names) < len(self.entries)

  def chosen(self, dimensions: Sequence[str]) -> "PromptList":
    """Returns the part of the list that some dimensions need.

    Args:
      dimensions: Names such as "subject_consistency"; none takes all prompts.

    Raises:
      ValueError: If no prompt is for any of them.
    """
    if not dimensions or not self.standard:
      return self
    entries = tuple(x for x in self.entries if {*dimensions} & {*x.dimensions})
    if not entries:
      raise ValueError(
        f"judging.dimensions={[*dimensions]} have no prompt in the list; name"
        " those of the list, or another list."
      )
    return dataclasses.replace(self, entries=entries)


def read(
  path: str | os.PathLike[str], *, texts: str | os.PathLike[str] = ""
) -> PromptList:
  """Reads a list: JSON if its name ends so, else a prompt per line.

  Args:
    path: The list.
    texts: Text file with what the model is given in place of each prompt, in
      as many lines; empty gives it the prompts themselves.

  Raises:
    ValueError: If a file cannot be read, or is no such list.
  """
  standard = os.fspath(path).lower().endswith(".json")
  if standard:
    found = _standard(path)
  else:
    found = [
      (x, ()) for x in prompt_files.read_prompts(path, limit=_MOST_BYTES)
    ]
  given = [prompt for prompt, _ in found]
  if texts:
    given = prompt_files.read_prompts(
      texts, field="texts_file", limit=_MOST_BYTES
    )
    if len(given) != len(found):
      raise ValueError(
        f"texts_file={os.fspath(texts)!r} has {len(given)} lines for"
        f" {len(found)} prompts; give one for each, in the same order."
      )
  return _listed(
    [(*x, text) for x, text in zip(found, given, strict=True)],
    standard=standard,
  )


def of_texts(prompts: Sequence[str]) -> PromptList:
  """Returns prompts as a list that says nothing of dimensions.

  Args:
    prompts: What to show.
  """
  return _listed([(x, (), x) for x in prompts], standard=False)


def _listed(
  found: Sequence[tuple[str, tuple[str, ...], str]], *, standard: bool
) -> PromptList:
  """Joins equal prompts: two of VBench's own stand in its list twice."""
  if len(found) > _MOST_PROMPTS:
    raise ValueError(
      f"the list has {len(found)} prompts; give at most {_MOST_PROMPTS}."
    )
  entries: dict[str, Entry] = {}
  for prompt, dimensions, text in found:
    old = entries.get(prompt)
    name = _checked(prompt) if standard else file_name(prompt)
    entries[prompt] = Entry(
      prompt=prompt,
      name=name,
      text=old.text if old else text,
      dimensions=(*(old.dimensions if old else ()), *dimensions),
    )
  _check_names(entries.values())
  return PromptList(entries=tuple(entries.values()), standard=standard)


def _check_names(entries: Iterable[Entry]) -> None:
  """Refuses two prompts that would share their files."""
  named: dict[str, str] = {}
  for entry in entries:
    other = named.setdefault(entry.name, entry.prompt)
    if other != entry.prompt:
      raise ValueError(
        f"the prompts {other[:60]!r} and {entry.prompt[:60]!r} of the list"
        f" have one file name {entry.name!r}; change one of them."
      )


def _standard(
  path: str | os.PathLike[str],
) -> list[tuple[str, tuple[str, ...]]]:
  """Reads prompts and their dimensions from JSON."""
  at = f"prompts_file={os.fspath(path)!r}"
  try:
    text = ordinary_files.read_text(path, limit=_MOST_BYTES)
    rows = json.loads(text)
  except (ordinary_files.BadFile, ValueError, RecursionError) as error:
    why = (
      f"it {error}"
      if isinstance(error, ordinary_files.BadFile)
      else "it is no JSON"
    )
    raise ValueError(
      f"{at} cannot be read: {why}; give VBench_full_info.json of VBench, or a"
      " text file with one prompt per line."
    ) from error
  if not isinstance(rows, list) or not rows:
    raise ValueError(
      f"{at} holds no list of prompts; give VBench_full_info.json of VBench."
    )
  return [_row(x, at=f"{at}, entry {i}") for i, x in enumerate(rows)]


def _row(row: object, *, at: str) -> tuple[str, tuple[str, ...]]:
  """Checks one entry of the JSON list."""
  prompt = row.get("prompt_en") if isinstance(row, dict) else None
  dimensions = row.get("dimension") if isinstance(row, dict) else None
  if not isinstance(prompt, str) or not prompt.strip():
    raise ValueError(f"{at} has no text 'prompt_en'; restore the list.")
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{at} has a prompt with half of a character (a lone surrogate), which is"
      " no text; restore the list."
    ) from error
  if len(prompt) > prompt_files.MAX_CAPTION:
    raise ValueError(f"{at} has a prompt of {len(prompt)} letters; cut it.")
  if not isinstance(dimensions, list) or not dimensions:
    raise ValueError(f"{at} has no list 'dimension'; restore the list.")
  unknown = [
    x
    for x in dimensions
    if not isinstance(x, str) or x not in scores.DIMENSIONS
  ]
  if unknown:
    raise ValueError(
      f"{at} has the dimension {unknown[0]!r}, which VBench has not; use some"
      f" of {[*scores.DIMENSIONS]}."
    )
  return prompt, tuple(dimensions)


def _checked(prompt: str) -> str:
  """Returns a prompt that is a file name as it is, as VBench looks for it."""
  if (
    _SPECIAL.search(prompt)
    or prompt.startswith(".")
    or len(prompt.encode()) > _MOST_NAME
  ):
    raise ValueError(
      f"the prompt {prompt[:60]!r} of the list cannot be the name of a file,"
      " by which VBench would look for it; give the prompts as a text file."
    )
  return prompt


def file_name(prompt: str) -> str:
  """Returns the beginning of the file names of a prompt's videos.

  What is a name already stays as it is. Otherwise what no name may have is a
  space, the end is cut, and a digest keeps such prompts apart. A prompt that
  ends as if it had such a digest gets one, too, or it could have the name of
  another prompt.

  Args:
    prompt: Any text.
  """
  plain = " ".join(_SPECIAL.sub(" ", prompt).split()).lstrip(".")
  is_name = plain == prompt and len(prompt.encode()) <= _MOST_NAME
  if is_name and not _DIGEST.search(prompt):
    return prompt
  digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
  room = _MOST_NAME - len(digest) - 1
  cut = plain.encode()[:room].decode(errors="ignore").strip()
  return f"{cut} {digest}".strip()
