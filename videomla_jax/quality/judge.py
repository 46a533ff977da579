"""Lets VBench's own package judge videos, where it and its weights are.

The package needs other versions of PyTorch and NumPy than are usual here, so it
runs in an interpreter of its own, which the user names. It is started as
VBench's documents say, one dimension at a time, by a list of arguments and no
shell; its own command `vbench evaluate` would put names of files into one.
Scores are kept with what they are scores of: the version of the package, the
way of judging and the digests of the videos.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import judging as judging_lib
from videomla_jax.quality import plan
from videomla_jax.quality import scores
from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files

_LONG_ROOM = "vbench2_beta_long"
# What VBench-Long is made of, as far as it decides about scores.
_LONG_FILES = ("eval_long.py", "__init__.py", "utils.py")
_SHOWN = 300  # last characters of a log in a message
_LOG_BYTES = 2**16

# File or folder of weights of each dimension, below VBench's own cache; it
# loads others by name, or fetches them itself. From `vbench/utils.py`.
WEIGHTS: dict[str, tuple[str, ...]] = {
  "subject_consistency": (
    "dino_model/facebookresearch_dino_main",
    "dino_model/dino_vitbase16_pretrain.pth",
  ),
  "background_consistency": ("clip_model/ViT-B-32.pt",),
  "aesthetic_quality": (
    "clip_model/ViT-L-14.pt",
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
  ),
  "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
  "motion_smoothness": ("amt_model/amt-s.pth",),
  "dynamic_degree": ("raft_model/models/raft-things.pth",),
  "human_action": ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
  "scene": ("caption_model/tag2text_swin_14m.pth",),
  "appearance_style": ("clip_model/ViT-B-32.pt",),
  "temporal_style": ("ViCLIP/ViClip-InternVid-10M-FLT.pth",),
  "overall_consistency": ("ViCLIP/ViClip-InternVid-10M-FLT.pth",),
  "temporal_flickering": (),
  **dict.fromkeys(
    ("object_class", "multiple_objects", "color", "spatial_relationship"),
    ("grit_model/grit_b_densecap_objectdet.pth",),
  ),
}


class CannotJudge(Exception):
  """Says in a sentence why a dimension has no score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
  """A package `vbench` that can be started.

  Attributes:
    python: The interpreter.
    version: Version of the package, with a digest of VBench-Long behind it.
    program: Arguments that start the judge of videos.
    cache: Folder of its weights.
  """

  python: str
  version: str
  program: tuple[str, ...]
  cache: pathlib.Path


