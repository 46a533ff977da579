"""Measures of long videos of the small world, whose truth is known.

Every measure is taken in windows (the first and the last ten seconds, four
quarters, the whole video), so that drift shows, and is calibrated on real
clips: `real_videos` gives the row that belongs beside every model's.
`MEASURES` says what each one is.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from jaxtyping import Float, Int, Num
import numpy as np

from videomla_jax.small_world import judge_frames
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import motion
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.small_world import world

MEASURES = {
  "identity": "share of frames that show the prompt's digit",
  "identity_whole": "the same, and as exactly one whole digit",
  "consistency": "share of consecutive frames of equal identity",
  "memory": "share of frames that show the digit of the first ten seconds",
  "handwriting": "likeness to the mean digit of the first ten seconds, 0..1",
  "count": "share of frames with exactly one whole digit",
  "direction": "share of videos that move along the prompt's axes",
  "direction_error": "vertical share of the motion against the prompt, 0..1",
  "speed": "share of videos within 2 px a frame of the prompt's speed",
  "speed_ratio": "speed / the prompt's speed",
  "speed_px": "px a frame along each moving axis",
  "steps": "share of frame pairs that move as the prompt says, within 2 px",
  "residual_px": "RMS distance from the best constant-velocity bounce, px",
  "on_path": "share of frames within 2 px of that path",
  "dynamic_px": "displacement of the centroid, px a frame",
  "ink": "sum of the frame",
  "ink_flicker": "change of ink between frames / ink",
  "ink_drift": "ink of the last / of the first ten seconds",
}

_WORLD = world.World()
_SECONDS = 10  # length of the first and of the last window
_MIN_FRAMES = 12  # a quarter shorter than three frames fits any motion


def measure(
  videos: Float[np.ndarray, "V T 24 24 1"],
  prompts: Sequence[prompts_lib.Prompt],
  judge: judge_network.Judge,
  fps: int | float = _WORLD.fps,
) -> dict[str, Float[np.ndarray, "V"]]:
  """Takes every measure of every video in every window.

  Args:
    videos: Grey videos in [0, 1].
    prompts: What each video should show.
    judge: A trained judge.
    fps: Frames per second; sets the first and the last ten seconds.

  Returns:
    One value for each video by "measure/window", windows "all", "first",
    "last", "quarter1" to "quarter4"; "ink_drift" has no window.

  Raises:
    ValueError: If counts differ, pixels leave [0, 1] or a video is too short.
  """
  require_videos(
    videos, prompts, fewest=_MIN_FRAMES, why="a quarter needs three"
  )
  judged = judge_network.judge_frames(judge, videos)
  track = motion.track_ink(videos)
  windows = time_windows(videos.shape[1], fps)
  first = windows["first"]
  handwriting = _handwriting(videos, track, first)
  home = _mode(judged.identity[:, first])
  measures: dict[str, np.ndarray] = {}
  for name, window in windows.items():
    window_judged = judge_network.Judgement(
      *(array[:, window] for array in judged)
    )
    values = identity_measures(window_judged, prompts, home=home)
    values["handwriting"] = handwriting[:, window].mean(1)
    window_track = motion.Track(*(array[:, window] for array in track))
    values |= motion.motion_measures(window_track, prompts)
    values |= motion.path_measures(window_track)
    values |= ink_measures(videos[:, window])
    measures |= {f"{key}/{name}": value for key, value in values.items()}
  # A video that begins blank must not divide by zero.
  start = np.maximum(measures["ink/first"], motion.MIN_INK)
  measures["ink_drift"] = measures["ink/last"] / start
  return measures


def summarise(
  measures: Mapping[str, Float[np.ndarray, "V"]],
) -> dict[str, dict[str, float]]:
  """Returns mean, standard deviation, standard error and n of each measure."""
  summary = {}
  for name, values in measures.items():
    n = len(values)
    # The videos are a sample, so n - 1 divides the squares; one video has no
    # spread.
    std = float(np.std(values, ddof=1)) if n > 1 else 0.0
    mean = float(np.mean(values))
    summary[name] = dict(mean=mean, std=std, sem=std / n**0.5, n=n)
  return summary


def table(
  rows: Mapping[str, Mapping[str, Mapping[str, float]]],
  *,
  windows: Sequence[str] = ("first", "last"),
) -> str:
  """Writes summaries side by side as Markdown, mean ± standard deviation.

  Args:
    rows: What `summarise` returned, by the name of what was measured.
    windows: Windows to show.

  Returns:
    One line for each measure and window, one column for each row.
  """
  counts = [int(next(iter(row.values()))["n"]) for row in rows.values()]
  heads = [f"{name} (n={n})" for name, n in zip(rows, counts)]
  lines = [
    " | ".join(["| measure", "window", *heads, "meaning |"]),
    "|---" * (len(rows) + 3) + "|",
  ]
  for name, meaning in MEASURES.items():
    for window in windows if name != "ink_drift" else ("",):
      key = f"{name}/{window}" if window else name
      cells = [
        f"{s[key]['mean']:.3f} ± {s[key]['std']:.3f}" for s in rows.values()
      ]
      lines.append(" | ".join([f"| {name}", window, *cells, f"{meaning} |"]))
  return "\n".join(lines)


def real_videos(
  prompts: Sequence[prompts_lib.Prompt], *, num_frames: int, seed: int
) -> Float[np.ndarray, "V T 24 24 1"]:
  """Draws one true clip of held-out handwriting for each prompt, in [0, 1]."""
  rng = np.random.default_rng(seed)
  clips = [
    world.sample_clip(rng, prompt, "test", num_frames).video
    for prompt in prompts
  ]
  return np.stack(clips).astype(np.float32) / 255


def time_windows(num_frames: int, fps: int | float) -> dict[str, slice]:
  """Returns the windows of a video; short videos have overlapping ones."""
  length = min(num_frames, round(_SECONDS * fps))
  edges = np.linspace(0, num_frames, 5).round().astype(int)
  quarters = {
    f"quarter{i + 1}": slice(int(edges[i]), int(edges[i + 1])) for i in range(4)
  }
  return {
    "all": slice(0, num_frames),
    "first": slice(0, length),
    "last": slice(num_frames - length, num_frames),
    **quarters,
  }


def identity_measures(
  judged: judge_network.Judgement,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  home: Int[np.ndarray, "V"],
) -> dict[str, Float[np.ndarray, "V"]]:
  """Measures which digit is shown, and whether it is one whole digit.

  Args:
    judged: The judge's words about one window.
    prompts: What each video should show.
    home: Commonest digit of each video's first ten seconds.

  Returns:
    identity, identity_whole, consistency, memory, count.
  """
  wanted = np.array([prompt.digit for prompt in prompts])
  right = judged.identity == wanted[:, None]
  whole = judged.content == judge_frames.WHOLE
  same = judged.identity[:, 1:] == judged.identity[:, :-1]
  return {
    "identity": right.mean(1),
    "identity_whole": (right & whole).mean(1),
    "consistency": same.mean(1),
    "memory": (judged.identity == home[:, None]).mean(1),
    "count": whole.mean(1),
  }


def ink_measures(
  videos: Float[np.ndarray, "V T 24 24 1"],
) -> dict[str, Float[np.ndarray, "V"]]:
  """Measures how much is drawn in one window: ink, ink_flicker."""
  ink = videos.sum((2, 3, 4), dtype=np.float64)
  mean = ink.mean(1)
  change = np.abs(np.diff(ink, axis=1)).mean(1)
  return {"ink": mean, "ink_flicker": change / np.maximum(mean, motion.MIN_INK)}


def _handwriting(
  videos: Float[np.ndarray, "V T 24 24 1"], track: motion.Track, first: slice
) -> Float[np.ndarray, "V T"]:
  """Returns the cosine of each frame's digit with the mean early digit."""
  margin = _WORLD.sprite_size // 2  # a centroid can be off its box at a wall
  pad = ((0, 0), (0, 0), (margin, margin), (margin, margin))
  frames = np.pad(videos[..., 0], pad)
  # Rounding down a shifted position keeps the phase of a moving real digit.
  corner = np.floor(track.position + 0.5 + 1e-4).astype(int) + margin
  offset = np.arange(_WORLD.sprite_size)
  row = (corner[..., 1:] + offset)[..., :, None]
  column = (corner[..., :1] + offset)[..., None, :]
  v, t = np.indices(track.visible.shape)[..., None, None]
  digits = frames[v, t, row, column].reshape(*track.visible.shape, -1)
  early = digits[:, first].mean(1, keepdims=True)
  norms = np.linalg.norm(digits, axis=-1) * np.linalg.norm(early, axis=-1)
  return (digits * early).sum(-1) / np.maximum(norms, 1e-6)


