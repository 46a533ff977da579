"""Tests of `ablate`: what is run, what goes on, and what is refused."""

import itertools
import json
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import ablate
from videomla_jax.ablations import outcomes
from videomla_jax.ablations import page
from videomla_jax.ablations import results
from videomla_jax.ablations import starts
from videomla_jax.ablations import trainer as trainer_lib
from videomla_jax.data import locks
from videomla_jax.generation import mp4
from videomla_jax.measuring import record
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.storage import atomic

_ROWS = "^(base|rank 4 forced|rank 8 forced|d_c=4|dense)$"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
  """Replaces training, which has tests of its own; nothing is compiled."""
  made: list[tuple[str, list[int]]] = []

  def train(self, networks, seeds, ranks, *, name, films=None):
    assert (films is not None) == name.startswith("films")
    made.append((name, [*map(int, seeds)]))
    rng = np.random.default_rng(seeds[0])
    return [trainer_lib.Trained(n["model"], rng.random(), 1) for n in networks]

  monkeypatch.setattr(trainer_lib.Trainer, "__call__", train)
  monkeypatch.setattr(
    outcomes, "held_out_loss", lambda *models, **how: jnp.float32(0.25)
  )
  return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> str:
  """A dense model that is converted."""
  path = tmp_path_factory.mktemp("dense") / "dense"
  with pytest.MonkeyPatch.context() as patch:
    tiny_project.shrink(patch)
    tiny_project.checkpoint(path, np.random.default_rng(), kind="dense")
  return str(path)


@pytest.fixture(scope="module")
def models() -> dict[tuple[Any, ...], Any]:
  """Starts that tests have in common, since each takes a second to convert."""
  return {}


@pytest.fixture
def config(
  tmp_path: pathlib.Path,
  dense: str,
  models: dict[tuple[Any, ...], Any],
  monkeypatch: pytest.MonkeyPatch,
) -> Any:
  tiny_project.shrink(monkeypatch)
  make = starts.make

  def shared(start: str, settings: Any, *, dense: str) -> Any:
    key = (start, dense, settings.model.d_c)
    if key not in models:
      models[key] = make(start, settings, dense=dense)
    return models[key]

  monkeypatch.setattr(starts, "make", shared)
  config = tiny_project.config("ablate", "runlocal")
  config.rows, config.dense = _ROWS, dense
  config.record = str(tmp_path / "out" / "ablations.jsonl")
  return config


def test_every_row_and_seed_is_run_once(config, calls, capsys) -> None:
  lines = ablate.ablate(config)
  keys = {results.key_of(x) for x in lines}
  names = ("base", "d_c=4", "rank 4 forced", "rank 8 forced", "dense")
  assert keys == {(n, s) for n in names for s in (0, 1)}
  # Two models fit into a program: the seeds of a row.
  assert sorted(calls) == sorted((name, [0, 1]) for name in names)
  found = {results.key_of(x): x for x in lines}
  assert found["d_c=4", 0]["rank"] <= 4 < found["base", 0]["rank"] <= 16
  assert found["dense", 0]["attention"] == "dense"
  assert found["base", 1]["recipe"]["optim.steps"] == 6
  assert "base (n=2), held-out loss 0.2500" in capsys.readouterr().out
  # The same command has nothing left to do.
  assert ablate.ablate(config) == lines and len(calls) == len(names)


def test_settings_of_equal_shapes_share_a_program(config, calls) -> None:
  config.together = 5
  ablate.ablate(config)
  assert ("rank 4 forced, rank 8 forced", [0, 1, 0, 1]) in calls


def test_a_stopped_command_keeps_what_it_has_and_goes_on(
  config, calls, monkeypatch
) -> None:
  config.seeds = 1
  add, left = results.Results.add, [2]

  def stopping(self, lines):
    add(self, lines)
    left[0] -= 1
    if not left[0]:
      raise KeyboardInterrupt

  monkeypatch.setattr(results.Results, "add", stopping)
  with pytest.raises(KeyboardInterrupt):
    ablate.ablate(config)
  monkeypatch.setattr(results.Results, "add", add)
  before = record.read(pathlib.Path(config.record))
  assert len(before) == 2
  assert ablate.ablate(config)[:2] == before and len(calls) == 4
  # More seeds later add to what there is.
  config.seeds = 2
  assert len(ablate.ablate(config)) == 10
  assert calls[-1][1] == [1]
  names = [p.name for p in pathlib.Path(config.record).parent.iterdir()]
  assert names == ["ablations.jsonl"]


