"""A config of the whole way, and what it refuses."""

import pytest

from tests import tiny_project
from videomla_jax.chain import settings


def test_the_config_file_has_every_part() -> None:
  read, parts = settings.read(tiny_project.config("world", "all,minutes=3"))
  assert read.minutes == 3
  assert tuple(parts) == settings.PARTS
  assert parts["dmd"].stage == "dmd"


def test_a_missing_part_is_named() -> None:
  config = tiny_project.config("world", "all")
  config.unlock()
  del config["dmd"]
  with pytest.raises(ValueError, match="dmd is missing"):
    settings.read(config)


def test_a_finished_vae_leaves_nothing_to_set_of_its_training() -> None:
  config = tiny_project.config("world", "all,vae=finished")
  read, parts = settings.read(config)
  assert (read.finished_vae, read.shares.vae) == ("finished", None)
  assert tuple(parts) == settings.PARTS[1:]
  config.finished_vae = ""
  with pytest.raises(ValueError, match="vae is missing"):
    settings.read(config)
  config = tiny_project.config("world", "all")
  config.finished_vae = "finished"
  with pytest.raises(ValueError, match="vae"):
    settings.read(config)
  config.unlock()
  del config.vae
  with pytest.raises(ValueError, match="contradict each other"):
    settings.read(config)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("minutes", 0.0, "minutes"),
    ("probe", 6, "multiple of 4"),
    ("dispatch", -1, "dispatch"),
  ],
)
def test_numbers_out_of_range_are_refused(key, value, message) -> None:
  config = tiny_project.config("world", "all")
  config[key] = value
  with pytest.raises(ValueError, match=message):
    settings.read(config)
