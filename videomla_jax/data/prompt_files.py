"""Texts in files: prompts, one per line, and the caption beside a video."""

import os
import pathlib

from videomla_jax.storage import ordinary_files

# Bytes. 512 tokens are a few thousand, and cleaning a text is slow.
MAX_CAPTION = 2**15


def read_prompts(
  path: str | os.PathLike[str],
  *,
  field: str = "prompts_file",
  limit: int = ordinary_files.MOST_BYTES,
) -> list[str]:
  """Reads a text file with one prompt per line.

  This is the one rule for all commands: a line ends at a line break, nothing
  else separates prompts, white space around them is cut off, and empty lines do
  not count. A prompt may hold semicolons and HTML such as `&amp;`, which the
  tokenizer cleans as Wan does.

  Args:
    path: The file, in UTF-8.
    field: Key of the config that names it, for messages.
    limit: Most bytes that it may have.

  Returns:
    The prompts in order, repeats included.

  Raises:
    ValueError: If it cannot be read, it or a line is too long, or all lines are
      empty.
  """
  try:
    text = ordinary_files.read_text(path, limit=limit)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{field}={os.fspath(path)!r} cannot be read: it {error}; give a text"
      " file in UTF-8 with one prompt per line."
    ) from error
  # `splitlines` would also split at form feeds and at breaks within a sentence
  # such as U+2028.
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  for number, line in enumerate(lines, 1):
    if len(line) > MAX_CAPTION:
      raise ValueError(
        f"{field}={os.fspath(path)!r} has a prompt of {len(line)} letters in"
        f" line {number}; write one prompt per line."
      )
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ValueError(
      f"{field}={os.fspath(path)!r} is empty; write one prompt per line."
    )
  return prompts


def read_caption(path: pathlib.Path) -> str:
  """Returns the caption in a file in one line, empty if there is no file.

  Args:
    path: The file, in UTF-8.

  Raises:
    BadFile: If there is something that is no such text.
  """
  if not os.path.lexists(path):
    return ""
  text = ordinary_files.read_text(path, limit=MAX_CAPTION)
  return " ".join(text.split())
