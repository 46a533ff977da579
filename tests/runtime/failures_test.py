"""Tests of what each kind of error says, and of its exit code."""

import errno
import os
import signal

import pytest

from videomla_jax.runtime import failures
from videomla_jax.runtime import signals


def _os_error(number: int, *names: str) -> OSError:
  return OSError(number, os.strerror(number), *names)


_CASES = {
  "mistake": (ValueError("a=1 must be 2."), 2, "a=1 must be 2."),
  "device": (NotImplementedError("needs a GPU."), 2, "needs a GPU."),
  "full": (_os_error(errno.ENOSPC, "x.mp4"), 2, "'x.mp4': No space"),
  "quota": (_os_error(errno.EDQUOT, "x"), 2, "free space, or"),
  "read-only": (_os_error(errno.EROFS, "x"), 2, "that can be written to"),
  "no right": (_os_error(errno.EACCES, "x"), 2, "that you may use"),
  "name": (_os_error(errno.ENAMETOOLONG, "x"), 2, "use a shorter name"),
  "folder": (_os_error(errno.EISDIR, "x"), 2, "the path of a file"),
  "no name": (_os_error(errno.ENOSPC), 2, "No space left on device; free"),
  "text alone": (OSError("no number"), 2, "no number; look after"),
  "other library": (
    Exception("I/O error: disk is full (os error 28)"),
    2,
    "(os error 28); free space",
  ),
  "memory": (MemoryError(), 2, "not enough memory; make fewer"),
  "device memory": (
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
    2,
    "(123 bytes were asked for)",
  ),
  "platform": (
    RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore"),
    2,
    "JAX finds no device",
  ),
  "loop": (RuntimeError("Symlink loop from 'x'"), 2, "remove the link"),
  "fault": (TypeError("odd"), 70, "fault of this program: TypeError: odd"),
  "recursion": (RecursionError("deep"), 70, "--verbosity=1"),
  "Ctrl-C": (KeyboardInterrupt(), 130, "stopped by SIGINT"),
  "SIGTERM": (signals.Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM"),
}


@pytest.mark.parametrize("case", _CASES)
def test_each_kind_of_error_has_a_sentence_and_a_code(case: str) -> None:
  error, code, words = _CASES[case]
  failure = failures.describe(error)
  assert failure.code == code and words in failure.sentence
  assert failure.sentence.endswith(".")
