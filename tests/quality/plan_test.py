"""A plan has every video once, whoever makes it."""

import pytest

from videomla_jax.quality import plan
from videomla_jax.quality import prompt_lists


def _videos(
  seed: int, *prompts: str, samples: int = 5
) -> tuple[plan.Video, ...]:
  return plan.videos_of(
    prompt_lists.of_texts(prompts),
    samples=samples,
    still_samples=25,
    seed=seed,
  )


def test_five_videos_of_each_prompt_have_vbenchs_names(seed: int) -> None:
  files = [x.file for x in _videos(seed, "a cat", "a dog")]
  assert files == [f"a {x}-{i}.mp4" for x in ("cat", "dog") for i in range(5)]


def test_prompts_for_flicker_have_more_videos(seed: int) -> None:
  entry = prompt_lists.Entry(
    prompt="a wall", name="a wall", text="a wall", dimensions=(plan.STILL,)
  )
  prompts = prompt_lists.PromptList(entries=(entry,), standard=True)
  videos = plan.videos_of(prompts, samples=5, still_samples=25, seed=seed)
  assert len(videos) == 25


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shares_are_disjoint_and_together_all(seed: int, count: int) -> None:
  videos = _videos(seed, *"abcde")
  parts = [
    plan.Share(number=i + 1, count=count).of(videos) for i in range(count)
  ]
  files = [x.file for part in parts for x in part]
  assert sorted(files) == sorted(x.file for x in videos)
  assert len({*files}) == len(files)
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_seed_depends_on_prompt_index_and_run_alone(seed: int) -> None:
  alone = _videos(seed, "a dog")
  beside = _videos(seed, "a cat", "a dog", samples=9)
  seeds = {x.file: x.seed for x in beside}
  assert all(seeds[x.file] == x.seed for x in alone)
  assert len({*seeds.values()}) == len(seeds)
  other = _videos(seed + 1, "a dog")
  assert {x.seed for x in other}.isdisjoint(x.seed for x in alone)


@pytest.mark.parametrize(
  "text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3"]
)
def test_a_share_that_is_none_is_refused(text: str) -> None:
  with pytest.raises(ValueError, match=f"share='{text}' must be a part"):
    plan.Share.parse(text)


def test_a_share_is_read() -> None:
  assert plan.Share.parse("3/8") == plan.Share(number=3, count=8)


def test_names_split_as_vbench_splits_them() -> None:
  assert plan.parts_of("a 1990-style car-12") == ("a 1990-style car", 12)
  assert plan.parts_of("route-66-0") == ("route-66", 0)
  assert plan.parts_of("a dog") == ("a dog", None)


def test_a_plan_that_fills_the_memory_is_refused(seed: int) -> None:
  prompts = [str(i) for i in range(101)]
  with pytest.raises(
    ValueError, match="of 101 prompts are 1010000 videos; ask for at most"
  ):
    _videos(seed, *prompts, samples=10_000)
