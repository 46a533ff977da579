"""What the processes of launch tests run: `python -m tests.many_hosts NAME`."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np

from videomla_jax.runtime import cli
from videomla_jax.runtime import distributed
from videomla_jax.runtime import scheduler


def _as_scheduler(name: str) -> None:
  """Says what the launcher said in the words of a scheduler."""
  host, port = os.environ.pop(scheduler.COORDINATOR).split(":")
  number = os.environ.pop(scheduler.NUM_PROCESSES)
  index = os.environ.pop(scheduler.PROCESS_ID)
  os.environ["JAX_COORDINATOR_PORT"] = port
  os.environ |= {
    "slurm": {
      "SLURM_JOB_ID": "1234",
      "SLURM_STEP_NODELIST": host,
      "SLURM_STEP_NUM_NODES": number,
      "SLURM_NTASKS": number,
      "SLURM_PROCID": index,
      "SLURM_LOCALID": "0",
    },
    "skypilot": {
      "SKYPILOT_NUM_NODES": number,
      "SKYPILOT_NODE_RANK": index,
      "SKYPILOT_NODE_IPS": "\n".join([host] * int(number)),
    },
  }[name]


def total(scheduler: str = "") -> None:
  """Adds one number per device, over all devices of all processes."""
  if scheduler:
    _as_scheduler(scheduler)
  distributed.initialize()
  distributed.initialize()  # A second call does nothing.
  import jax

  number = jax.device_count()
  mesh = jax.make_mesh((number,), ("data",))
  spec = jax.P("data")
  squares = np.arange(number, dtype=np.float32) ** 2
  x = jax.make_array_from_callback(
    (number,), jax.NamedSharding(mesh, spec), lambda index: squares[index]
  )
  sums = jax.jit(
    jax.shard_map(
      lambda x: jax.lax.psum(x, "data"),
      mesh=mesh,
      in_specs=spec,
      out_specs=jax.P(),
    )
  )(x)
  print(
    f"process {jax.process_index()} of {jax.process_count()}:"
    f" {jax.local_device_count()} of {number} devices,"
    f" visible {jax.config._read('jax_cuda_visible_devices')}, sum {float(sums[0])}"
  )


def work() -> None:
  """Works together with the other process until somebody ends both."""
  distributed.initialize()
  from jax.experimental import multihost_utils

  for step in range(10**6):
    multihost_utils.sync_global_devices(f"step {step}")
    if step == 3:
      print("ready")


def save(folder: str) -> None:
  """Process 0 saves a model, alone; both load it."""
  distributed.initialize()
  import jax
  from jax.experimental import multihost_utils

  from videomla_jax.storage import model_folder

  if jax.process_index() == 0:
    model_folder.save_model(folder, {"x": np.arange(3.0)}, {"kind": "test"})
  multihost_utils.sync_global_devices("saved")
  arrays, _ = model_folder.load_model_state(folder)
  print(f"loaded {arrays['x'].tolist()}")


def fail() -> None:
  """Process 1 fails while process 0 waits for it."""
  distributed.initialize()
  import jax
  from jax.experimental import multihost_utils

  multihost_utils.sync_global_devices("both are there")
  if jax.process_index() == 1:
    cli.fail(ValueError("of process 1"))
  multihost_utils.sync_global_devices("never")


def raise_error() -> None:
  """Both fail in a way that nobody handles, with arrays in the frames."""
  distributed.initialize()
  from jax.experimental import multihost_utils

  gathered = multihost_utils.process_allgather(np.ones(1))
  raise KeyError(gathered.shape)


def leave_child() -> None:
  """Process 1 fails; process 0 waits for what it has started."""
  if os.environ[scheduler.PROCESS_ID] == "1":
    sys.exit(5)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  subprocess.run([sys.executable, "-c", "import signal; signal.pause()"])


def listen() -> None:
  """Says which signal came; ends by it only if it is SIGINT."""
  distributed.initialize()

  # A signal just before signal.pause() would be missed.
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  signal.set_wakeup_fd(writer.fileno())
  signal.signal(signal.SIGTERM, lambda *_: None)
  signal.signal(signal.SIGINT, lambda *_: None)
  print("ready")
  while True:
    number = reader.recv(1)[0]
    print(f"got {signal.Signals(number).name}")
    if number == signal.SIGINT:
      sys.exit(3)


if __name__ == "__main__":
  globals()[sys.argv[1]](*sys.argv[2:])
