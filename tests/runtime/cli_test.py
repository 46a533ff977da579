"""Tests of the command line itself, in processes as a user starts them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_project
from tests import tiny_release
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_files

_ROOT = tiny_project.CONFIGS.parent


def _run(
  module: str, *args: str, folder: pathlib.Path = _ROOT
) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, "-m", f"videomla_jax.{module}", *args],
    cwd=folder,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize(
  ("module", "args", "words"),
  [
    ("sample", ["--config=configs/sample.py:nope"], "use one of"),
    ("sample", ["--config=configs/sample.py", "--config.foo=1"], "'foo'"),
    ("sample", ["--config=configs/sample.py", "--bogus=1"], "'bogus'"),
    ("sample", ["--config=configs/none.py"], "configs/sample.py, configs/"),
    ("sample", ["--config=configs"], "cannot be read"),
    ("sample", ["--config=configs/sample.py", "word"], "unexpected"),
    ("train", ["--config=configs/teacher_forcing.py"], "--workdir is missing"),
    (
      "train",
      [
        "--config=configs/dmd.py:wan_1p3b",
        "--workdir=none",
        "--config.optim.schedule=cosine",
        "--config.optim.final_fraction=None",
      ],
      "final_fraction=None must be a number with optim.schedule='cosine'",
    ),
    ("benchmark", [], "--config is missing"),
    ("convert", [], "--source is missing"),
    ("convert", ["--source=none", "--output=out"], "does not exist"),
    ("convert", ["--to=dense"], "value should be one of"),
    ("embed", ["--config=configs/embed.py"], "are both empty"),
    ("calibrate", ["--config=configs/calibrate.py"], "is not a directory"),
  ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
  module: str, args: list[str], words: str
) -> None:
  _check(_run(module, *args), words)


def _check(ended: subprocess.CompletedProcess[str], words: str) -> None:
  assert ended.returncode == 2, ended.stderr
  lines = [x for x in ended.stderr.splitlines() if x.startswith("error: ")]
  assert len(lines) == 1 and words in lines[0], ended.stderr
  assert "Traceback" not in ended.stderr and ended.stdout == ""


def test_convert_says_what_it_did_and_nothing_else(tmp_path, seed) -> None:
  source = tmp_path / "given.safetensors"
  rng = np.random.default_rng(seed)
  given = tiny_release.draw(tiny_release.dit_table(), rng)
  safetensors_numpy.save_file(given, source)
  output = tmp_path / "dit"
  flags = [f"--source={source}", f"--output={output}", "--num_heads=4"]
  ended = _run("convert", *flags)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.splitlines() == [
    f"{source}: wan_dit, {len(given)} tensors",
    f"{source} -> {output}",
  ]
  progress = [line for line in ended.stderr.splitlines() if line]
  assert all(line.startswith("convert: ") for line in progress), progress


def test_bad_prompt_leaves_no_output_folder(tmp_path: pathlib.Path) -> None:
  ended = _run(
    "sample",
    "--config=configs/sample.py:latent,runlocal",
    "--config.prompts=a slow cat moving vertically",
    f"--config.output.folder={tmp_path / 'out'}",
  )
  _check(ended, "'cat'")
  assert not (tmp_path / "out").exists()


def test_configs_are_found_in_a_folder_that_has_none(
  tmp_path: pathlib.Path,
) -> None:
  flag = "--config=configs/sample.py:nope"
  _check(_run("sample", flag, folder=tmp_path), "use one of ['latent'")


def test_copy_of_a_config_finds_what_it_imports(tmp_path: pathlib.Path) -> None:
  text = (tiny_project.CONFIGS / "sample.py").read_text()
  (tmp_path / "mine.py").write_text(text.replace('"latent"', '"mine"'))
  ended = _run("sample", "--config=mine.py:nope", folder=tmp_path)
  _check(ended, "use one of ['mine'")


def test_config_is_looked_up_here_then_in_the_package(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  package, here = tmp_path / "site" / "package", tmp_path / "here"
  for folder in (package, package.parent / "configs", here / "configs"):
    folder.mkdir(parents=True)
  files = "importlib.resources.files"
  monkeypatch.setattr(files, lambda name: {"videomla_jax": package}[name])
  monkeypatch.chdir(here)
  assert config_files.config_folder() == package.parent / "configs"
  (package / "configs").mkdir()
  assert config_files.config_folder() == package / "configs"

  for name in ("both.py", "common.py", "theirs.py"):
    (package / "configs" / name).touch()
  (here / "configs" / "both.py").touch()
  (here / "own.py").touch()
  for path in (here / "configs" / "both.py", here / "own.py"):
    name = str(path.relative_to(here))
    assert config_files.find_config(name).resolve() == path
  theirs = str(pathlib.Path("configs", "theirs.py"))
  assert config_files.find_config(theirs) == package / theirs
  for name in ("theirs.py", "other/theirs.py", "configs/none.py"):
    with pytest.raises(ValueError, match=rf"py, {theirs}\.$") as end:
      config_files.find_config(name)
    assert repr(name) in str(end.value)
    assert "common" not in str(end.value)


def test_search_path_is_as_before_once_a_config_is_loaded() -> None:
  before = list(sys.path)
  with (
    pytest.raises(KeyError),
    config_files.importing_from(pathlib.Path("configs")),
  ):
    assert sys.path[1:-1] == before
    raise KeyError
  assert sys.path == before


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (ValueError("two\n  lines"), "two lines"),
    (AttributeError(KeyError("'foo'")), "'foo' is unknown"),
    (OSError(2, "gone"), "give its path"),
    (ValueError("use 'a' or 'b'"), "use 'a' or 'b'"),
  ],
)
def test_errors_become_one_line(error: Exception, said: str, capsys) -> None:
  with pytest.raises(SystemExit) as end:
    cli.fail(cli.explain(error))
  assert end.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith("error: ") and said in printed
  assert printed.count("\n") == 1


def test_error_of_a_config_file_is_found_below_its_traceback() -> None:
  try:
    try:
      raise ValueError("steps=x must be a number.")
    except ValueError:
      raise ValueError("flag --config: Traceback (most recent call last): ...")
  except ValueError as error:
    assert str(cli.explain(error)) == "steps=x must be a number."
