"""Tests of the launch files, and of many processes on this machine.

The files are parsed and their shell parts run with stand-ins for Slurm's
programs and for Python; no cluster is here.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from tests import many_hosts
from videomla_jax.runtime import distributed
from videomla_jax.runtime import launch_local
from videomla_jax.storage import state_digests
from videomla_jax.storage import train_states

_ROOT = pathlib.Path(__file__).parents[2]
_LAUNCH = _ROOT / "launch"
_COMMAND = [
  "python",
  "-m",
  "videomla_jax.train",
  "--config=configs/NAME.py",
  "--workdir=/shared/runs/NAME",
]
_SECONDS = 60  # of patience with a loaded machine


def _container() -> dict:
  spec = yaml.safe_load((_LAUNCH / "jobset.yaml").read_text())["spec"]
  pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  return pod["containers"][0]


@contextlib.contextmanager
def _stand_ins(
  folder: pathlib.Path, **scripts: str
) -> Iterator[dict[str, str]]:
  """Puts programs before all others on the path."""
  for name, script in scripts.items():
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
  yield {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# A stand-in prints its name and arguments, one a line.
_PRINT = 'printf "%s\\n" "${0##*/}" "$@"'
# srun without its own options, which all begin with two dashes.
_SRUN = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'


def _run_sbatch(folder: pathlib.Path, code: int) -> subprocess.CompletedProcess:
  with _stand_ins(
    folder, srun=_SRUN, scontrol=_PRINT, python=f"{_PRINT}; exit {code}"
  ) as environment:
    return subprocess.run(
      ["bash", str(_LAUNCH / "slurm.sbatch"), *_COMMAND[3:]],
      env=environment | {"SLURM_JOB_ID": "77"},
      cwd=folder,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )


def test_every_scheduler_runs_the_same_command(tmp_path) -> None:
  slurm = _run_sbatch(tmp_path, 0)
  assert slurm.stdout.splitlines() == _COMMAND, slurm.stderr

  container = _container()
  assert container["command"] + container["args"] == _COMMAND

  sky = yaml.safe_load((_LAUNCH / "sky.yaml").read_text())
  with _stand_ins(tmp_path, python=_PRINT) as environment:
    ran = subprocess.run(
      ["bash", "-c", sky["run"]],
      env=environment | sky["envs"],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
  assert ran.stdout.splitlines() == _COMMAND, ran.stderr


@pytest.mark.parametrize(
  ("code", "requeued"), [(0, False), (1, False), (2, False), (143, True)]
)
def test_slurm_job_is_queued_again_after_sigterm(
  tmp_path, code, requeued
) -> None:
  ended = _run_sbatch(tmp_path, code)
  assert ended.stdout.splitlines()[len(_COMMAND) :] == (
    ["scontrol", "requeue", "77"] if requeued else []
  )
  assert ended.returncode == (0 if requeued else code), ended.stderr


def test_slurm_options_are_those_of_one_process_per_node() -> None:
  text = (_LAUNCH / "slurm.sbatch").read_text()
  options = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
  assert len(options) == text.count("\n#SBATCH")
  assert {
    "--ntasks-per-node=1",
    "--gpus-per-node=8",
    "--signal=TERM@120",
    "--requeue",
    "--open-mode=append",
  } <= set(options)


def test_jobset_gives_each_pod_what_initialize_reads() -> None:
  document = yaml.safe_load((_LAUNCH / "jobset.yaml").read_text())
  assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert document["kind"] == "JobSet"
  spec = document["spec"]
  assert spec["coordinator"]["replicatedJob"] == "train"
  assert spec["network"]["enableDNSHostnames"]
  assert spec["failurePolicy"]["maxRestarts"] > 0
  job = spec["replicatedJobs"][0]["template"]["spec"]
  assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 60
  container = _container()
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  variables = {x["name"]: x.get("value") for x in container["env"]}
  nodes = int(variables["VIDEOMLA_NUM_PROCESSES"])
  assert job["parallelism"] == job["completions"] == nodes
  # A variable can only use those listed before it.
  assert list(variables)[:2] == ["COORDINATOR_HOST", "VIDEOMLA_COORDINATOR"]
  assert variables["VIDEOMLA_COORDINATOR"] == "$(COORDINATOR_HOST):8476"
  mounted = {x["name"]: x["mountPath"] for x in container["volumeMounts"]}
  assert mounted.keys() == {x["name"] for x in pod["volumes"]}
  assert _COMMAND[-1].startswith(f"--workdir={mounted['shared']}/")


def test_sky_task_recovers_and_shares_its_work_folder() -> None:
  sky = yaml.safe_load((_LAUNCH / "sky.yaml").read_text())
  assert sky["num_nodes"] > 1
  resources = sky["resources"]
  assert resources["accelerators"] == "B200:8"
  assert 143 in resources["job_recovery"]["recover_on_exit_codes"]
  (mounted,) = sky["file_mounts"]
  assert sky["envs"]["WORKDIR"].startswith(f"{mounted}/")


def test_launch_files_are_short_and_hold_no_hyperparameters() -> None:
  for path in _LAUNCH.iterdir():
    text = path.read_text()
    assert "--config." not in text, path
    if path.suffix != ".md":
      assert len(text.splitlines()) <= 60, path
      assert re.search(r"^# (sbatch|kubectl|sky) ", text, re.MULTILINE), path


def _start(name: str, *arguments: str, options: tuple[str, ...] = ()):
  """Starts two processes of four devices that run a program of ours."""
  return subprocess.Popen(
    [
      *(
        sys.executable,
        "-m",
        "videomla_jax.runtime.launch_local",
        "--processes=2",
      ),
      *("--devices=4", *options, "--", "-m", "tests.many_hosts", name),
      *arguments,
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _read_until_ready(launcher: subprocess.Popen) -> None:
  """Reads lines until both processes work."""
  waiting, seen = {"[0] ready\n", "[1] ready\n"}, []
  while waiting:
    line = launcher.stdout.readline()
    assert line, seen
    seen.append(line)
    waiting.discard(line)


@pytest.mark.parametrize("scheduler", ["", "slurm", "skypilot"])
def test_devices_of_two_processes_add_up(scheduler) -> None:
  launcher = _start("total", *([scheduler] if scheduler else []))
  text, _ = launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == 0, text
  for index in range(2):
    # 0² + 1² + ... + 7²; no GPU of the host was hidden.
    line = f"process {index} of 2: 4 of 8 devices, visible all, sum 140.0"
    assert f"[{index}] {line}" in text.splitlines()


def test_two_processes_save_models_and_states_together(tmp_path) -> None:
  launcher = _start("save", str(tmp_path / "model"))
  text, _ = launcher.communicate(timeout=_SECONDS)
  # The last state was never finished: process 0 was killed over its digests.
  # Process 1 ends itself when it misses the other, perhaps before it is ended.
  assert launcher.returncode in (
    128 + signal.SIGKILL,
    128 + signal.SIGABRT,
  ), text
  for index in range(2):
    lines = [x for x in text.splitlines() if x.startswith(f"[{index}]")]
    assert f"[{index}] loaded [0.0, 1.0, 2.0]" in lines
    assert [line for line in lines if "restored" in line] == [
      f"[{index}] restored {step} at {{'next': {step}}}" for step in (2, 1)
    ], text
  folder = tmp_path / "model-states"
  names = {path.name for path in folder.iterdir()}
  assert {"1", "broken-2"} <= names and "3" not in names
  listed = json.loads((folder / "1" / state_digests.FILE).read_text())["files"]
  for index in range(2):
    assert any(f"ocdbt.process_{index}/d/" in name for name in listed)
  assert [*state_digests.problems(folder / "1", 1)] == []
  # One process goes on from what two have saved.
  with train_states.TrainCheckpoints(folder, keep=3) as saved:
    restored = saved.restore_latest(many_hosts.state(0))
    saved.save(3, many_hosts.state(3), {"next": 3}, {})
  assert restored.step == 1 and restored.iterator_state == {"next": 1}
  np.testing.assert_array_equal(restored.state["x"], many_hosts.state(1)["x"])
  assert [*state_digests.problems(folder / "3", 3)] == []


def test_failure_ends_the_process_that_waits_in_a_collective() -> None:
  launcher = _start("fail")
  text, _ = launcher.communicate(timeout=_SECONDS)
  # On a loaded machine process 0 may notice, and end, before process 1 has
  # ended in the eyes of the launcher.
  assert launcher.returncode in (1, 2), text
  assert "[1] error: of process 1" in text.splitlines(), text


def test_unhandled_error_ends_at_once_with_its_traceback() -> None:
  launcher = _start("raise_error")
  text, _ = launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == 1, text
  assert "KeyError: (2, 1)" in text


def test_failure_ends_what_the_other_process_started() -> None:
  launcher = _start("leave_child")
  # The end of output means that nobody holds it, grandchildren included.
  text, _ = launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == 5, text


@pytest.mark.parametrize(
  ("name", "number", "code"),
  [("work", signal.SIGTERM, 143), ("listen", signal.SIGINT, 3)],
)
def test_signal_reaches_joined_processes(name, number, code) -> None:
  launcher = _start(name)
  _read_until_ready(launcher)
  launcher.send_signal(number)
  text, _ = launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == code, text


# The main thread of this launcher takes no SIGTERM, another one gets it. What
# it starts takes it again.
_LISTEN_ELSEWHERE = """
import signal, sys, threading
from videomla_jax.runtime import launch_local

threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
command = [sys.executable, "-uc", sys.argv[1]]
sys.exit(launch_local.launch(command, processes=2, devices=1))
"""
_WAIT = """
import signal
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
print("ready")
signal.pause()
"""


def test_signal_that_does_not_wake_the_main_thread_is_passed_on() -> None:
  launcher = subprocess.Popen(
    [sys.executable, "-c", _LISTEN_ELSEWHERE, _WAIT],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  _read_until_ready(launcher)
  launcher.send_signal(signal.SIGTERM)
  launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == 128 + signal.SIGTERM


def test_process_that_ignores_sigterm_is_killed_in_the_end() -> None:
  launcher = _start("listen", options=("--grace_seconds=0.5",))
  _read_until_ready(launcher)
  launcher.send_signal(signal.SIGTERM)
  text, _ = launcher.communicate(timeout=_SECONDS)
  assert launcher.returncode == 128 + signal.SIGKILL
  assert "[0] got SIGTERM" in text and "[1] got SIGTERM" in text


def test_environment_of_a_process_keeps_what_was_there() -> None:
  made = launch_local.process_environment(
    {
      "HOME": "/home",
      "XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=2",
    },
    index=1,
    processes=2,
    devices=4,
    port=99,
  )
  assert made["HOME"] == "/home" and made["JAX_PLATFORMS"] == "cpu"
  assert made["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=4"
  assert made["VIDEOMLA_COORDINATOR"] == "127.0.0.1:99"
  assert made["VIDEOMLA_PROCESS_ID"] == "1"
  # A proxy could not reach the coordinator.
  assert made["no_proxy"] == made["NO_PROXY"] == "127.0.0.1,localhost,::1"


def test_hosts_that_need_no_proxy_are_kept() -> None:
  given = {"no_proxy": "a.org, localhost", "no_grpc_proxy": "b.org"}
  assert distributed.without_proxy(given) == {
    "no_proxy": "a.org,localhost,127.0.0.1,::1",
    "NO_PROXY": "127.0.0.1,localhost,::1",
    "no_grpc_proxy": "b.org,127.0.0.1,localhost,::1",
  }


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--processes=0", "--", "-c", ""], "processes=0 must be at least 1"),
    (["--devices=0", "--", "-c", ""], "devices=0 must be at least 1"),
    (["--grace_seconds=-1", "--", "-c", ""], "must be 0 or more"),
    (["--grace_seconds=inf", "--", "-c", ""], "at most a day"),
    (["--devices=99999999999", "--", "-c", ""], "must be at most 1024"),
    (["--processes=many", "--", "-c", ""], "'many'; see --help"),
    (["--bogus", "--", "-c", ""], "--bogus; see --help"),
    (["--processes=2"], "arguments of python are missing"),
  ],
)
def test_mistake_is_refused_before_anything_starts(arguments, words) -> None:
  with pytest.raises(ValueError) as caught:
    launch_local.main(arguments)
  assert words in str(caught.value)


def test_program_that_cannot_start_is_named() -> None:
  with pytest.raises(ValueError, match="'no-such-program' cannot be started"):
    launch_local.launch(["no-such-program"], processes=2, devices=1)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
