"""VBench is started as it is meant to be, and its scores are kept.

A program stands for the package: it writes what VBench would write.
"""

import json
import pathlib
import sys
from typing import Any

import pytest

from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import judge
from videomla_jax.quality import judging
from videomla_jax.quality import scores

# What it is asked is written beside its results.
_PROGRAM = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("a line\\nthe last line", flush=True)
name, output = given["--dimension"], pathlib.Path(given["--output_path"])
if given["--videos_path"].endswith("broken"):
  sys.exit(3)
result = {name: [SCORE, [{"video_path": "a-0.mp4", "video_results": 1}]]}
(output / "results_x_eval_results.json").write_text(json.dumps(result))
log = pathlib.Path(LOG)
log.write_text((log.read_text() if log.exists() else "") + json.dumps(sys.argv))
"""


def _package(folder: pathlib.Path, score: str = "0.5") -> judge.Package:
  program = folder / "program.py"
  log = repr(str(folder / "log.json"))
  text = _PROGRAM.replace("SCORE", score).replace("LOG", log)
  program.write_text(text)
  cache = folder / "cache"
  for name in judge.WEIGHTS["imaging_quality"]:
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    (cache / name).touch()
  return judge.Package(
    python=sys.executable,
    version="0.1.5",
    program=(str(program),),
    cache=cache,
  )


def _judged(folder: pathlib.Path, package: judge.Package, **changes: Any):
  arguments: dict[str, Any] = dict(
    videos=folder / "videos",
    digests={"a-0.mp4": "1"},
    judging=judging.Judging(dimensions=("imaging_quality",)),
  )
  return judge.judge(
    package,
    "imaging_quality",
    folder_lib.Folder(folder),
    **(arguments | changes),
  )


def test_a_score_is_judged_once_and_kept(tmp_path: pathlib.Path) -> None:
  package = _package(tmp_path)
  assert _judged(tmp_path, package) == 0.5
  (tmp_path / "log.json").unlink()
  assert _judged(tmp_path, package) == 0.5
  assert not (tmp_path / "log.json").exists()
  kept = json.loads((tmp_path / "vbench" / "imaging_quality.json").read_text())
  assert kept["results"]["imaging_quality"][0] == 0.5


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(digests={"a-0.mp4": "2"}), "is a score of videos="),
    (dict(samples=3), "is a score of samples='5' and not '3'"),
    (dict(prompts_file="list.json"), "is a score of standard="),
  ],
)
def test_scores_of_other_videos_are_refused(
  changes: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
  package = _package(tmp_path)
  _judged(tmp_path, package)
  with pytest.raises(ValueError, match=words):
    _judged(tmp_path, package, **changes)


def test_scores_of_another_version_and_damaged_ones_are_refused(
  tmp_path: pathlib.Path,
) -> None:
  package = _package(tmp_path)
  file = tmp_path / "vbench" / "imaging_quality.json"
  _judged(tmp_path, package)
  before = file.read_bytes()
  newer = judge.Package(
    python=package.python,
    version="0.1.6",
    program=package.program,
    cache=package.cache,
  )
  with pytest.raises(ValueError, match=r"vbench='0.1.5' and not '0.1.6'"):
    _judged(tmp_path, newer)
  assert file.read_bytes() == before
  file.write_text("{")
  with pytest.raises(ValueError, match="is no JSON; remove it to judge"):
    _judged(tmp_path, package)


@pytest.mark.parametrize("score", [68.2, -0.1, float("nan"), True, "0.5", None])
def test_a_stored_score_outside_of_its_range_is_refused(
  score: object, tmp_path: pathlib.Path
) -> None:
  package = _package(tmp_path)
  _judged(tmp_path, package)
  file = tmp_path / "vbench" / "imaging_quality.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"score": score}))
  with pytest.raises(ValueError, match=r"as the score, which must lie in 0..1"):
    _judged(tmp_path, package)


def test_what_fails_says_why_and_keeps_nothing(tmp_path: pathlib.Path) -> None:
  with pytest.raises(judge.CannotJudge, match="with code 3: the last line"):
    _judged(tmp_path, _package(tmp_path), videos=tmp_path / "broken")
  with pytest.raises(judge.CannotJudge, match=r"68\.2 as the score"):
    _judged(tmp_path, _package(tmp_path, "68.2"))
  package = _package(tmp_path)
  for name in judge.WEIGHTS["imaging_quality"]:
    (package.cache / name).unlink()
  with pytest.raises(judge.CannotJudge, match="weights of imaging_quality"):
    _judged(tmp_path, package)
  assert not [*(tmp_path / "vbench").glob("*")]


def test_arguments_are_those_of_vbench_and_no_shell_reads_them(
  tmp_path: pathlib.Path,
) -> None:
  package = _package(tmp_path)
  odd = tmp_path / 'it\'s $(touch x); `x` "y"'
  odd.mkdir()
  _judged(tmp_path, package, videos=odd, prompts_file="list.json")
  arguments = json.loads((tmp_path / "log.json").read_text())
  given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
  assert given["--videos_path"] == str(odd)
  assert given["--mode"] == "vbench_standard"
  assert given["--full_json_dir"] == str(pathlib.Path("list.json").absolute())
  custom = judge.command(
    package,
    dimension="scene",
    videos=odd,
    prompts_file="",
    output=tmp_path,
    is_long=True,
    samples=2,
  )
  assert custom[custom.index("--mode") + 1] == "long_custom_input"
  assert custom[-3:] == ["--dev_flag", "--num_of_samples_per_prompt", "2"]
  assert "--full_json_dir" not in custom


def test_flicker_of_the_standard_list_needs_still_videos(
  tmp_path: pathlib.Path,
) -> None:
  package = _package(tmp_path)
  call = dict(videos=tmp_path, digests={}, judging=judging.Judging(), samples=5)
  folder = folder_lib.Folder(tmp_path)
  with pytest.raises(judge.CannotJudge, match="vbench static_filter"):
    judge.judge(
      package,
      "temporal_flickering",
      folder,
      prompts_file="list.json",
      **call,
    )
  assert judge.judge(package, "temporal_flickering", folder, **call) == 0.5


def test_weights_are_known_of_every_dimension() -> None:
  assert {*judge.WEIGHTS} == {*scores.DIMENSIONS}


def test_a_package_that_is_not_there_is_one_sentence(
  tmp_path: pathlib.Path,
) -> None:
  with pytest.raises(judge.CannotJudge, match="vbench is not installed for"):
    judge.find(judging.Judging(dimensions=("scene",)))
  absent = judging.Judging(
    dimensions=("scene",), python=str(tmp_path / "python")
  )
  with pytest.raises(judge.CannotJudge, match="cannot be started"):
    judge.find(absent)


def _interpreter(folder: pathlib.Path) -> pathlib.Path:
  """Writes what answers as an interpreter with the package does, and a link."""
  target = folder / "usr" / "python"
  target.parent.mkdir()
  target.write_text("#!/bin/sh\necho 0.1.5\n")
  target.chmod(0o755)
  link = folder / "environment" / "bin" / "python"
  link.parent.mkdir(parents=True)
  link.symlink_to(target)
  return link


def test_a_relative_interpreter_is_that_of_this_folder(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  link = _interpreter(tmp_path)
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  found = judge.find(
    judging.Judging(dimensions=("scene",), python="../environment/bin/python")
  )
  # The link tells Python which environment it is, so it is not followed.
  assert (found.python, found.version) == (str(link), "0.1.5")


def test_code_of_vbench_long_that_cannot_be_read_is_named(
  tmp_path: pathlib.Path,
) -> None:
  room = tmp_path / "vbench2_beta_long"
  room.mkdir()
  for name in ("eval_long.py", "__init__.py", "utils.py"):
    (room / name).touch()
  asked = judging.Judging(
    dimensions=("scene",),
    length="30s",
    python=str(_interpreter(tmp_path)),
    checkout=str(tmp_path),
  )
  assert " and VBench-Long " in judge.find(asked).version
  with (room / "utils.py").open("wb") as file:
    file.truncate(2**24 + 1)
  with pytest.raises(judge.CannotJudge, match=r"utils\.py' has more than"):
    judge.find(asked)
