"""Reads from the environment how this process joins its run.

The same command runs on every host. Each process finds out who it is in this
order: our own variables, SkyPilot, Open MPI, Slurm, a TPU slice, Kubernetes.
JAX finds the coordinator by itself under Open MPI, Slurm, on TPU slices and
under Kubernetes (there with the package `kubernetes` and the right to read
pods); elsewhere it is told. Where the environment says nothing, the process
works alone.

Our own variables are VIDEOMLA_COORDINATOR (`host:port` of process 0),
VIDEOMLA_NUM_PROCESSES and VIDEOMLA_PROCESS_ID; in an indexed Kubernetes job the
last is JOB_COMPLETION_INDEX. VIDEOMLA_NUM_PROCESSES=1 always means alone. The
machines of a TPU slice that is no Kubernetes job say nothing in the environment
either: VIDEOMLA_CLUSTER=gcetpu tells JAX to ask the cloud.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
from typing import Any

COORDINATOR = "VIDEOMLA_COORDINATOR"
NUM_PROCESSES = "VIDEOMLA_NUM_PROCESSES"
PROCESS_ID = "VIDEOMLA_PROCESS_ID"
CLUSTER = "VIDEOMLA_CLUSTER"

_COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
_DEFAULT_PORT = "8476"
_TPU_CLUSTERS = ("gcetpu", "gketpu")  # JAX's names of how it finds out
_ALONE = f"for a process that works alone set {NUM_PROCESSES}=1"

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """How one process joins a run. JAX finds out whatever is None here.

  Attributes:
    source: Name of what started the processes, for the log.
    coordinator_address: `host:port` of process 0.
    num_processes: Processes of the run, at least 1.
    process_id: Number of this process, 0 to `num_processes` - 1.
    all_devices: Whether the process uses all devices of its host, where JAX
      would choose one per process, as it does under Slurm and Open MPI.
    method: How JAX finds out the rest; "deactivate" if it need not.
  """

  source: str
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  all_devices: bool = False
  method: str | None = None

  def arguments(self) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize`."""
    return {
      "coordinator_address": self.coordinator_address,
      "num_processes": self.num_processes,
      "process_id": self.process_id,
      # An empty list, unlike None, keeps JAX from choosing one of them.
      "local_device_ids": [] if self.all_devices else None,
      "cluster_detection_method": self.method,
    }


def find(environment: Environment) -> Group | None:
  """Reads from the environment how this process joins its run.

  Args:
    environment: Names and values, such as `os.environ`.

  Returns:
    The group, perhaps of one process; None where the environment names no
    other process.

  Raises:
    ValueError: If a variable is missing, malformed or out of range.
  """
  # Our own variables come first, so that a user can overrule a scheduler.
  finders = (_explicit, _skypilot, _open_mpi, _slurm, _tpu_slice, _kubernetes)
  for finder in finders:
    group = finder(environment)
    if group is not None:
      return group
  return None


def _explicit(environment: Environment) -> Group | None:
  """Reads our own variables; returns None if none of them is set."""
  given = [
    x for x in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if x in environment
  ]
  if not given:
    return None
  because = f"{given[0]} is set; {_ALONE}"
  count = _count(environment, NUM_PROCESSES, because)
  index = PROCESS_ID
  if index not in environment and _COMPLETION_INDEX in environment:
    index = _COMPLETION_INDEX
  if count == 1:
    return Group(source=NUM_PROCESSES, num_processes=1)
  return Group(
    source=COORDINATOR,
    coordinator_address=_address(_text(environment, COORDINATOR, because)),
    num_processes=count,
    process_id=_index(environment, index, count, because),
    method="deactivate",
  )


def _skypilot(environment: Environment) -> Group | None:
  """Reads the variables of a SkyPilot task."""
  names = ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS")
  given = [x for x in names if x in environment]
  if not given:
    return None
  because = f"{given[0]} is set, so this is a SkyPilot task; {_ALONE}"
  count = _count(environment, names[0], because)
  addresses = _text(environment, names[2], because).split()
  if len(addresses) != count:
    raise ValueError(
      f"{names[2]} lists {len(addresses)} hosts and must list "
      f"{names[0]}={count}; start the task again, or set {COORDINATOR}, "
      f"{NUM_PROCESSES} and {PROCESS_ID}."
    )
  port = environment.get("JAX_COORDINATOR_PORT", _DEFAULT_PORT)
  return Group(
    source="SkyPilot",
    coordinator_address=_address(f"{addresses[0]}:{port}"),
    num_processes=count,
    process_id=_index(environment, names[1], count, because),
    method="deactivate",
  )


