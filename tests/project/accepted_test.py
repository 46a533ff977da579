"""What users have and what works: it must not be refused by a later check."""

import hashlib
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.generation import given_frames
from videomla_jax.generation import mp4
from videomla_jax.generation import sources
from videomla_jax.media import fitting
from videomla_jax.models import released


def _convert(source: pathlib.Path, output: pathlib.Path, **changes) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _cached(release: pathlib.Path, hub: pathlib.Path) -> pathlib.Path:
  """Lays files out as a hub's cache does: blobs, and links with names."""
  (hub / "blobs").mkdir(parents=True)
  snapshot = hub / "snapshots" / "abc"
  for file in [x for x in release.rglob("*") if x.is_file()]:
    link = snapshot / file.relative_to(release)
    blob = hub / "blobs" / hashlib.sha1(str(link).encode()).hexdigest()
    shutil.move(file, blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
  return snapshot


def test_a_hubs_cache_of_links_is_converted(tmp_path, seed: int) -> None:
  tiny_release.write_wan(tmp_path / "release", np.random.default_rng(seed))
  _convert(_cached(tmp_path / "release", tmp_path / "hub"), tmp_path / "out")
  found = sorted(x.name for x in (tmp_path / "out").iterdir())
  assert found == ["dit", "tokenizer", "umt5", "vae"]


def test_paths_have_spaces_and_letters_and_home_may_be_missing(
  tmp_path, monkeypatch, seed: int
) -> None:
  monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
  folder = tmp_path / "déjà vu; 空 & 'quoted' (1)"
  tiny_release.write_wan(folder / "re lease", np.random.default_rng(seed))
  _convert(folder / "re lease", folder / "mo del")
  assert released.family_at(folder / "mo del" / "dit").fps
  picture, clip = folder / "ein Bild.png", folder / "ein Film.mp4"
  Image.new("RGB", (48, 32), (200, 0, 0)).save(picture)
  frames = np.full((4, 32, 48, 3), 100, np.uint8)
  mp4.write_mp4(clip, frames, fps=16)
  shape = fitting.FrameShape(height=32, width=48, channels=3)
  for image, film in ((picture, ""), ("", clip)):
    read = given_frames.read_given(
      image=image, clip=film, shape=shape, fps=16, most=4
    )
    assert read is not None
    assert len(read.frames)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_other_precision_are_converted(
  tmp_path, dtype, seed: int
) -> None:
  arrays = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed), dtype=dtype
  )
  safetensors_numpy.save_file(arrays, tmp_path / "x.safetensors")
  _convert(tmp_path / "x.safetensors", tmp_path / "out", dtype="float32")
  assert released.load(tmp_path / "out", "dit").config.num_layers


def test_the_averaged_generator_of_a_training_checkpoint_is_taken(
  tmp_path, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  drawn = tiny_release.draw(tiny_release.dit_table(), rng)
  named = {f"model._fsdp_wrapped_module.{n}": x for n, x in drawn.items()}
  ones = {f"model.{n}": np.ones_like(x) for n, x in drawn.items()}
  content = dict(generator=named, generator_ema=ones, critic=named, step=3)
  tiny_release.write_pth(tmp_path / "model.pt", content)
  _convert(tmp_path / "model.pt", tmp_path / "out")
  dit = released.load(tmp_path / "out", "dit")
  np.testing.assert_array_equal(dit.head.kernel[...], 1.0)


def test_a_link_to_a_model_folder_is_opened(tmp_path) -> None:
  shipped = pathlib.Path(
    sources.model_lib.checkpoint_path("shipped:small_student")
  )
  (tmp_path / "link").symlink_to(shipped)
  assert sources.open_small(tmp_path / "link").distilled
