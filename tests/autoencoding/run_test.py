"""A new VAE, and which clips its steps see."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_project
from tests import tolerances
from tests.autoencoding import tiny_vae
from videomla_jax.autoencoding import clips
from videomla_jax.autoencoding import run
from videomla_jax.autoencoding import settings
from videomla_jax.runtime import config_reader


def test_a_new_vae_treats_the_last_frame_of_a_group_as_a_first_one(
  seed,
) -> None:
  vae = run._fresh(tiny_vae.config(), seed)
  video = tiny_vae.video(np.random.default_rng(seed), frames=5)
  whole = vae.encode(video)
  for latent, frame in enumerate((0, 2, 4)):
    alone = vae.encode(video[:, frame : frame + 1])
    tolerances.assert_close(whole[:, latent], alone[:, 0])


def test_a_new_vae_repeats_what_it_decodes(seed) -> None:
  vae = run._fresh(tiny_vae.config(), seed)
  video = tiny_vae.video(np.random.default_rng(seed), frames=5)
  latents = vae.encode(video)
  whole = vae.decode(latents)
  for latent, frames in enumerate(((0,), (1, 2), (3, 4))):
    alone = vae.decode(latents[:, latent : latent + 1])[:, 0]
    for frame in frames:
      tolerances.assert_close(whole[:, frame], alone)


def _run(tmp_path, **changes: int) -> run.Run:
  config = tiny_project.config("vae", "world,runlocal")
  read = config_reader.read(settings.Settings, config)
  read = dataclasses.replace(
    read,
    images=settings.Images(steps=changes["images"], batch_size=3),
    optim=dataclasses.replace(read.optim, steps=changes["steps"]),
    every=dataclasses.replace(read.every, dispatch=changes["dispatch"]),
  )
  return run.Run(
    settings=read,
    source=clips.open_source(read.data, read.seed),
    record={},
    root=tmp_path,
  )


@pytest.mark.parametrize("first", [0, 2, 3, 4, 7])
def test_single_frames_come_first_wherever_a_run_goes_on(
  tmp_path, first
) -> None:
  work = [*_run(tmp_path, images=4, steps=9, dispatch=2)._work(first)]
  seen = [
    (int(step), program.source.data.num_frames)
    for program, given in work
    for step in given
  ]
  assert seen == [(n, 1 if n < 4 else 5) for n in range(first, 9)]


def test_images_have_their_own_batches(tmp_path) -> None:
  made = _run(tmp_path, images=2, steps=4, dispatch=2)
  images = made.source.of_images(3).clips(jnp.int32(0))
  assert images.shape == (3, 1, 64, 64, 3)
  # They are the first frames of what the same step would show.
  many = dataclasses.replace(
    made.source, data=dataclasses.replace(made.source.data, batch_size=3)
  )
  np.testing.assert_array_equal(images, many.clips(jnp.int32(0))[:, :1])
