"""Tests of the command `embed`: which prompts it takes, and mistakes."""

import pathlib
from typing import Any

import pytest

from tests import tiny_project
from videomla_jax import embed
from videomla_jax.runtime import config_reader


def _config(**changes: Any) -> Any:
  config = tiny_project.config("embed")
  config.update(changes)
  return config


def test_prompts_come_from_config_and_file_without_repeats(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "prompts.txt"
  path.write_text("a cat\n\n  a dog \na fox\n")
  config = _config(
    prompts="a fox; a cat;", prompts_file=str(path), negative_prompt="blur"
  )
  request = config_reader.read(embed.Embedding, config)
  assert request.all_prompts() == ["a fox", "a cat", "a dog", "blur"]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(prompts=" ; "), "are both empty"),
    (dict(prompts_file="missing.txt"), "cannot be read"),
    (dict(prompts="a fox", checkpoint="missing"), "missing"),
    (dict(prompts="a fox", output="n" * 256), "more than 255 bytes"),
    (dict(prompts="a fox", output="."), "is a folder"),
    (dict(save_every=0), "must be at least 1"),
    (dict(save_every="all"), "save_every='all' must be int"),
  ],
)
def test_mistakes_are_refused(changes: dict[str, Any], said: str) -> None:
  config = tiny_project.config("embed").to_dict() | changes
  with pytest.raises(ValueError, match=said):
    embed.embed(config)
