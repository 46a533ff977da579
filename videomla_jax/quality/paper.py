"""What the paper reports, to stand beside what is measured here.

VideoMLA (arXiv:2605.30351): its table of long rollouts, and its ablation of the
latent's size on VBench. Nothing of it was reproduced here.
"""

from collections.abc import Mapping

from videomla_jax.quality import scores

# Length of the videos -> method -> aesthetic quality, background consistency,
# dynamic degree, imaging quality, motion smoothness, subject consistency,
# overall.
LONG: dict[str, dict[str, tuple[float, ...]]] = {
  "30s": {
    "Self-Forcing": (0.541, 0.948, 0.624, 0.577, 0.952, 0.932, 0.762),
    "Causal Forcing": (0.526, 0.945, 0.738, 0.628, 0.968, 0.947, 0.792),
    "Reward Forcing": (0.644, 0.956, 0.954, 0.683, 0.981, 0.957, 0.863),
    "LongLive": (0.654, 0.959, 0.649, 0.678, 0.983, 0.967, 0.816),
    "Infinity-RoPE": (0.640, 0.958, 0.847, 0.669, 0.982, 0.966, 0.844),
    "LongSANA": (0.573, 0.976, 0.149, 0.683, 0.974, 0.988, 0.723),
    "VideoMLA": (0.601, 0.942, 0.981, 0.697, 0.986, 0.952, 0.859),
  },
  "60s": {
    "Self-Forcing": (0.565, 0.958, 0.393, 0.650, 0.987, 0.974, 0.755),
    "Causal Forcing": (0.503, 0.936, 0.847, 0.608, 0.935, 0.920, 0.792),
    "Reward Forcing": (0.585, 0.952, 0.676, 0.673, 0.985, 0.974, 0.808),
    "LongLive": (0.606, 0.961, 0.433, 0.664, 0.991, 0.982, 0.773),
    "Infinity-RoPE": (0.607, 0.959, 0.647, 0.638, 0.988, 0.979, 0.803),
    "LongSANA": (0.529, 0.976, 0.103, 0.702, 0.991, 0.986, 0.714),
    "VideoMLA": (0.569, 0.963, 0.958, 0.715, 0.993, 0.954, 0.859),
  },
}
# Channels of the content latent -> semantic, quality and total score, per cent.
# The totals are plain means of the two, where VBench's own weighs them 1 to 4.
SIZES: dict[int, tuple[float, float, float]] = {
  64: (77.42, 79.18, 78.30),
  128: (82.16, 84.31, 83.24),
  256: (82.74, 84.58, 83.66),
  512: (82.41, 84.39, 83.40),
}
LENGTHS = ("short", *LONG)


def rows(length: str) -> dict[str, dict[str, float]]:
  """Returns the paper's rows for videos of a length.

  Args:
    length: "short", "30s" or "60s".

  Returns:
    Scores in 0..1 by the name of the score, by the name of the row.
  """
  if length in LONG:
    names = (*scores.SIX, "overall")
    return {
      method: dict(zip(names, values, strict=True))
      for method, values in LONG[length].items()
    }
  names = ("semantic", "quality", "mean")
  return {
    f"VideoMLA, d_c = {size}": {
      name: round(value / 100, 4)
      for name, value in zip(names, values, strict=True)
    }
    for size, values in SIZES.items()
  }


def table(length: str, mine: Mapping[str, float]) -> str:
  """Returns the paper's rows in Markdown, with one's own as the last.

  Args:
    length: "short", "30s" or "60s".
    mine: Scores of one's own, totals included; what is missing is left out.
  """
  known = rows(length)
  names = [*next(iter(known.values()))]
  lines = [["", *(x.replace("_", " ") for x in names)]]
  lines.append(["---"] * len(lines[0]))
  for method, values in (*known.items(), ("these videos", mine)):
    cells = [f"{values[x]:.3f}" if x in values else "–" for x in names]
    lines.append([method, *cells])
  if "VideoMLA" in known:
    theirs = known["VideoMLA"]
    cells = [f"{mine[x] - theirs[x]:+.3f}" if x in mine else "–" for x in names]
    lines.append(["these − VideoMLA", *cells])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
