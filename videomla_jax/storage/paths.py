"""Paths as users write them: `~` is a home, and addresses are refused."""

import os
import re

# A scheme and two slashes; the second one is lost where a path was normalised,
# so that schemes that people use are known by name.
_ADDRESS = re.compile(
  r"\s*([a-z][a-z0-9+.-]*://|(gs|s3|hf|https?|file|ftp|hdfs|abfss?|az|wasbs?"
  r"|r2|oci|dbfs|ssh|sftp|memory|gcs|data|zip|tcp|udp|rtsp|rtmp|ws|wss):/)",
  re.IGNORECASE,
)


def local(value: str | os.PathLike[str], field: str) -> str:
  """Returns the path of a local file or folder, with `~` expanded.

  Args:
    value: What the user wrote; names such as `shipped:NAME` and an empty string
      stay as they are.
    field: What the user calls it.

  Raises:
    ValueError: If it is the address of something that is not on this machine,
      names a home that does not exist, or cannot be a path.
  """
  text = str(os.fspath(value))
  if "\0" in text:
    raise ValueError(
      f"{field}={text!r} has a zero character, which no path may have; remove"
      " it."
    )
  if _ADDRESS.match(text):
    raise ValueError(
      f"{field}={text!r} is an address, and only local paths work; copy or"
      " mount it, and give the path on this machine."
    )
  expanded = os.path.expanduser(text)
  if expanded.startswith("~") and not os.path.lexists(expanded):
    raise ValueError(
      f"{field}={text!r} names a home folder that is not known; write the whole"
      f" path, or ./{text} for a name that begins with ~."
    )
  return expanded
