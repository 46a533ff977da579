import numpy as np

from videomla_jax.small_world import motion
from videomla_jax.small_world import prompts
from videomla_jax.small_world import world

PROMPTS = prompts.all_prompts()


def test_path_fit_ignores_the_offset_of_the_handwriting(seed):
  rng = np.random.default_rng(seed)
  for prompt in PROMPTS[:6]:
    clip = world.sample_clip(rng, prompt, "test", 40)
    shift = rng.uniform(-1.4, 1.4, 2)
    track = motion.Track((clip.positions + shift)[None], np.ones((1, 40), bool))
    values = motion.path_measures(track)
    np.testing.assert_allclose(values["residual_px"], 0, atol=1e-6)
    np.testing.assert_allclose(values["on_path"], 1)


def test_invisible_frames_count_as_off_path(seed):
  rng = np.random.default_rng(seed)
  clip = world.sample_clip(rng, PROMPTS[0], "test", 40)
  visible = np.ones((1, 40), bool)
  visible[0, 10:20] = False
  track = motion.Track(clip.positions[None].astype(float), visible)
  values = motion.path_measures(track)
  np.testing.assert_allclose(values["on_path"], 0.75)
  np.testing.assert_allclose(values["residual_px"], 8)  # sqrt(16² / 4)
