"""Says in one sentence why a command failed, and with which exit code.

  0     done
  2     a mistake of the user, or this machine lacks disk, memory or a device
  70    a fault of this program
  130   stopped by SIGINT; 143 by SIGTERM, 129 by SIGHUP

A run of `train` that SIGTERM stops ends with 143 when its state is saved.
"""

import errno
import os
import re
from typing import NamedTuple

from videomla_jax.runtime import signals

# Mistakes of the user. Any other error is the machine's or a fault of ours.
USER_ERRORS = (ValueError, NotImplementedError)

MISTAKE, FAULT = 2, 70

_FREE_SPACE = "free space, or choose a folder on another disk"
_ADVICE = {
  errno.ENOSPC: _FREE_SPACE,
  errno.EDQUOT: _FREE_SPACE,
  errno.EFBIG: "choose a disk and limits that allow such large files",
  errno.EROFS: "choose a folder that can be written to",
  errno.EACCES: "choose one that you may use",
  errno.EPERM: "choose one that you may use",
  errno.ENAMETOOLONG: "use a shorter name",
  errno.ENOENT: "give the path of one that exists",
  errno.ENOTDIR: "give a path whose folders are folders",
  errno.EISDIR: "give the path of a file",
  errno.EMFILE: "raise the limit of open files (ulimit -n)",
  errno.ENOMEM: "use less memory",
  errno.EIO: "look after the disk, or choose another one",
}
# Libraries that write files in other languages hand on the text alone.
_IN_TEXT = {
  number: re.compile(rf"os error {number}\b|{re.escape(os.strerror(number))}")
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
}


class Failure(NamedTuple):
  """What a command says when it ends early.

  Attributes:
    sentence: What happened, and the way out.
    code: Exit code.
  """

  sentence: str
  code: int


def describe(error: BaseException) -> Failure:
  """Explains an error.

  Args:
    error: What a command raised.
  """
  if isinstance(error, KeyboardInterrupt):
    return _interrupted(error)
  kind, text = type(error).__name__, str(error)
  if isinstance(error, OSError):
    return Failure(_of_system(error), MISTAKE)
  for number, pattern in _IN_TEXT.items():
    if pattern.search(text):
      return Failure(f"{text.rstrip('. ')}; {_ADVICE[number]}.", MISTAKE)
  if isinstance(error, USER_ERRORS):
    return Failure(text or f"{kind} without a word.", MISTAKE)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return Failure(_of_memory(text), MISTAKE)
  if "nable to initialize backend" in text or "Unknown backend" in text:
    return Failure(_of_platform(text), MISTAKE)
  if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):
    # This is how `pathlib` puts the system's ELOOP.
    return Failure(f"{text}; remove the link, or give its target.", MISTAKE)
  return Failure(
    f"a fault of this program: {kind}: {text or 'no message'}; run it again"
    " with --verbosity=1 for the traceback, and report it.",
    FAULT,
  )


def _interrupted(error: KeyboardInterrupt) -> Failure:
  if not isinstance(error, signals.Interrupted):
    error = signals.Interrupted(signals.signal.SIGINT)
  return Failure(
    f"{error}; nothing half-written is left, and the same command starts"
    " again.",
    error.code,
  )


def _of_system(error: OSError) -> str:
  """Names the file, what the system says, and the way out."""
  names = [os.fsdecode(x) for x in (error.filename2, error.filename) if x]
  said = error.strerror or str(error) or type(error).__name__
  # A library's own errors may have no number.
  number = error.errno or next(
    (n for n, pattern in _IN_TEXT.items() if pattern.search(said)), 0
  )
  advice = _ADVICE.get(number, "look after that, and start again")
  where = f"{names[0]!r}: " if names else ""
  return f"{where}{said}; {advice}."


def _of_memory(text: str) -> str:
  asked = re.search(r"(\d[\d.]* ?[KMGT]i?B|\d+ bytes)", text)
  size = f" ({asked[0]} were asked for)" if asked else ""
  return (
    f"there is not enough memory{size}; make fewer or smaller videos at a time,"
    " hold weights in half (half_weights) or less (products), decode in tiles"
    " (vae_tile), or use a larger machine."
  )


def _of_platform(text: str) -> str:
  names = os.environ.get("JAX_PLATFORMS", "")
  return (
    f"JAX finds no device of JAX_PLATFORMS={names!r} ({text.splitlines()[0]});"
    " unset it, use JAX_PLATFORMS=cpu, or install the driver and the extra gpu."
  )
