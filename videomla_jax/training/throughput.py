"""How fast steps are: their time, their operations, and their memory."""

import time

import jax

from videomla_jax.ops import device


class Clock:
  """Mean time and operations of a step since the last look."""

  def __init__(self, step: int) -> None:
    """Starts at a finished step."""
    self._time, self._step, self._flops = time.monotonic(), step, 0.0

  def add(self, flops: float) -> None:
    """Counts the operations of a step.

    Args:
      flops: Operations over all devices.
    """
    self._flops += flops

  def lap(self, step: int) -> tuple[float, float]:
    """Returns mean seconds and operations of a step since the last call.

    Args:
      step: Number of finished steps.
    """
    # There is at least one step: an evaluation may follow a line at once.
    now, steps = time.monotonic(), max(step - self._step, 1)
    seconds, flops = (now - self._time) / steps, self._flops / steps
    self._time, self._step, self._flops = now, step, 0.0
    return seconds, flops


def scalars(*, examples: int, seconds: float, flops: float) -> dict[str, float]:
  """Returns throughput, utilisation and memory of a step.

  Args:
    examples: Examples of a step, over all devices.
    seconds: Time of a step.
    flops: Operations of a step, over all devices; 0 if they are not counted.
  """
  # Clips of all devices are counted, so that runs on different meshes can be
  # compared.
  values = {
    "perf/step_seconds": seconds,
    "perf/clips_per_second": examples / seconds,
  }
  if flops:
    rate = flops / seconds / jax.device_count()
    values["perf/teraflops"] = rate / 1e12
    # The peak is the rate that the maker states, and only known GPUs have one.
    peak = device.current().peak
    if peak is not None:
      values["perf/flop_utilisation"] = rate / peak.bf16_flops
  # Not every backend says what it uses; a CPU does not.
  memory = device.peak_memory_bytes()
  if memory is not None:
    values["perf/peak_memory_gib"] = memory / 2**30
  return values
