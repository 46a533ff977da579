"""Makes batches from one global order that processes share out.

Everything random is a function of the seed and of the position in the global
stream, never of threads, of the process or of what was read before. So the
state of an iterator is the number of steps taken, and it may be restored on
another number of processes with the same global batch size.
"""

import sys

import grain


def batches(
  examples: grain.MapDataset,
  *,
  batch_size: int,
  process_index: int,
  process_count: int,
  read_options: grain.ReadOptions,
) -> grain.IterDataset:
  """Returns this process's part of every batch.

  Args:
    examples: All examples of all epochs in their order.
    batch_size: Examples per step over all processes.
    process_index: Number of this process, from 0.
    process_count: Processes that share the data.
    read_options: Threads and batches read ahead.

  Returns:
    Batches of batch_size / process_count examples. Joined in the order of the
    processes they are those of a single process.

  Raises:
    ValueError: If no batch can be filled, or processes cannot share it.
  """
  check_processes(batch_size, process_index, process_count)
  if len(examples) < sys.maxsize:  # of an endless repetition
    examples = examples[: _whole_batches(len(examples), batch_size)]
  share = batch_size // process_count
  first = process_index * share
  # Each process takes neighbours out of every `batch_size` examples, so each
  # example meets the random numbers that it would meet in a single process.
  part = grain.MapDataset.mix(
    [examples[i::batch_size] for i in range(first, first + share)]
  )
  return part.batch(share, drop_remainder=True).to_iter_dataset(read_options)


def check_seed(seed: int) -> None:
  """Refuses a seed that has more than 32 bits.

  Raises:
    ValueError: If it has.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed} must be from 0 to 2**32 - 1; use 0.")


def check_chance(name: str, value: float | int) -> None:
  """Refuses a chance that is not from 0 to 1.

  Args:
    name: Name of the config key, for the message.
    value: The chance.

  Raises:
    ValueError: If it is out of range.
  """
  if not 0.0 <= value <= 1.0:
    raise ValueError(f"{name}={value} is a chance and must be from 0 to 1.")


def check_counts(batch_size: int, num_epochs: int | None) -> None:
  """Refuses numbers with which nothing would be read.

  Raises:
    ValueError: If one of them is not positive.
  """
  if batch_size < 1:
    raise ValueError(
      f"batch_size={batch_size} must be positive; use 1 or more."
    )
  if num_epochs is not None and num_epochs < 1:
    raise ValueError(
      f"num_epochs={num_epochs} must be positive; use None to never end."
    )


def check_processes(
  batch_size: int, process_index: int, process_count: int
) -> None:
  """Refuses processes that cannot share a batch evenly.

  Raises:
    ValueError: If the batch is no multiple of their number, or this process is
      none of them.
  """
  if process_count < 1 or batch_size % process_count:
    raise ValueError(
      f"process_count={process_count} must divide batch_size={batch_size};"
      " choose a multiple of the number of processes as batch size."
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} must be from 0 to"
      f" process_count - 1 = {process_count - 1}; use jax.process_index()."
    )


def _whole_batches(num_examples: int, batch_size: int) -> int:
  """Returns how many examples fill whole batches.

  The tail is cut, so that every process sees the same number of steps.
  """
  num_batches = num_examples // batch_size
  if not num_batches:
    raise ValueError(
      f"batch_size={batch_size} must not exceed the {num_examples} clips of all"
      " epochs; use a smaller batch or more epochs."
    )
  return num_batches * batch_size