def find(judging: judging_lib.Judging) -> Package:
  """Looks for the package.

  Args:
    judging: Where it should be.

  Raises:
    CannotJudge: If it is not there.
  """
  python = judging.python or sys.executable
  if os.sep in python:
    # It is started in other folders. The interpreter of an environment is a
    # link, which says where the environment is, so it is not followed.
    python = os.path.abspath(python)
  question = "import importlib.metadata as m; print(m.version('vbench'))"
  try:
    done = subprocess.run(
      [python, "-c", question],
      cwd="/",  # Nothing that lies about is imported.
      capture_output=True,
      text=True,
      timeout=120,
      stdin=subprocess.DEVNULL,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise CannotJudge(
      f"judging.python={python!r} cannot be started ({error})"
    ) from error
  if done.returncode:
    raise CannotJudge(
      f"the package vbench is not installed for {python!r}; install it in an"
      " environment of its own and name its interpreter by judging.python"
    )
  version, program = done.stdout.strip()[:40], ("-m", "vbench.launch.evaluate")
  if judging.is_long:
    room = _long_room(judging.checkout)
    version += f" and VBench-Long {_digest(room)}"
    program = (str(room / _LONG_FILES[0]),)
  cache = os.environ.get("VBENCH_CACHE_DIR")
  return Package(
    python=python,
    version=version,
    program=program,
    cache=pathlib.Path(cache) if cache else _home_cache(),
  )


def _home_cache() -> pathlib.Path:
  return pathlib.Path("~/.cache/vbench").expanduser()


def _long_room(checkout: str) -> pathlib.Path:
  """Returns the folder of VBench-Long in a checkout."""
  if not checkout:
    raise CannotJudge(
      "VBench-Long is no complete part of the package; name a checkout of"
      " VBench by judging.checkout"
    )
  room = pathlib.Path(checkout).absolute() / _LONG_ROOM
  for name in _LONG_FILES:
    if not (room / name).is_file():
      raise CannotJudge(
        f"judging.checkout={checkout!r} has no {_LONG_ROOM}/{name}; clone"
        " VBench there"
      )
  return room


def _digest(room: pathlib.Path) -> str:
  """Returns a short digest of the code of VBench-Long."""
  content = hashlib.sha256()
  for name in _LONG_FILES:
    path = room / name
    try:
      content.update(
        ordinary_files.read_bytes(path, limit=16 * ordinary_files.MIB)
      )
    except ordinary_files.BadFile as error:
      raise CannotJudge(
        f"VBench-Long's file {str(path)!r} {error}; restore the checkout"
      ) from error
  return content.hexdigest()[:12]


def command(
  package: Package,
  *,
  dimension: str,
  videos: pathlib.Path,
  prompts_file: str,
  output: pathlib.Path,
  is_long: bool,
  samples: int,
) -> list[str]:
  """Returns the arguments that judge one dimension.

  Args:
    package: What is started.
    dimension: Its name.
    videos: Folder of the videos.
    prompts_file: VBench's own list of prompts, if the videos are of it; empty
      lets prompts be those of the names.
    output: Folder for what it writes.
    is_long: Whether VBench-Long judges.
    samples: Videos of each prompt.
  """
  mode = "vbench_standard" if prompts_file else "custom_input"
  arguments = [
    *(package.python, *package.program),
    *("--videos_path", str(videos.absolute())),
    *("--dimension", dimension),
    *("--output_path", str(output.absolute())),
    *("--mode", f"long_{mode}" if is_long else mode),
    # Any text is true here.
    *("--load_ckpt_from_local", "true"),
  ]
  if prompts_file:
    arguments += ["--full_json_dir", str(pathlib.Path(prompts_file).absolute())]
  if is_long:
    # As VBench-Long's documents start it.
    arguments += ["--dev_flag", "--num_of_samples_per_prompt", str(samples)]
    if dimension == plan.STILL:
      arguments += ["--static_filter_flag"]
  return arguments


def lacking(package: Package, dimension: str) -> list[pathlib.Path]:
  """Returns the weights of a dimension that are not there.

  Args:
    package: Says where they should be.
    dimension: Its name.
  """
  wanted = [package.cache / x for x in WEIGHTS[dimension]]
  return [x for x in wanted if not x.exists()]


def judge(
  package: Package,
  dimension: str,
  folder: folder_lib.Folder,
  *,
  videos: pathlib.Path,
  digests: Mapping[str, str],
  judging: judging_lib.Judging,
  prompts_file: str = "",
  samples: int = 5,
) -> float:
  """Returns the score of a dimension, which is judged unless it was before.

  Args:
    package: What judges.
    dimension: Its name.
    folder: Where scores are kept.
    videos: Folder of the videos.
    digests: SHA-256 of each video by its name.
    judging: How to judge.
    prompts_file: VBench's own list, if the videos are of it.
    samples: Videos of each prompt.

  Raises:
    CannotJudge: If weights are missing, or the package fails.
    ValueError: If there is a score of other videos or another version.
  """
  of = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
  about: dict[str, Any] = dict(
    vbench=package.version,
    long=judging.is_long,
    standard=bool(prompts_file),
    samples=samples,
    videos=of,
  )
  file = folder.judged / f"{dimension}.json"
  if file.exists():
    return _stored(file, dimension, about)
  missing = lacking(package, dimension)
  if missing:
    raise CannotJudge(
      f"weights of {dimension} are missing, such as {str(missing[0])!r}; put"
      " them there as VBench's pretrained/README says"
    )
  if dimension == plan.STILL and not judging.is_long and prompts_file:
    raise CannotJudge(
      f"{dimension} is judged on still videos alone; run `vbench static_filter`"
      " on the videos, and configs/evaluate.py:videos on what it keeps"
    )
  folder.judged.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as new:
    output = pathlib.Path(new)
    arguments = command(
      package,
      dimension=dimension,
      videos=videos,
      prompts_file=prompts_file,
      output=output,
      is_long=judging.is_long,
      samples=samples,
    )
    _run(arguments, output)
    found = [*output.glob("*_eval_results.json")]
    if len(found) != 1:
      raise CannotJudge(f"vbench wrote no results for {dimension}")
    try:
      score = scores.read_results(found[0]).get(dimension)
      content = ordinary_files.read_json(found[0], limit=scores.MOST_BYTES)
    except ValueError as error:
      raise CannotJudge(str(error).rstrip(".")) from error
    if score is None:
      raise CannotJudge(f"vbench wrote no score for {dimension}")
  kept = dict(about=about, score=score, results=content)
  atomic.write_text(file, json.dumps(kept) + "\n")
  return score


def _stored(file: pathlib.Path, dimension: str, about: object) -> float:
  """Reads a score that was kept, if it is one of the same videos."""
  try:
    kept = ordinary_files.read_json(file, limit=scores.MOST_BYTES)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{str(file)!r} {error}; remove it to judge {dimension} again."
    ) from error
  old = kept.get("about")
  if old != about:
    different = "settings"
    if isinstance(old, dict) and isinstance(about, dict):
      different = ", ".join(
        f"{k}={str(old.get(k))[:40]!r} and not {str(v)[:40]!r}"
        for k, v in about.items()
        if old.get(k) != v
      )
    raise ValueError(
      f"{str(file)!r} is a score of {different}; move it away to judge"
      f" {dimension} again."
    )
  score = kept.get("score")
  # A NaN fails the comparison.
  if not isinstance(score, float) or not 0 <= score <= 1:
    raise ValueError(
      f"{str(file)!r} has {score!r} as the score, which must lie in 0..1;"
      f" remove it to judge {dimension} again."
    )
  return score


def _run(arguments: Sequence[str], folder: pathlib.Path) -> None:
  """Runs the package; what it prints goes to a file that ends with it."""
  log = folder / "log.txt"
  with log.open("wb") as file:
    done = subprocess.run(
      [*arguments],
      cwd=folder,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
    )
  if done.returncode:
    raise CannotJudge(
      f"vbench ended with code {done.returncode}: {_end_of(log)}"
    )


def _end_of(log: pathlib.Path) -> str:
  """Returns the last line of a log, cut, without control characters."""
  with contextlib.suppress(OSError), log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - _LOG_BYTES))
    lines = file.read(_LOG_BYTES).decode(errors="replace").strip().splitlines()
    if lines:
      line = "".join(x if x.isprintable() else " " for x in lines[-1])
      return line[-_SHOWN:]
  return "it printed nothing"
