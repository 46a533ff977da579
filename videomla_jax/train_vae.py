"""Trains a video VAE, on the colour world or on a folder of videos.

  python -m videomla_jax.train_vae --config=configs/vae.py:world \
    --workdir=runs/vae
  python -m videomla_jax.train_vae --workdir=runs/vae \
    --config=configs/vae.py:films,films=VIDEOS,start=models/wan_1p3b/vae

The network is the Wan VAE, causal and streaming, at any width. Stopping and
starting the same command continues where it stopped; SIGTERM and Ctrl-C save
first. The averaged VAE is written to WORKDIR/model, with the statistics of its
latents, where `prepare` and `sample` read it.

  WORKDIR/checkpoints   states       WORKDIR/metrics.jsonl   and TensorBoard
  WORKDIR/samples       pictures     WORKDIR/quality.json    of the model
  WORKDIR/skipped       what was given to updates that were left out
"""

import dataclasses
import pathlib

import ml_collections

from videomla_jax.autoencoding import quality as quality_lib
from videomla_jax.autoencoding import run as run_lib
from videomla_jax.runtime import cli


def train_vae(
  config: ml_collections.ConfigDict, workdir: str
) -> quality_lib.Quality:
  """Runs or continues the training of a VAE.

  Args:
    config: Values of the keys in `configs/vae.py`.
    workdir: Folder of checkpoints, metrics and the finished model.

  Returns:
    The quality of the finished model on held-out clips.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  found = run_lib.open_run(config, workdir)()
  values = ", ".join(
    f"{k} {x:.4g}" for k, x in dataclasses.asdict(found).items()
  )
  print(f"{pathlib.Path(workdir) / 'model'}: {values}", flush=True)
  return found


if __name__ == "__main__":
  cli.run(train_vae, workdir=True)
