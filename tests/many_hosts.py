"""What the processes of launch tests run: `python -m tests.many_hosts NAME`."""

import os
import pathlib
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


def state(step: int) -> dict[str, np.ndarray]:
  """The numbers that `save` saves at a step."""
  rng = np.random.default_rng(step)
  return {"x": rng.standard_normal((8, 200)).astype(np.float32)}


def save(folder: str) -> None:
  """Process 0 saves a model, alone; then both save states together."""
  distributed.initialize()
  import jax
  from jax.experimental import multihost_utils

  from videomla_jax.storage import model_folder

  if jax.process_index() == 0:
    model_folder.save_model(folder, {"x": np.arange(3.0)}, {"kind": "test"})
  multihost_utils.sync_global_devices("saved")
  arrays, _ = model_folder.load_model_state(folder)
  print(f"loaded {arrays['x'].tolist()}")
  _save_states(pathlib.Path(f"{folder}-states"))


def _save_states(folder: pathlib.Path) -> None:
  """Both save and restore; one state is damaged, and one never finished."""
  import jax
  from jax.experimental import multihost_utils

  from videomla_jax.storage import state_digests
  from videomla_jax.storage import train_states

  sharding = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P("data"))

  def split(step: int) -> dict[str, jax.Array]:
    x = state(step)["x"]
    callback = lambda index: x[index]
    return {"x": jax.make_array_from_callback(x.shape, sharding, callback)}

  def restore() -> None:
    with train_states.TrainCheckpoints(folder, keep=3) as saved:
      found = saved.restore_latest(split(0))
    for part in found.state["x"].addressable_shards:
      expected = state(found.step)["x"][part.index]
      np.testing.assert_array_equal(part.data, expected)
    print(f"restored {found.step} at {found.iterator_state}")

  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    for step in (1, 2):
      saved.save(step, split(step), {"next": step}, {})
  restore()
  multihost_utils.sync_global_devices("restored")
  if jax.process_index() == 0:
    files = (folder / "2/state/ocdbt.process_1/d").iterdir()
    path = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  multihost_utils.sync_global_devices("damaged")
  restore()
  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    # Process 0 lists the files, and dies at one of them.
    digests = iter([state_digests.sha256] * 3)
    state_digests.sha256 = lambda path: next(digests, _die)(path)
    saved.save(3, split(3), {"next": 3}, {})


def _die(path: pathlib.Path) -> None:
  del path
  os.kill(os.getpid(), signal.SIGKILL)


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
