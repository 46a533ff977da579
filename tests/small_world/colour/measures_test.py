"""Tests of the measures: real clips, planted faults, damaged clips, refusals."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import damage
from videomla_jax.small_world.colour import measures
from videomla_jax.small_world.colour import palette

# By name of a measure: its value on real clips, and how far a real clip may be
# from it. Shares are exact but for one frame in a hundred; positions are those
# of docs/colour_world.md.
REAL = {
  "count": (1.0, 0.01),
  "colour": (1.0, 0.01),
  # The small reader of these tests misreads a frame in fifty.
  "identity": (1.0, 0.05),
  "consistency": (1.0, 0.05),
  "direction": (1.0, 0.0),
  "speed": (1.0, 0.0),
  "speed_ratio": (1.0, 0.02),
  "residual_px": (0.0, 0.15),
  "jumps": (0.0, 0.0),
  "jitter_px": (0.0, 0.15),
  "bounce": (1.0, 0.0),
  "background": (1.0, 0.0),
  "background_error": (0.0, 0.5),
  "wall": (1.0, 0.0),
  "wall_px": (0.0, 0.5),
  "memory": (1.0, 0.0),
  "memory_out": (1.0, 0.0),
  "memory_colour": (1.0, 0.0),
  "memory_same": (1.0, 0.0),
  "memory_identity": (1.0, 0.0),
  "memory_place": (1.0, 0.0),
  "memory_px": (0.0, 1.9),
}


@pytest.fixture(scope="module")
def drawn():
  return faulty.scenes()


def test_drawing_of_these_tests_is_that_of_the_world(drawn):
  scenes, video, _ = drawn
  for scene, real in zip(scenes, video):
    np.testing.assert_array_equal(faulty.draw(scene), real)


def test_real_clips_have_no_faults(drawn, reader):
  _, video, truth = drawn
  found = measures.measure(video, faulty.PROMPTS, reader)
  assert {key.split("/")[0] for key in found} >= {*measures.MEASURES}
  for i, name in enumerate(faulty.NAMES):
    assert not _faults(found, i), name
  assert truth.hidden[2:].any(1).any(1).all()  # else memory is not tested
  assert (found["memory_events/all"] == [0, 0, 1, 1]).all()
  assert np.isnan(found["memory/all"][:2]).all()
  assert np.isnan(found["wall_px/all"][:2]).all()


@pytest.mark.parametrize("psnr", [34, 28])
def test_damaged_clips_have_no_faults(drawn, reader, psnr, seed):
  _, video, _ = drawn
  rng = np.random.default_rng(seed)
  damaged = damage.damage(rng, video, psnr=psnr)
  assert -10 * np.log10(np.square(damaged - video / 255).mean()) == (
    pytest.approx(psnr, abs=0.5)  # clipping takes a part of the noise away
  )
  found = measures.measure(damaged, faulty.PROMPTS, reader)
  # Rows of the background are means over 20 to 60 pixels of noise.
  allowed = {"background_error": 3.0, "residual_px": 0.3, "jitter_px": 0.3}
  for i, name in enumerate(faulty.NAMES):
    assert not _faults(found, i, allowed), name


def _colour(scene: faulty.Scene) -> None:
  scene.things[0].colour[:] = faulty.colour_of("orange")


def _digit(scene: faulty.Scene) -> None:
  scene.things[0].sprite[:] = faulty.sprite_of(8)


def _missing(scene: faulty.Scene) -> None:
  scene.things[1].there[:] = False


def _third(scene: faulty.Scene) -> None:
  _add(scene, "white")


def _twice(scene: faulty.Scene) -> None:
  _add(scene, "red")


def _add(scene: faulty.Scene, colour: str) -> None:
  extra = faulty.change(scene).things[0]
  extra.colour[:] = faulty.colour_of(colour)
  extra.sprite[:] = faulty.sprite_of(1)
  # It stays away from the other, a third of a frame and more.
  away = (scene.things[0].place + 32) % 64
  extra.place[:] = np.clip(away, 12, 52)
  scene.things.append(extra)


def _teleport(scene: faulty.Scene) -> None:
  thing = scene.things[0]
  path = thing.place.copy()
  thing.place[70:] = path[40 : 40 + len(path) - 70]


def _jitter(scene: faulty.Scene) -> None:
  rng = np.random.default_rng(0)
  scene.things[0].place[:] += rng.normal(0, 0.3, scene.things[0].place.shape)


def _faster(scene: faulty.Scene) -> None:
  thing = scene.things[0]
  thing.place[:] = faulty.bounced(thing, 1.3 * thing.velocity)


def _reversed(scene: faulty.Scene) -> None:
  thing = scene.things[0]
  thing.place[:] = faulty.bounced(thing, -thing.velocity)


def _leaves(scene: faulty.Scene) -> None:
  thing = scene.things[0]
  time = np.arange(faulty.NUM_FRAMES)[:, None]
  thing.place[:] = thing.place[0] + thing.velocity / 16 * time


def _ground(scene: faulty.Scene) -> None:
  table = palette.background_table(64)
  scene.ground[:] = table[0, 3]  # plain brown


def _no_wall(scene: faulty.Scene) -> None:
  scene.wall[:] = 0


def _other_wall(scene: faulty.Scene) -> None:
  scene.wall[:] = 64 - scene.wall[::-1].copy()


def _after(scene: faulty.Scene) -> slice:
  """Returns the frames after a digit was behind the wall for the first time."""
  return slice(int(np.flatnonzero(scene.hidden[:, 0])[0]) + 3, None)


def _memory_digit(scene: faulty.Scene) -> None:
  scene.things[0].sprite[_after(scene)] = faulty.sprite_of(6)


def _memory_colour(scene: faulty.Scene) -> None:
  scene.things[0].colour[_after(scene)] = faulty.colour_of("orange")


def _memory_place(scene: faulty.Scene) -> None:
  thing, first = scene.things[0], _after(scene).start
  late = 16  # frames, by which it is 10 px away or has bounced
  thing.place[first:, 1] = thing.place[first - late : -late, 1].copy()


def _memory_out(scene: faulty.Scene) -> None:
  scene.things[0].there[_after(scene)] = False


# Of each fault: the clip, how it is planted, the measures that have to fall,
# and those that may, with the reason.
FAULTS: dict[str, tuple[str, Callable[[faulty.Scene], None], str, str]] = {
  "colour": ("one", _colour, "colour", ""),
  "digit": ("one", _digit, "identity", ""),
  "missing": ("two", _missing, "count", ""),
  "third": ("one", _third, "count", ""),
  # Which of two red digits is meant cannot be told.
  "twice": (
    *("one", _twice, "count"),
    "identity consistency speed speed_ratio residual_px jumps bounce",
  ),
  "teleport": ("one", _teleport, "jumps residual_px", ""),
  # Noise of 0.3 px hides when a digit turns.
  "jitter": ("one", _jitter, "jitter_px residual_px", "bounce"),
  "faster": ("one", _faster, "speed speed_ratio", ""),
  "reversed": ("one", _reversed, "direction", ""),
  # What is left of a digit at the edge has another centroid and shape.
  "leaves": (
    *("one", _leaves, "bounce count"),
    "residual_px identity consistency jitter_px speed",
  ),
  "background": ("one", _ground, "background background_error", ""),
  # Nothing is hidden then, so that no memory is asked for.
  "no_wall": ("left", _no_wall, "wall", ""),
  # A digit bounces early then, and is hidden where it should not be.
  "other_wall": ("left", _other_wall, "wall", "count memory memory_out"),
  # It stays wrong, which identity sees, too.
  "memory_digit": (
    *("middle", _memory_digit, "memory memory_same memory_identity identity"),
    "consistency",
  ),
  "memory_colour": (
    *("middle", _memory_colour, "memory memory_colour colour"),
    "",
  ),
  "memory_place": (
    *("middle", _memory_place, "memory memory_place memory_px residual_px"),
    "bounce jumps",
  ),
  "memory_out": ("middle", _memory_out, "memory memory_out count", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_measures_see_their_own_faults_and_no_others(drawn, reader, fault):
  name, plant, seen, allowed = FAULTS[fault]
  number = faulty.NAMES.index(name)
  scene = faulty.change(drawn[0][number])
  plant(scene)
  video = faulty.draw(scene)[None]
  found = measures.measure(video, [faulty.PROMPTS[number]], reader)
  print({k: v[0] for k, v in found.items() if k.endswith("/all")})
  faults = _faults(found, 0)
  assert {*seen.split()} <= faults
  assert faults <= {*seen.split(), *allowed.split()}


@pytest.mark.parametrize("whole", [False, True])
def test_fractions_and_whole_numbers_are_measured_alike(drawn, reader, whole):
  video = drawn[1][:1, :16]
  other = video if whole else video.astype(np.float32) / 255
  first = measures.measure(video, faulty.PROMPTS[:1], reader)
  second = measures.measure(other, faulty.PROMPTS[:1], reader)
  for key, value in first.items():
    np.testing.assert_allclose(value, second[key], atol=1e-3, err_msg=key)


def test_measure_refuses_what_it_cannot_judge(reader):
  video = np.zeros((1, 16, 64, 64, 3), np.uint8)
  with pytest.raises(ValueError, match="1 videos for 2 prompts"):
    measures.measure(video, faulty.PROMPTS[:2], reader)
  with pytest.raises(ValueError, match="15 frames"):
    measures.measure(video[:, :15], faulty.PROMPTS[:1], reader)
  with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
    bright = np.full_like(video, 2, np.float32)
    measures.measure(bright, faulty.PROMPTS[:1], reader)


def test_black_videos_are_judged(reader):
  video = np.zeros((1, 16, 64, 64, 3), np.uint8)
  found = measures.measure(video, faulty.PROMPTS[:1], reader)
  assert found["count/all"][0] == 0
  assert np.isnan(found["identity/all"][0])
  assert found["background/all"][0] == 0


def _faults(
  found: dict[str, np.ndarray],
  index: int,
  allowed: dict[str, float] | None = None,
) -> set[str]:
  """Returns the measures that no real clip would have."""
  faults = set()
  for name, (right, tolerance) in REAL.items():
    key = name if name in measures.AT_START else f"{name}/all"
    value = found[key][index]
    tolerance = (allowed or {}).get(name, tolerance)
    if abs(value - right) > tolerance:  # NaN is no fault
      faults.add(name)
  return faults
