"""Times programs of several libraries turn by turn in one run.

Machines are noisy, so what counts is a ratio inside one run. A program is a
process that answers every line of its input with the seconds of one call.
Between its turns it is stopped: threads of PyTorch's pool wait by spinning,
which takes a core of whoever has the next turn.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import signal
import statistics
import subprocess
import time

from videomla_jax.measuring import record

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


class Worker:
  """A process that times one call for every line, and is stopped otherwise.

  Attributes:
    about: The first line that it printed, once it was ready.
  """

  def __init__(self, *command: str) -> None:
    """Starts the process and waits until it is ready."""
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ
      | {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # All processes live on one GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      },
    )
    self.about = self._answer()

  def _answer(self) -> str:
    """Reads a line, and stops the process."""
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError("a process ended early; its error is above.")
    self._process.send_signal(signal.SIGSTOP)
    os.waitpid(self.pid, os.WUNTRACED)  # until all its threads stand
    return line.strip()

  @property
  def pid(self) -> int:
    """Number of the process."""
    return self._process.pid

  def __call__(self) -> float:
    """Returns the seconds of one call."""
    assert self._process.stdin is not None
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    self._process.send_signal(signal.SIGCONT)
    return float(self._answer())

  def close(self) -> None:
    """Ends the process."""
    self._process.send_signal(signal.SIGCONT)
    self._process.communicate()


def answer_lines(
  lines: Iterable[str], call: Callable[[], object], about: str
) -> None:
  """Is the other side of a `Worker`: prints seconds for every line.

  Args:
    lines: Standard input.
    call: Does the work of one turn, and waits for it.
    about: What is printed first.
  """
  print(about, flush=True)
  for _ in lines:
    started = time.perf_counter()
    call()
    print(time.perf_counter() - started, flush=True)


def take(
  commands: Mapping[str, Sequence[str]], *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
  """Runs all programs in turns.

  Args:
    commands: Command of each program.
    rounds: Turns of each program.

  Returns:
    Seconds of every turn, and what each program says of itself.
  """
  with contextlib.ExitStack() as stack:
    workers = {}
    for name, command in commands.items():
      workers[name] = Worker(*command)
      stack.callback(workers[name].close)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
      for name, worker in workers.items():
        seconds[name].append(worker())
    return seconds, {name: worker.about for name, worker in workers.items()}


def processor() -> str:
  """Names the processor and how many of its cores are used."""
  text = _CPU_INFO.read_text("utf-8") if _CPU_INFO.exists() else ""
  found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
  name = found[1] if found else "unknown processor"
  return f"{name}, {len(os.sched_getaffinity(0))} cores"


def report(
  name: str,
  case: str,
  seconds: Mapping[str, Sequence[float]],
  about: Mapping[str, str],
) -> list[record.Line]:
  """Prints medians and ratios, and returns them as lines of a record.

  Args:
    name: What was measured.
    case: The size or setting of it.
    seconds: Seconds of every turn; the first program is the peer.
    about: What each program says of itself.
  """
  peer = statistics.median(next(iter(seconds.values())))
  print(case)
  lines = []
  for program, times in seconds.items():
    median = statistics.median(times)
    lines.append(
      dict(
        name=name,
        case=case,
        program=program,
        about=about[program],
        processor=processor(),
        value=median,
        least=min(times),
        most=max(times),
        rounds=len(times),
        unit="s",
        speed=peer / median,
      )
    )
    print(
      f"  {program} ({about[program]}): {median:.3f} s, from"
      f" {min(times):.3f} to {max(times):.3f}; {peer / median:.2f} times the"
      " peer's speed",
      flush=True,
    )
  return lines


def add(path: pathlib.Path, lines: Sequence[record.Line]) -> None:
  """Adds lines to a record, with versions, date and commit.

  Args:
    path: File of JSON lines.
    lines: What `report` returned.
  """
  record.add(path, record.Session.here(), lines)