def _mode(identity: Int[np.ndarray, "V T"]) -> Int[np.ndarray, "V"]:
  """Returns the commonest digit of each video."""
  return (identity[..., None] == np.arange(10)).sum(1).argmax(1)


def require_videos(
  videos: Num[np.ndarray, "V T h w c"],
  prompts: Sequence[object],
  *,
  fewest: int,
  why: str,
) -> None:
  """Refuses videos that cannot be measured.

  Args:
    videos: Pixels; fractions must be in [0, 1].
    prompts: What each should show.
    fewest: Frames of the shortest video that can be measured.
    why: Why so many, as it follows "frames and".

  Raises:
    ValueError: If counts differ, pixels are out of range, or videos too short.
  """
  num_videos, num_frames = videos.shape[:2]
  if not num_videos or num_videos != len(prompts):
    raise ValueError(
      f"videos has {num_videos} videos for {len(prompts)} prompts, and each"
      " needs one; pass as many prompts as videos."
    )
  if num_frames < fewest:
    raise ValueError(
      f"videos has {num_frames} frames and {why}; generate {fewest} or more."
    )
  if np.issubdtype(videos.dtype, np.floating) and not (
    videos.min() >= 0 and videos.max() <= 1
  ):
    raise ValueError(
      f"videos has pixels from {videos.min()} to {videos.max()}, and they must"
      " be in [0, 1]; clip them or divide by 255."
    )
