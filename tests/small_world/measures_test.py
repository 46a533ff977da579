"""Tests of the long-rollout measures: right on real clips, not on broken."""

import numpy as np
import pytest

from videomla_jax.small_world import measures
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.small_world import world

PROMPTS = prompts_lib.all_prompts()
NUM_FRAMES = 96
EXACT = ("direction", "speed", "speed_ratio", "steps", "on_path", "handwriting")


@pytest.fixture
def real(seed):
  return measures.real_videos(PROMPTS, num_frames=NUM_FRAMES, seed=seed)


def test_real_clips_pass_every_measure(judge_and_report, real):
  judge, report = judge_and_report
  values = _means(real, judge)
  for window in ("all", "first", "last", "quarter1", "quarter4"):
    for name in EXACT:
      assert values[f"{name}/{window}"] == pytest.approx(1, abs=1e-4), name
    for name in ("residual_px", "direction_error", "ink_flicker"):
      assert values[f"{name}/{window}"] == pytest.approx(0, abs=1e-3), name
    # One clip is one handwriting: sixty draws of the judge's accuracy.
    assert values[f"identity/{window}"] > report.identity_clean - 0.16
    assert values[f"count/{window}"] > report.whole_clean - 0.1
    assert values[f"consistency/{window}"] > 0.97
    assert values[f"memory/{window}"] > 0.97
  assert values["ink_drift"] == pytest.approx(1, abs=1e-4)
  assert values["speed_px/all"] == pytest.approx(6, abs=1e-4)


def test_slight_noise_and_contrast_change_no_verdict(judge, real, seed):
  noise = np.random.default_rng(seed).normal(0, 0.04, real.shape)
  noisy = np.clip(0.9 * real + noise, 0, 1).astype(np.float32)
  values = _means(noisy, judge)
  for name in ("direction", "speed", "steps", "on_path"):
    assert values[f"{name}/all"] > 0.99
  assert values["residual_px/all"] < 0.3
  assert values["handwriting/all"] > 0.95
  assert values["identity/all"] > _means(real, judge)["identity/all"] - 0.1


def test_shuffled_frames_break_steps_and_path(judge, real, seed):
  order = np.random.default_rng(seed).permutation(NUM_FRAMES)
  values = _means(real[:, order], judge)
  assert values["steps/all"] < 0.7
  assert values["on_path/all"] < 0.6
  assert values["residual_px/all"] > 2.5
  assert values["residual_px/quarter2"] > 2


def test_wrong_direction_is_disobeyed(judge, real):
  values = measures.measure(real.swapaxes(2, 3), PROMPTS, judge)
  straight = np.array([p.direction != "diagonal" for p in PROMPTS])
  assert (values["direction/all"] == ~straight).all()
  assert (values["steps/all"] == ~straight).all()
  assert (values["direction_error/first"][straight] > 0.99).all()
  np.testing.assert_allclose(values["on_path/all"], 1)  # lawful all the same


def test_wrong_speed_is_disobeyed(judge, real):
  other = {"slow": "fast", "fast": "slow"}
  prompts = [
    prompts_lib.Prompt(
      digit=p.digit, direction=p.direction, speed=other[p.speed]
    )
    for p in PROMPTS
  ]
  values = measures.measure(real, prompts, judge)
  assert (values["speed/all"] == 0).all()
  assert (values["steps/all"] == 0).all()
  assert (values["direction/all"] == 1).all()
  ratio = np.where([p.speed == "fast" for p in prompts], 0.5, 2.0)
  np.testing.assert_allclose(values["speed_ratio/all"], ratio, atol=1e-4)


def test_teleporting_digits_follow_no_path(judge, seed):
  rng = np.random.default_rng(seed)
  positions = 4 * rng.integers(0, 5, (len(PROMPTS), NUM_FRAMES, 2))
  values = _means(_render(rng, positions), judge)
  assert values["on_path/all"] < 0.35
  assert values["steps/all"] < 0.35
  assert values["residual_px/all"] > 4


def test_one_jump_is_seen_in_its_quarter_only(judge, real):
  videos = real.copy()
  first, second = slice(0, 36), slice(36, NUM_FRAMES)
  videos[:, second] = real[:, second][:, ::-1]
  values = measures.measure(videos, PROMPTS, judge)
  np.testing.assert_allclose(values["on_path/quarter1"], 1)
  np.testing.assert_allclose(values["on_path/quarter3"], 1)
  assert values["on_path/quarter2"].mean() < 0.95
  assert first.stop == second.start


def test_frozen_video_does_not_move(judge, real):
  values = _means(np.repeat(real[:, :1], NUM_FRAMES, axis=1), judge)
  for name in ("direction", "speed", "steps", "dynamic_px"):
    assert values[f"{name}/all"] == 0
  assert values["direction_error/all"] == 1
  assert values["residual_px/all"] > 2
  assert values["on_path/all"] < 0.7


