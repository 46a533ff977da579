"""Tests of prepared data when disks are full, shards damaged, texts too long."""

import errno
import os
import shutil

import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import prepare
from videomla_jax.data import plans
from videomla_jax.data import preparation
from videomla_jax.data import record_files
from videomla_jax.runtime import config_reader


def _plan(config) -> plans.Plan:
  return prepare.make_plan(config_reader.read(prepare.Request, config))


def _prompts(tmp_path, lines):
  """A config of prompts alone, two to a shard."""
  (tmp_path / "p.txt").write_text("\n".join(lines) + "\n")
  config = tiny_project.config("prepare", "tiny")
  config.update(
    prompts=str(tmp_path / "p.txt"),
    output=str(tmp_path / "data"),
    test_fraction=0.0,
  )
  return config


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
  config = _prompts(tmp_path, ["a cat", "a dog", "a fox", "a quick fox"])
  write, written = record_files.write, []

  def full_at_second(path, made):
    if written:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written.append(path)
    return write(path, made)

  monkeypatch.setattr(record_files, "write", full_at_second)
  with pytest.raises(ValueError, match="No space left on device.*same command"):
    prepare.prepare(config)
  work = _plan(config).work
  shard = work / "train-00000.array_record"
  before = shard.stat().st_mtime_ns
  assert not [*work.glob(".*"), *work.parent.glob(".*")]
  monkeypatch.setattr(record_files, "write", write)
  plan = _plan(config)
  preparation.run(plan)
  assert shard.stat().st_mtime_ns == before
  assert prepare.prepare(config)["clips"]["train"] == 4


def test_two_processes_do_not_prepare_one_folder(tmp_path):
  config = _prompts(tmp_path, ["a cat"])
  with preparation.alone(_plan(config)):
    with pytest.raises(ValueError, match="another process is making"):
      prepare.prepare(config)
  assert prepare.prepare(config)["clips"]["train"] == 1
  prepare.prepare(config)  # described again


def test_captions_that_are_too_long_are_counted(tmp_path, capsys):
  config = _prompts(tmp_path, ["a cat " * 600, "a dog"])
  report = prepare.prepare(config)
  assert report["cut"] == 1
  assert "1 captions have more than 512 tokens" in capsys.readouterr().out


def test_damage_of_an_unfinished_data_set_is_repaired_or_told(tmp_path, seed):
  config = _prompts(tmp_path, ["a cat", "a dog", "a fox"])
  plan = _plan(config)
  preparation.run(plan)
  data = bytearray(plan.jobs[1].counts.read_bytes())
  data[int(np.random.default_rng(seed).integers(len(data)))] ^= 1
  plan.jobs[1].counts.write_bytes(data)
  assert [job.is_done for job in plan.jobs] == [True, False, True]
  preparation.run(plan)
  assert preparation.finish(plan)["clips"]["train"] == 3
  shutil.rmtree(plan.folder)
  preparation.begin(plan)
  for damage in (
    b"",
    b"\xff",
    b"[1]",
    b'{"identity": 1, "x": 2}',
    b"[" * 10**5,
  ):
    (plan.work / "plan.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"plan\.json.* delete .* start again"):
      _plan(config)