def test_minutes_end_the_work_before_the_next_row(
  config, calls, capsys
) -> None:
  config.minutes = 0.0
  assert ablate.ablate(config) == [] and not calls
  assert "5 rows are not complete; the same command" in capsys.readouterr().out


def test_rows_of_another_process_are_left_to_it(config, calls, capsys) -> None:
  path = pathlib.Path(config.record)
  path.parent.mkdir()
  # Locks are per open file, so this process can stand for another one.
  with locks.alone(path.with_name(f"{path.name}: d_c=4"), wait=False):
    lines = ablate.ablate(config)
  assert len(lines) == 8 and "d_c=4" in capsys.readouterr().out
  assert len(ablate.ablate(config)) == 10


def test_lines_of_two_processes_are_all_kept(config, calls, tmp_path) -> None:
  path = tmp_path / "record.jsonl"
  session = record.Session(device="cpu", commit="a", versions={}, date="today")
  one, other = (results.Results(path=path, session=session) for _ in range(2))
  one.add([dict(setting="a", seed=0, recipe={})])
  other.add([dict(setting="b", seed=0, recipe={})])
  recipes = {("a", 0): {}, ("b", 0): {}, ("c", 0): {}}
  assert {*one.known(recipes)} == {("a", 0), ("b", 0)}


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(recipe={"optim.steps": 7}), "optim.steps=7 where .* has 6"),
    (dict(recipe=None), "=None where this command has"),
    (dict(format=0), "format=0 where this command has 1"),
    (dict(device="a GPU"), "device='a GPU' where"),
    (dict(versions={"jax": "0.1"}), "versions"),
  ],
)
def test_results_of_other_settings_are_refused_and_stay(
  config, calls, change: dict[str, Any], words: str
) -> None:
  config.rows, config.seeds = "^base$", 1
  (line,) = ablate.ablate(config)
  for key, value in change.items():
    merge = isinstance(value, dict) and key == "recipe"
    line[key] = line[key] | value if merge else value
  path = pathlib.Path(config.record)
  atomic.write_text(path, json.dumps(line) + "\n")
  before = path.read_bytes()
  with pytest.raises(ValueError, match=words) as end:
    ablate.ablate(config)
  assert "line 1 of row 'base'" in str(end.value)
  assert path.read_bytes() == before and len(calls) == 1
  # Rows that nobody asks for are nobody's concern.
  config.rows = "^d_c=4$"
  assert len(ablate.ablate(config)) == 1


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("rows", "[", "no regular expression"),
    ("rows", "no such row", "matches none of the rows, such as 'base'"),
    ("seeds", 0, "seeds=0"),
    ("dense", "shipped:nothing", "does not exist"),
    ("seconds", 1.0, "seconds=1.0 must be at least 3"),
  ],
)
def test_mistakes_are_one_sentence(config, calls, key, value, words) -> None:
  config[key] = value
  if key == "seconds":
    config.videos_per_prompt = 1
  with pytest.raises(ValueError, match=words):
    ablate.ablate(config)
  assert not calls


def test_a_student_goes_through_all_stages(config, calls, monkeypatch) -> None:
  config.rows, config.seeds = "^(dense|d_c=4), student$", 1
  train, seen = trainer_lib.Trainer.__call__, []

  def look(self, networks, *rest, **how):
    done = train(self, networks, *rest, **how)
    # What a stage hands on is no longer what it was given.
    marked = [nnx.clone(one.model) for one in done]
    seen.append((self.stage.title, networks[0], marked[0]))
    return [one._replace(model=m) for one, m in zip(done, marked, strict=True)]

  monkeypatch.setattr(trainer_lib.Trainer, "__call__", look)
  lines = {x["setting"]: x for x in ablate.ablate(config)}
  assert [title for title, *_ in seen] == [
    *("teacher forcing", "consistency", "distribution matching")
  ] * 2
  leaf = lambda model: jax.tree.leaves(model)[0]
  for _, (_, second, made), (_, third, _) in itertools.batched(seen, 3):
    assert {*second} == {"model", "teacher"}
    assert {*third} == {"model", "real", "critic"}
    assert leaf(third["model"]) is leaf(made)
    for role in ("real", "critic"):
      assert third[role].config.kind == "dense"
  (_, _, first), (_, second, _) = seen[:2]
  # The teacher is what stage 1 handed on, and the student begins as it.
  assert leaf(second["teacher"]) is leaf(second["model"]) is leaf(first)
  line = lines["d_c=4, student"]
  assert line["skipped"] == 3 and line["rank"] <= 4
  assert line["later_steps"] == {"consistency": 6, "distribution matching": 6}
  assert line["recipe"]["distribution matching: rollout.num_frames"] == 6
  assert line["recipe"]["consistency: model.d_c"] == 4
  text = "\n".join(page.tables([*lines.values(), *_as(lines, "base, student")]))
  assert "then 6 of consistency, then 6 of distribution matching" in text


