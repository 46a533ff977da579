"""Teaches Mosaic's interpreter the products of Hopper.

JAX's interpreter multiplies at once, takes no factor from registers, stores
nothing to an accumulator, and its race detector does not see what a product
reads. Here a product is a thread of its own that knows what its warpgroup knew
when it was started, and the warpgroup knows of it once it has waited for it. It
reads and adds as late as it may. So all of these are found: a product that
starts before its keys are there, memory that is freed before the product is
done, and an accumulator that is read before.
"""

import collections
import functools

import jax
from jax._src import callback
from jax._src.pallas.mosaic_gpu import core
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as callbacks
from jax._src.pallas.mosaic_gpu.interpret import jaxpr_interpret
from jax._src.state import types as state
import numpy as np

# Products that were started and not waited for, by warpgroup, oldest first:
# the accumulator and what is left to do.
_running = collections.defaultdict(collections.deque)
_Key = callbacks.HostAllocationKey


def _add(memory, thread, key, left, right):
  """Adds a product to an accumulator, whose registers are the thread's own."""
  everything = memory.access(key, ())
  read = functools.partial(memory.get_buffer_content, thread=thread)
  total, _, _ = read(key, everything)
  product = left().astype(np.float32) @ right().astype(np.float32)
  memory.store_buffer_content(key, everything, total + product, thread)


@callbacks.fail_on_exception
def _start(
  *, token, thread, acc, left, left_at, right, right_at, in_registers, source
):
  memory = callbacks._get_shared_memory()
  races = callbacks.get_races() if memory.detect_races else None
  clock = None
  if races:
    clock = memory.incr_clock(thread)
    clock.inc(memory.get_next_tma_thread_id())

  def reader(key, transforms):
    key = _Key.from_array(key)
    layout = callbacks._remove_noop_transforms(transforms)
    access = memory.access(key, jax.tree.map(int, layout))
    if races:
      races.check_read(thread, clock.async_smem_clock, key, access, source)
    return lambda: memory.get_buffer_content(key, access, thread)[0]

  left = np.array(left)
  operand = (lambda: left) if in_registers else reader(left, left_at)
  key = _Key.from_array(acc)
  add = functools.partial(
    _add, memory, thread, key, operand, reader(right, right_at)
  )
  _running[thread].append((key, clock, add))
  return token


@callbacks.fail_on_exception
def _load(
  *,
  token,
  mesh_location,
  thread,
  acc_allocation_key_as_array,
  wait_n,
  source_info=None,
):
  del mesh_location, source_info
  memory = callbacks._get_shared_memory()
  running = _running[thread]
  while wait_n is not None and len(running) > wait_n:
    _, clock, add = running.popleft()
    add()
    if memory.detect_races:
      with memory.lock:
        memory.clocks[thread].update(clock)
  key = _Key.from_array(acc_allocation_key_as_array)
  assert all(key != k for k, *_ in running), "read before it is there"
  value, _, _ = memory.get_buffer_content(key, memory.access(key, ()), thread)
  return token, value


@callbacks.fail_on_exception
def _store(*, token, thread, acc, value):
  memory, key = callbacks._get_shared_memory(), _Key.from_array(acc)
  assert all(key != k for k, *_ in _running[thread]), "stored to in between"
  memory.store_buffer_content(
    key, memory.access(key, ()), np.array(value), thread
  )
  return token, np.array(value)


def _interpret(self, eqn, token, values):
  acc, left, right, *leaves = values()
  trees = [eqn.params[f"{x}_transforms_tree"] for x in ("acc", "a", "b")]
  empty = jax.tree.structure([])
  whole, left_at, right_at = jax.tree.unflatten(
    jax.tree_util.treedef_tuple([t or empty for t in trees]), leaves
  )
  assert not whole
  start = functools.partial(
    _start,
    in_registers=not isinstance(eqn.invars[1].aval, state.AbstractRef),
    source=eqn.source_info,
  )
  token = callback.io_callback(
    start,
    callbacks.TOKEN_SHAPE_DTYPE,
    token=token,
    thread=self.thread,
    acc=acc,
    left=left,
    left_at=tuple(left_at),
    right=right,
    right_at=tuple(right_at),
  )
  return token, []


_swap = jaxpr_interpret.JaxprInterpreter._interpret_swap_p


def _interpret_swap(self, eqn, token, values):
  kept = eqn.invars[0].aval
  if not isinstance(kept, core.WGMMAAbstractAccumulatorRef):
    return _swap(self, eqn, token, values)
  acc, value = values()
  return callback.io_callback(
    _store,
    (callbacks.TOKEN_SHAPE_DTYPE, eqn.outvars[0].aval),
    token=token,
    thread=self.thread,
    acc=acc,
    value=value,
  )


def install():
  """Changes the interpreter of this process."""
  interpreter = jaxpr_interpret.JaxprInterpreter
  interpreter._interpret_wgmma_ref_p = _interpret
  interpreter._interpret_swap_p = _interpret_swap
  callbacks.wgmma_accumulator_deref = _load
  # What the interpreter does not know is stored as into any other memory.
  core.WGMMAAbstractAccumulatorRef._setitem = state.AbstractRef._setitem


def all_waited_for():
  """Tells whether every product was waited for."""
  return not any(_running.values())
