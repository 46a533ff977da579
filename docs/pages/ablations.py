"""Writes docs/ablations.md from its record, for make_benchmarks.py."""

from collections.abc import Sequence

from videomla_jax.ablations import page as tables
from videomla_jax.ablations import statistics
from videomla_jax.measuring import record

_HEAD = """# Ablations

Models of the small world, trained in many settings from several seeds.
`python docs/make_benchmarks.py` writes this page from docs/ablations.jsonl, and

```
python -m videomla_jax.ablate --config=configs/ablate.py:steps=150,batch=4 \\
  --config.record=docs/ablations.jsonl
```

adds to that file. Every row says from which weights its models started, and for
how long they were trained. Rows of a table have the same training and seeds
unless the row says otherwise. Two settings with the same seed see the same
clips and noise, so differences are taken seed by seed.

- Cells are the mean over training seeds ± the standard deviation of one seed,
  and in brackets the 95 % interval of the mean, by Student's t. A difference is
  **bold** if its interval excludes zero. With three seeds an interval is 2.5
  standard deviations to each side, so only large effects show; and of twenty
  comparisons without any effect one is bold by chance.
- *Student*: a row that went through all three stages; stage 3 makes a quarter
  of the steps of the others, each with six updates. Other rows are of stage 1.
- *Held-out loss*: that of stage 1 on handwriting and prompts that training did
  not show, averaged weights, less is better. *Identity*, *count*, *steps*: the
  judge's measures ([small_world.md](small_world.md)) of videos of the ten
  held-out prompts, 1 is best.
- *Rank*: how many singular values of what makes keys and values hold 99 % of
  the energy (docs/method.md, section 16), mean over layers, at the start → at
  the end, of the highest that there could be. The entropy rank,
  exp(-Σ p log p) of the shares p of the energy, moves where that one stands
  still.
- *Cached*: scalars per token and layer.

The clips are drawn inside the program and never repeat, and no step continues
a single given frame; both differ from `train`. Models that are this young
compare settings, and are no measure of what the shipped ones can do.

What the rows say, with three seeds and this little training:

- In weights, the 99 % rank is d_c before training and after it, for spectral
  and for random starts, five sizes ({largest} for the largest, where the dense
  model has {dense}), four splits of a head, two widths, two depths, digits
  and real films, and for students that went through all stages. So the
  bottleneck sets the rank, as the paper reports. A start that has seen real
  inputs is the exception: it begins below d_c, its spectrum stays less even
  than that of the others, and it is the best. An occupied latent is no sign of
  quality.
- At one start, the rank decides and not the size: with a rank forced below d_c,
  the loss is within intervals of {forced} that of a latent of d_c = rank,
  although the cache is larger.
- On films, too, a forced rank of 4 costs loss; a latent of that size costs as
  much on average, but its seeds differ too much to be sure.
- A smaller latent has a higher loss in every seed, and a larger one a lower
  loss, up to the largest. The judge's measures say so only where the difference
  is large.
- Of a head's 32 channels four are too few for positions: digits stop moving as
  their prompt says. Eight, sixteen and 24 are not told apart by the judge.
- A spectral start is worth far more than random attention, and real inputs add
  a little.
- The dense model, which keeps all of the weights that it starts from, is far
  ahead after so little training; from random weights the two are not told
  apart, neither on digits nor on films. So the distance is what a conversion
  has to win back, and says nothing about latent attention that is trained to
  the end.
- What holds for stage 1 holds for students that went through all stages, as far
  as it can be seen in videos: a random start stays far behind, a latent of four
  channels moves worse than one of sixteen, and other sizes are not told apart.
  A dense student is not told apart from a latent one: its seeds differ widely,
  and most of the lead that it has in stage 1 is gone.
- Networks of half the width learn far less in the same steps; those of half the
  depth are not told apart from whole ones.
- Training with no sink, a larger or an averaging one makes no difference of
  loss; a local window of three frames is too short.
- The clean context pass is worth its time for the student: with entries of its
  last denoising pass, which still has much noise, it moves as its prompt says
  in far fewer steps. For the ten steps of stage 1 nothing is lost; two measures
  are even a little better.
- Two calls of the student make videos that are not told apart from those of
  four; one call is worse in all three measures, though three noises are too few
  to be sure.
- A cache in bfloat16 or int8 is not told apart from float32; float8 loses
  {float8} of the steps.
- Without a sink, or with an averaging one, the student's videos are not told
  apart from those of its training. So the small world does not need a sink, and
  says nothing about worlds that do.
"""


def _numbers(lines: Sequence[record.Line]) -> dict[str, str]:
  """Returns the numbers of the text above the tables."""
  rows = tables.rows_of(lines)

  def rank(name: str) -> str:
    row = rows[name]
    mean = statistics.summarise([*row.values("rank").values()]).mean
    return f"{mean:.1f} of {row.first['rank_highest']:.0f}"

  def difference(one: str, other: str, key: str) -> statistics.Summary:
    found = statistics.differences(
      rows[one].values(key), rows[other].values(key)
    )
    assert found is not None  # their seeds are the same
    return found

  forced = [difference(f"rank {n} forced", f"d_c={n}", "loss") for n in (4, 8)]
  float8 = difference(
    "student, cache in float8_e4m3fn", "student, 4 steps", "steps"
  )
  return dict(
    largest=rank("d_c=64"),
    dense=rank("dense"),
    forced=f"{max(abs(x.mean) + x.half for x in forced):.4f}",
    float8=f"{-float8.mean:.3f}",
  )


def page(lines: Sequence[record.Line]) -> str:
  """Returns the page about ablations.

  Args:
    lines: The record of `ablate`.
  """
  return "\n".join([_HEAD.format(**_numbers(lines)), *tables.tables(lines)])
