"""Changes a trained small model from dense to latent attention.

Words, norms and feed-forward stay; every self-attention is replaced as for Wan,
`init.layer`. Sizes are the small network's own, so only d_c is free.
"""

import dataclasses
import os
import pathlib
from typing import Any

from flax import nnx

from videomla_jax.conversion import release
from videomla_jax.conversion import to_latent as init_model
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder


def is_small(path: str | os.PathLike[str]) -> bool:
  """Whether a folder holds a small model, words included."""
  if not (pathlib.Path(path) / model_folder.CONFIG).is_file():
    return False
  return "model" in model_folder.read_config(path)


def to_latent(
  model: model_lib.VideoModel, latent: release.Latent
) -> tuple[model_lib.VideoModel, list[dict[str, Any]]]:
  """Makes the latent model.

  Args:
    model: A dense one.
    latent: How to convert.

  Returns:
    The model, and what every layer kept.

  Raises:
    ValueError: If it is not dense, or the small network has no such sizes.
  """
  if latent.activations:
    raise ValueError(
      f"activations={latent.activations!r} are of a released model; leave "
      "--activations out for a small one."
    )
  d_c, d_rope = latent.d_c, latent.d_rope
  config = dataclasses.replace(
    model.config, kind="latent", d_c=d_c, d_rope=d_rope
  )
  d_q = config.network.attention.d_q
  if latent.d_q != d_q:
    raise ValueError(
      f"d_q={latent.d_q} does not fit the small network, which has {d_q}; "
      "leave --d_q out."
    )
  network = init_model.latent_config(
    model.dit.config, d_c=d_c, d_rope=d_rope, d_q=d_q
  )
  dit, reports = init_model.to_latent(
    model.dit, network, method=latent.method, seed=latent.seed
  )
  made = nnx.eval_shape(lambda: model_lib.VideoModel(config, rngs=nnx.Rngs(0)))
  made.dit, made.text = dit, model.text
  return made, [report.to_dict() for report in reports]


def convert(
  output: str | os.PathLike[str],
  model: model_lib.VideoModel,
  latent: release.Latent,
  *,
  source: str,
) -> None:
  """Writes the latent model, with what it was made from and what it kept.

  Args:
    output: Folder to create or replace.
    model: A dense model.
    latent: How to convert.
    source: Where the model is from.
  """
  made, reports = to_latent(model, latent)
  model_lib.save(
    output,
    made,
    init=dataclasses.asdict(latent),
    source=dict(files=source),
    layers=reports,
  )