def _open_mpi(environment: Environment) -> Group | None:
  """Reads the variables of mpirun; JAX finds the coordinator."""
  if "OMPI_COMM_WORLD_SIZE" not in environment:
    return None
  because = f"OMPI_COMM_WORLD_SIZE is set, so this is mpirun; {_ALONE}"
  if _count(environment, "OMPI_COMM_WORLD_SIZE", because) == 1:
    return Group(source="Open MPI", num_processes=1)
  local = _count(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", because)
  return Group(
    source="Open MPI",
    all_devices=local == 1 and "JAX_LOCAL_DEVICE_IDS" not in environment,
    method="ompi",
  )


def _slurm(environment: Environment) -> Group | None:
  """Reads the variables of srun; JAX finds the coordinator."""
  # Outside of a step this is the shell of an allocation, where only the number
  # of tasks tells that more than one process was meant.
  in_step = "SLURM_STEP_NODELIST" in environment
  if not in_step and environment.get("SLURM_NTASKS", "1") == "1":
    return None
  because = f"SLURM_NTASKS is set; start with srun, or {_ALONE}"
  if in_step:
    because = f"SLURM_STEP_NODELIST is set, so this is srun; {_ALONE}"
  count = _count(environment, "SLURM_NTASKS", because)
  if count == 1:
    return Group(source="Slurm", num_processes=1)
  for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_ID"):
    _text(environment, name, because)
  for name in ("SLURM_PROCID", "SLURM_LOCALID"):
    _index(environment, name, count, because)
  nodes = _count(environment, "SLURM_STEP_NUM_NODES", because)
  return Group(
    source="Slurm",
    all_devices=count == nodes and "JAX_LOCAL_DEVICE_IDS" not in environment,
    method="slurm",
  )


def _tpu_slice(environment: Environment) -> Group | None:
  """Reads what the pods of a TPU slice are told, or the user's own word."""
  cluster = environment.get(CLUSTER)
  if cluster is not None:
    if cluster not in _TPU_CLUSTERS:
      raise ValueError(
        f"{CLUSTER}={cluster!r} is unknown; use one of {list(_TPU_CLUSTERS)}, "
        f"or set {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID}."
      )
    return Group(source=CLUSTER, method=cluster)
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if len(hosts) == 1:
    return None
  because = f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts; {_ALONE}"
  _index(environment, "TPU_WORKER_ID", len(hosts), because)
  return Group(source="the TPU slice", method="gketpu")


def _kubernetes(environment: Environment) -> Group | None:
  """Recognises an indexed job; JAX asks the cluster for everything."""
  if _COMPLETION_INDEX not in environment:
    return None
  if importlib.util.find_spec("kubernetes") is None:
    raise ValueError(
      f"{COORDINATOR} is missing, though {_COMPLETION_INDEX} is set, so this "
      f"is an indexed Kubernetes job; set {COORDINATOR} and {NUM_PROCESSES} as "
      "launch/jobset.yaml does, or install the package kubernetes, with which "
      f"JAX asks the cluster; {_ALONE}."
    )
  return Group(source="Kubernetes")


def _text(environment: Environment, name: str, because: str) -> str:
  """Reads a variable that must be set; `because` says why it must."""
  text = environment.get(name, "").strip()
  if not text:
    raise ValueError(f"{name} is missing, though {because}.")
  return text


def _count(environment: Environment, name: str, because: str) -> int:
  """Reads a number of processes or hosts."""
  text = _text(environment, name, because)
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(
      f"{name}={text!r} must be a whole number, 1 or more; {_ALONE}."
    )
  return int(text)


def _index(
  environment: Environment, name: str, count: int, because: str
) -> int:
  """Reads the number of this process among `count`."""
  text = _text(environment, name, because)
  if not text.isdecimal() or int(text) >= count:
    raise ValueError(
      f"{name}={text!r} must be this process's number among {count}, 0 to "
      f"{count - 1}; {_ALONE}."
    )
  return int(text)


def _address(text: str) -> str:
  """Checks the address of process 0."""
  host, _, port = text.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise ValueError(
      f"coordinator address {text!r} must be the host and a free port of "
      f"process 0; set {COORDINATOR}=host:{_DEFAULT_PORT}."
    )
  return text
