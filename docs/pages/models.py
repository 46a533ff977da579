"""Writes docs/models.md: a card for each model that ships."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any

from flax import nnx
import jax

from videomla_jax.measuring import record
from videomla_jax.small_world import model as small_model

_PAGE = """# Model cards

The models that ship with the package, all of the small world: handwritten
digits in 24 x 24 pixels that move at 4 frames a second (see
[small_world.md](small_world.md)). `python docs/make_benchmarks.py` writes this
page from the models themselves, docs/ranks_small.json and docs/measures.jsonl.

{cards}## What holds for all of them

- **For**: trying the package, tests, demonstrations, and questions about latent
  attention that a laptop can answer. **Not for** anything beyond: they know
  sixteen words and ten digits, and nothing of the world.
- **Data**: clips drawn by the package from the handwritten digits of
  scikit-learn's `load_digits` (UCI, public), of which 297 are held out;
  prompts of ten held-out combinations of words were never trained on.
- **Licence**: that of the package, Apache 2.0.
- **Known weaknesses**: the first second of a video is the weakest; a digit
  sometimes leaves, doubles or has too much ink; a video that does not follow
  its prompt early rarely finds back to it. One training each: what differs
  between two models may be chance; [training.md](training.md) has three seeds.
- **Files**: Orbax, with a digest of every file; nothing is executed on loading.
"""
_ABOUT = {
  "small_dense": "Dense causal network, trained from random weights with"
  " teacher forcing: the parent of the others.",
  "small_bidirectional": "Dense bidirectional network, the real score and the"
  " critic's start of distribution matching.",
  "small_latent": "Latent causal network of stage 1: `small_bidirectional`,"
  " converted, and trained on with teacher forcing. Ten steps with guidance.",
  "small_student": "Four-step latent student of stage 3, behind stage 2: what"
  " `make demo` runs.",
}


def _parameters(path: pathlib.Path) -> int:
  """Counts the parameters of a network."""
  model = small_model.load(path)
  leaves = jax.tree.leaves(nnx.state(model.dit, nnx.Param))
  return sum(math.prod(x.shape) for x in leaves)


def _size(path: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _measures(lines: Sequence[record.Line], name: str) -> str:
  """Says the measures of a model's videos beside those of true clips."""
  of = lambda **about: next(
    (
      x["summary"]
      for x in reversed(lines)
      if all(x.get(k) == v for k, v in about.items())
    ),
    None,
  )
  own, true = of(checkpoint=f"shipped:{name}"), of(folder="small_world")
  if own is None or true is None:
    return "no videos of it were measured"
  say = lambda summary, key: (
    f"{summary[key]['mean']:.3f} ± {summary[key]['std']:.3f}"
  )
  names = {
    "temporal_flickering": "temporal flickering",
    "drift_sharpness": "sharpness, last over first seconds",
    "chunk_ratio": "change at chunk boundaries over change within",
  }
  return "; ".join(
    f"{words} {say(own, key)} (true clips {say(true, key)})"
    for key, words in names.items()
  )


def _card(
  path: pathlib.Path,
  ranks: Mapping[str, Mapping[str, Any]],
  lines: Sequence[record.Line],
) -> str:
  """Returns the card of a model."""
  about = json.loads((path / "config.json").read_text("utf-8"))
  training, rank = about["training"], ranks[path.name]
  rows = {
    "parameters": f"{_parameters(path):,}, {_size(path) / 1e6:.1f} MB of files",
    "stage": f"{training['stage']}, {about['steps']:,} steps of"
    f" {training['data']['batch_size']} clips, seed {training['seed']}",
    "made by": f"`{about['command']}`",
    "attention": f"{rank['kind']}"
    + (f", d_c = {rank['d_c']}" if rank["d_c"] else ""),
    "rank of keys and values": f"{rank['rank_median']:.0f} of"
    f" {rank['highest_rank']} (99 % of the energy; median of"
    f" {rank['layers']} layers)",
    "20 videos of it": _measures(lines, path.name),
  }
  listed = "".join(f"- **{name}**: {text}\n" for name, text in rows.items())
  return f"## {path.name}\n\n{_ABOUT[path.name]}\n\n{listed}\n"


def page(root: pathlib.Path) -> str:
  """Returns the page.

  Args:
    root: Folder of the project.
  """
  docs = root / "docs"
  report = json.loads((docs / "ranks_small.json").read_text("utf-8"))
  ranks = {x["checkpoint"]: x for x in report["summary"]}
  lines = record.read(docs / "measures.jsonl")
  folder = root / "videomla_jax" / "checkpoints"
  return _PAGE.format(
    cards="".join(_card(folder / name, ranks, lines) for name in _ABOUT)
  )