def test_doubled_digits_are_not_one(judge, real):
  doubled = np.maximum(real, np.roll(real, (4, 4), axis=(2, 3)))
  values = _means(doubled, judge)
  assert values["count/all"] < 0.45
  assert values["identity_whole/all"] < 0.45


def test_half_digits_are_not_whole(judge, seed):
  rng = np.random.default_rng(seed)
  positions = 4 * rng.integers(0, 5, (len(PROMPTS), NUM_FRAMES, 2))
  values = _means(_render(rng, positions, rows=4), judge)
  assert values["count/all"] < 0.45


def test_switched_identity_shows_in_the_last_window(judge, real):
  videos = real.copy()
  half = NUM_FRAMES // 2
  videos[:, half:] = np.roll(real, 30, axis=0)[:, half:]  # the digit + 5
  values = _means(videos, judge)
  assert values["identity/first"] > 0.7
  assert values["identity/last"] < 0.25
  assert values["memory/first"] > 0.95
  assert values["memory/last"] < 0.25
  assert values["handwriting/last"] < 0.85
  assert values["consistency/first"] > 0.95


def test_flickering_identity_breaks_consistency(judge, real):
  videos = real.copy()
  videos[:, ::2] = np.roll(real, 30, axis=0)[:, ::2]
  values = _means(videos, judge)
  assert values["consistency/all"] < 0.35
  assert 0.3 < values["identity/all"] < 0.7


def test_fading_ink_shows_as_drift(judge, real):
  fade = np.linspace(1, 0.1, NUM_FRAMES, dtype=np.float32)
  values = _means(real * fade[:, None, None, None], judge)
  assert values["ink_drift"] < 0.5
  assert values["ink/quarter4"] < 0.3 * values["ink/quarter1"]
  assert values["count/quarter4"] < 0.4
  assert values["ink_flicker/all"] > 0.01


def test_blank_videos_are_finite_and_bad(judge):
  values = _means(np.zeros((60, 24, 24, 24, 1), np.float32), judge)
  assert np.isfinite(list(values.values())).all()
  assert values["residual_px/all"] == 16
  for name in ("count", "direction", "speed", "steps", "on_path"):
    assert values[f"{name}/all"] == 0


@pytest.mark.parametrize(("num_frames", "length"), [(240, 40), (30, 30)])
def test_windows_cover_the_video(num_frames, length):
  windows = measures.time_windows(num_frames, 4)
  frames = np.arange(num_frames)
  assert len(frames[windows["first"]]) == length
  assert frames[windows["last"]][-1] == num_frames - 1
  quarters = [frames[windows[f"quarter{i}"]] for i in (1, 2, 3, 4)]
  np.testing.assert_array_equal(np.concatenate(quarters), frames)


def test_summary_has_mean_deviation_error_and_count(seed):
  values = np.random.default_rng(seed).normal(size=32)
  summary = measures.summarise({"a": values, "one": values[:1]})
  assert summary["a"]["mean"] == pytest.approx(values.mean())
  assert summary["a"]["std"] == pytest.approx(values.std(ddof=1))
  assert summary["a"]["sem"] == pytest.approx(values.std(ddof=1) / 32**0.5)
  assert summary["a"]["n"] == 32
  assert summary["one"]["std"] == 0


def test_table_shows_rows_side_by_side(judge, real):
  summary = measures.summarise(measures.measure(real, PROMPTS, judge))
  text = measures.table({"real": summary, "model": summary})
  lines = text.splitlines()
  assert "real (n=60)" in lines[0]
  assert len({line.count("|") for line in lines}) == 1
  assert len(lines) == 2 + 2 * len(measures.MEASURES) - 1
  assert any("| speed | first | 1.000 ± 0.000 |" in line for line in lines)


@pytest.mark.parametrize(
  ("shape", "fill", "num_prompts", "message"),
  [
    ((2, 24), 0.0, 3, "pass as many prompts as videos"),
    ((2, 8), 0.0, 2, "generate 12 or more"),
    ((2, 24), 1.5, 2, "clip them or divide by 255"),
    ((2, 24), np.nan, 2, "clip them or divide by 255"),
  ],
)
def test_bad_videos_are_refused(judge, shape, fill, num_prompts, message):
  videos = np.full((*shape, 24, 24, 1), fill, np.float32)
  with pytest.raises(ValueError, match=message):
    measures.measure(videos, PROMPTS[:num_prompts], judge)


def _means(videos, judge) -> dict[str, float]:
  values = measures.measure(videos, PROMPTS, judge)
  return {name: value.mean() for name, value in values.items()}


def _render(rng, positions, *, rows=8):
  """Draws a held-out digit of each prompt, its upper `rows` rows only."""
  images, labels = world.load_sprites("test")
  videos = []
  for prompt, path in zip(PROMPTS, positions):
    sprite = images[rng.choice(np.flatnonzero(labels == prompt.digit))].copy()
    sprite[rows:] = 0
    videos.append(world.render(sprite, path.astype(np.int32)))
  return np.stack(videos).astype(np.float32) / 255
