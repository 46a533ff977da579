"""What a reader changed in a picture or clip, in plain sentences.

Nothing is changed silently: every reader returns what it did, commands print it
and write it into their reports.
"""


class Changes:
  """Collects changes, the first of each kind."""

  def __init__(self) -> None:
    """Starts without any change."""
    self._texts: dict[str, str] = {}

  def add(self, kind: str, text: str) -> None:
    """Notes a change, unless one of its kind is known.

    Args:
      kind: A word or two, by which `prepare` counts.
      text: What was changed, to be read after the name of a file.
    """
    self._texts.setdefault(kind, text)

  @property
  def kinds(self) -> tuple[str, ...]:
    """Kinds of change, in the order in which they were noted."""
    return tuple(self._texts)

  @property
  def texts(self) -> tuple[str, ...]:
    """What was changed, in the same order."""
    return tuple(self._texts.values())