def _as(lines: dict[str, Any], name: str) -> list[Any]:
  return [next(iter(lines.values())) | {"setting": name}]


def test_rows_on_films_need_films(config, calls, tmp_path, seed) -> None:
  config.rows, config.seeds = "^films, from scratch$", 1
  with pytest.raises(ValueError, match="matches none of the rows"):
    ablate.ablate(config)
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
  mp4.write_mp4(tmp_path / "a.mp4", frames, fps=8)
  config.films = str(tmp_path / "a.mp4")
  (line,) = ablate.ablate(config)
  # 24 frames hold 13 clips that begin before the held-out ones.
  assert line["data"] == "13 of a.mp4 (1 held out)"
  assert "identity" not in line
  assert line["recipe"]["films"] == ["a.mp4"]


def test_half_a_line_is_refused_by_its_number(config, calls) -> None:
  config.rows = "^base$"
  ablate.ablate(config)
  path = pathlib.Path(config.record)
  path.write_text(path.read_text()[:-20])
  with pytest.raises(ValueError, match="line 2 that"):
    ablate.ablate(config)


def test_videos_are_judged_and_rollouts_are_rows(
  config, calls, monkeypatch, tmp_path, seed
) -> None:
  rng = np.random.default_rng(seed)
  for name in ("latent", "student"):
    tiny_project.checkpoint(tmp_path / name, rng)
    config[name] = str(tmp_path / name)
  asked: list[Any] = []

  def roll_out(model, prompts, *, seed, num_frames, **how):
    asked.append((seed, how["sampler"].commit, how.get("cache_dtype")))
    return np.full((len(prompts), num_frames, 24, 24, 1), np.nan, np.float32)

  monkeypatch.setattr(outcomes, "roll_out", roll_out)
  monkeypatch.setattr(
    outcomes, "judged", lambda videos, *_: dict(identity=float(videos.max()))
  )
  monkeypatch.setattr(ablate.runner_lib, "_judge", lambda path: None)
  config.videos_per_prompt, config.seeds = 1, 1
  config.rows = "^base$|student, (4|commits|cache in int8)"
  lines = {x["setting"]: x for x in ablate.ablate(config)}
  assert asked == [
    (0, "clean", None),
    (0, "clean", ""),
    (0, "last_pass", ""),
    (0, "clean", "int8"),
  ]
  cheap = lines["student, commits the last denoising pass"]
  assert (cheap["passes"], lines["student, 4 steps"]["passes"]) == (4, 5)
  assert all(x["identity"] == 0 for x in lines.values())
  text = "\n".join(page.tables([*lines.values()]))
  assert "## Context pass, student" in text and "one training seed" in text


def test_videos_of_all_ways_to_commit_are_pixels(
  config, tmp_path, seed
) -> None:
  model = tiny_project.video("latent", np.random.default_rng(seed))
  prompts = prompts_lib.held_out_prompts()[:2]
  for row in ("student, commits the last denoising pass", "student, 2 steps"):
    how = ablate.plan.ROLLOUTS[row]
    videos = outcomes.roll_out(
      model,
      prompts,
      seed=0,
      num_frames=4,
      sampler=outcomes.sampler_of(how, model),
      window=model.config.window,
      cache_dtype=how.cache_dtype,
    )
    assert videos.shape == (2, 4, 24, 24, 1)
    assert np.isfinite(videos).all() and 0 <= videos.min() <= videos.max() <= 1
