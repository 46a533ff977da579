"""Tests of what a process concludes from its environment."""

import importlib.machinery
import importlib.util

import jax
import pytest

from videomla_jax.runtime import distributed
from videomla_jax.runtime import scheduler

_OURS = {
  "VIDEOMLA_COORDINATOR": "host-0:8476",
  "VIDEOMLA_NUM_PROCESSES": "4",
  "VIDEOMLA_PROCESS_ID": "3",
}
_SKYPILOT = {
  "SKYPILOT_NUM_NODES": "2",
  "SKYPILOT_NODE_RANK": "1",
  "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n",
}
_SLURM = {
  "SLURM_JOB_ID": "77",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_STEP_NUM_NODES": "2",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}
_OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
_INDEXED_JOB = {"JOB_COMPLETION_INDEX": "2"}
_TPU_SLICE = {
  "TPU_WORKER_HOSTNAMES": "slice-0,slice-1,slice-2,slice-3",
  "TPU_WORKER_ID": "3",
}
_BY_JAX = (None, None, None)


def _without(environment: dict[str, str], name: str) -> dict[str, str]:
  return {k: x for k, x in environment.items() if k != name}


# Environment -> (coordinator, processes, index), devices, JAX's method.
_JOINED = {
  "our variables": (_OURS, ("host-0:8476", 4, 3), None, "deactivate"),
  "our variables in an indexed job": (
    _without(_OURS, "VIDEOMLA_PROCESS_ID") | _INDEXED_JOB,
    ("host-0:8476", 4, 2),
    None,
    "deactivate",
  ),
  "our variables before those of a scheduler": (
    _SLURM | _SKYPILOT | _OURS,
    ("host-0:8476", 4, 3),
    None,
    "deactivate",
  ),
  "SkyPilot": (_SKYPILOT, ("10.0.0.1:8476", 2, 1), None, "deactivate"),
  "SkyPilot on another port": (
    _SKYPILOT | {"JAX_COORDINATOR_PORT": "99"},
    ("10.0.0.1:99", 2, 1),
    None,
    "deactivate",
  ),
  "Slurm, one task per node": (_SLURM, _BY_JAX, [], "slurm"),
  "Slurm, one task per GPU": (
    _SLURM | {"SLURM_NTASKS": "16"},
    _BY_JAX,
    None,
    "slurm",
  ),
  "Slurm with devices chosen by the user": (
    _SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"},
    _BY_JAX,
    None,
    "slurm",
  ),
  "mpirun inside Slurm": (_SLURM | _OPEN_MPI, _BY_JAX, [], "ompi"),
  "mpirun, eight per node": (
    _OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"},
    _BY_JAX,
    None,
    "ompi",
  ),
  "a TPU slice in an indexed job": (
    _TPU_SLICE | _INDEXED_JOB,
    _BY_JAX,
    None,
    "gketpu",
  ),
  "a TPU slice, told by the user": (
    {"VIDEOMLA_CLUSTER": "gcetpu"},
    _BY_JAX,
    None,
    "gcetpu",
  ),
}


@pytest.mark.parametrize("case", _JOINED)
def test_environment_gives_the_arguments_of_jax(case) -> None:
  environment, (coordinator, processes, index), devices, method = _JOINED[case]
  group = scheduler.find(environment)
  assert group is not None
  assert group.arguments() == {
    "coordinator_address": coordinator,
    "num_processes": processes,
    "process_id": index,
    "local_device_ids": devices,
    "cluster_detection_method": method,
  }


@pytest.mark.parametrize(
  "environment",
  [
    {},
    {"VIDEOMLA_NUM_PROCESSES": "1"},
    _SLURM | {"VIDEOMLA_NUM_PROCESSES": "1"},
    _INDEXED_JOB | {"VIDEOMLA_NUM_PROCESSES": "1"},
    {
      "SKYPILOT_NUM_NODES": "1",
      "SKYPILOT_NODE_RANK": "0",
      "SKYPILOT_NODE_IPS": "10.0.0.1",
    },
    _SLURM | {"SLURM_NTASKS": "1"},
    {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2"},
    _OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    _TPU_SLICE | {"VIDEOMLA_NUM_PROCESSES": "1"},
  ],
)
def test_process_alone_joins_nobody(environment, monkeypatch) -> None:
  for name in (
    *(*_OURS, *_SKYPILOT, *_SLURM, *_OPEN_MPI, *_INDEXED_JOB, *_TPU_SLICE),
    "VIDEOMLA_CLUSTER",
  ):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  distributed.initialize()
  assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
  ("environment", "name"),
  [(e, x) for e in (_OURS, _SKYPILOT) for x in e]
  + [(_SLURM, x) for x in _SLURM]
  + [(_OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"), (_TPU_SLICE, "TPU_WORKER_ID")],
)
def test_missing_variable_is_named_with_a_way_out(environment, name) -> None:
  with pytest.raises(ValueError) as caught:
    scheduler.find(_without(environment, name))
  assert str(caught.value).startswith(f"{name} is missing, though ")
  assert "VIDEOMLA_NUM_PROCESSES=1" in str(caught.value)


@pytest.mark.parametrize(
  ("environment", "words"),
  [
    (
      _OURS | {"VIDEOMLA_NUM_PROCESSES": "0"},
      "VIDEOMLA_NUM_PROCESSES='0' must",
    ),
    (
      _OURS | {"VIDEOMLA_NUM_PROCESSES": "x"},
      "VIDEOMLA_NUM_PROCESSES='x' must",
    ),
    (_OURS | {"VIDEOMLA_PROCESS_ID": "4"}, "VIDEOMLA_PROCESS_ID='4' must"),
    (_OURS | {"VIDEOMLA_PROCESS_ID": "-1"}, "VIDEOMLA_PROCESS_ID='-1' must"),
    (
      _OURS | {"VIDEOMLA_COORDINATOR": "host"},
      "coordinator address 'host' must",
    ),
    (_OURS | {"VIDEOMLA_COORDINATOR": "host:70000"}, "'host:70000' must"),
    (_OURS | {"VIDEOMLA_COORDINATOR": ":8476"}, "':8476' must"),
    (_SKYPILOT | {"SKYPILOT_NODE_RANK": "2"}, "SKYPILOT_NODE_RANK='2' must"),
    (_SKYPILOT | {"SKYPILOT_NODE_IPS": "10.0.0.1"}, "lists 1 hosts and must"),
    (_SLURM | {"SLURM_PROCID": "one"}, "SLURM_PROCID='one' must"),
    (_TPU_SLICE | {"TPU_WORKER_ID": "4"}, "TPU_WORKER_ID='4' must"),
    ({"VIDEOMLA_CLUSTER": "tpu"}, "VIDEOMLA_CLUSTER='tpu' is unknown"),
  ],
)
def test_impossible_value_is_refused(environment, words) -> None:
  with pytest.raises(ValueError) as caught:
    scheduler.find(environment)
  assert words in str(caught.value) and "VIDEOMLA_" in str(caught.value)


def test_indexed_job_asks_the_cluster_or_the_user(monkeypatch) -> None:
  found = importlib.machinery.ModuleSpec("kubernetes", None)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
  group = scheduler.find(_INDEXED_JOB)
  assert group is not None and set(group.arguments().values()) == {None}
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="VIDEOMLA_COORDINATOR is missing"):
    scheduler.find(_INDEXED_JOB)


def test_jax_knows_the_tpu_slices_by_these_names() -> None:
  from jax._src import clusters  # no public way to ask

  names = {cluster.name for cluster in clusters.ClusterEnv._cluster_types}
  assert {"gcetpu", "gketpu"} <= names
