"""Tests of what stands between a request and its pixels, without a rollout."""

import pathlib
from typing import Any

import numpy as np
import pytest

from tests import tiny_project
from tests.media import films
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import mp4
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.generation import sources

_PROMPTS = ("slow 1 vertical", "fast 2 diagonal")


@pytest.fixture
def source(seed: int, monkeypatch: pytest.MonkeyPatch) -> sources.SmallSource:
  tiny_project.shrink(monkeypatch)
  model = tiny_project.video("dense", np.random.default_rng(seed))
  return sources.SmallSource(model=model)


def _request(**changes: Any) -> request_lib.Request:
  networks = networks_lib.Networks(checkpoint="somewhere")
  values = dict(networks=networks, prompts=_PROMPTS, seconds=2) | changes
  return request_lib.Request(**values)


def test_first_frames_are_the_given_ones_of_every_video(
  source: sources.SmallSource, tmp_path: pathlib.Path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  clip = rng.integers(0, 256, (5, 24, 24, 1), dtype=np.uint8)
  mp4.write_mp4(tmp_path / "a.mp4", clip, fps=4)
  pipeline = source.load()
  job = job_lib.prepare(_request(clip=str(tmp_path / "a.mp4")), source)
  first = job.first_frames(pipeline)
  assert (job.num_frames, first.shape) == (8, (2, 5, 24, 24, 1))
  for video in first:
    np.testing.assert_array_equal(video, job.given)
  without = job_lib.prepare(_request(), source)
  assert without.first_frames(pipeline).shape == (2, 0, 24, 24, 1)


@pytest.mark.parametrize("count", [8, 9, 40])
def test_new_frames_follow_the_end_of_a_clip_of_any_length(
  source: sources.SmallSource, tmp_path: pathlib.Path, count: int
) -> None:
  path = films.write(tmp_path / "a.mp4", films.numbered(count), rate=4)
  pipeline = source.load()
  job = job_lib.prepare(_request(clip=str(path)), source)
  kept = job.first_frames(pipeline)[0]
  # Of eight frames three are a new chunk; the window sees four of the others.
  assert len(kept) == 4 and job.num_frames == 8
  whole = job_lib.prepare(_request(clip=str(path), seconds=20), source)
  np.testing.assert_array_equal(kept, whole.first_frames(pipeline)[0][-4:])
  said = job.describe_given(pipeline)[-1]
  assert "the last 4 frames of the clip" in said and "by 4 new ones" in said
  assert "the last 40 of 40" in "".join(whole.describe_given(pipeline)) or (
    count < 40
  )


def test_an_endless_video_continues_a_clip_of_any_length(
  source: sources.SmallSource, tmp_path: pathlib.Path
) -> None:
  path = films.write(tmp_path / "a.mp4", films.numbered(40), rate=4)
  job = job_lib.prepare(_request(clip=str(path)), source, endless=True)
  assert job.first_frames(source.load()).shape[1] == 40


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_a_video_of_nothing_but_what_is_given_is_refused(
  source: sources.SmallSource, tmp_path: pathlib.Path, kind: str
) -> None:
  path = films.write(
    tmp_path / "a.gif", films.numbered(4), codec="gif", pixels="rgb8"
  )
  with pytest.raises(ValueError, match="seconds=0.25 is one frame"):
    job_lib.prepare(_request(seconds=0.25, **{kind: str(path)}), source)


def test_guidance_doubles_the_rows_of_text_and_cache(
  source: sources.SmallSource,
) -> None:
  pipeline, needs = source.load(), {}
  for guidance in (0.0, 2.0):
    sampler = sampler_choice.SamplerChoice(guidance=guidance)
    job = job_lib.prepare(_request(sampler=sampler), source)
    assert len(job.embed(_PROMPTS)) == (4 if guidance else 2)
    needs[guidance] = job.needs(pipeline)
  assert needs[2.0].cache_bytes == 2 * needs[0.0].cache_bytes > 0
  assert needs[2.0].parameters == needs[0.0].parameters


def test_clip_made_at_once_needs_no_cache_and_sees_every_frame(
  source: sources.SmallSource,
) -> None:
  job = job_lib.prepare(_request(mode="bidirectional"), source)
  needs = job.needs(source.load())
  assert (needs.cache_bytes, needs.visible_frames) == (0, 8)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(prompts=("slow cat",)), "'cat'"),
    (dict(seconds=0.01), "less than one frame"),
    (
      dict(sampler=sampler_choice.SamplerChoice(kind="ddim")),
      "'euler', 'unipc'",
    ),
    (dict(image="missing.png"), "give a PNG, JPEG"),
  ],
)
def test_what_the_model_cannot_take_is_refused(
  source: sources.SmallSource, changes: dict[str, Any], said: str
) -> None:
  with pytest.raises(ValueError, match=said):
    job_lib.prepare(_request(**changes), source)
