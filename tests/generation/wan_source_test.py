"""Tests of Wan as a source: folders, order of loading, mistakes."""

import gc
import pathlib
import types
from typing import Any
import weakref

from flax import nnx
import jax
import ml_dtypes
import numpy as np
from PIL import Image
import pytest

from tests import tiny_model
from tests import tiny_project
from tests import tiny_release
import videomla_jax
from videomla_jax import embed
from videomla_jax import sample
from videomla_jax.data import embeddings
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4
from videomla_jax.generation import request
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.models import umt5

_PROMPTS = "; ".join(tiny_release.PROMPTS)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> pathlib.Path:
  """A converted release, dense, and its latent twin beside it."""
  folder = tmp_path_factory.mktemp("release")
  rng = np.random.default_rng()
  tiny_release.write_converted(folder, rng)
  tiny = tiny_model.fill(tiny_decoder.abstract(tiny_decoder.tiny()), rng)
  released.save(folder / "videomla" / "tiny_decoder", tiny)
  return folder


def _config(
  release: pathlib.Path, folder: pathlib.Path, variant="wan_1p3b", **changes
) -> Any:
  config = tiny_project.config("sample", f"{variant},steps=2")
  model = "videomla" if variant == "wan_1p3b" else "wan"
  config.checkpoint = str(release / model)
  config.height, config.width = 32, 48
  config.prompts, config.seconds = _PROMPTS, 9 / 16
  config.output.folder = str(folder / "out")
  config.update(changes)
  return config


def _videos(folder: pathlib.Path) -> list[np.ndarray]:
  files = sorted((folder / "out").glob("*.mp4"))
  return [mp4.read_mp4(path)[0] for path in files]


@pytest.mark.parametrize(
  "variant", ["wan_1p3b", "wan_1p3b_dense", "wan_1p3b_bidirectional"]
)
def test_a_release_goes_from_files_to_videos(
  release, tmp_path, variant
) -> None:
  report = sample.sample(_config(release, tmp_path, variant))
  videos = _videos(tmp_path)
  assert [f.shape for f in videos] == [(9, 32, 48, 3)] * 2
  assert (report["frames"], report["fps"]) == (9, 16)
  scalars = {"wan_1p3b": 8 + 4}.get(variant, 2 * 64)
  assert report["cache_scalars_per_token_layer"] == scalars
  assert report["decoder_bytes"] > 0
  assert report["decoder"] == "wan"
  assert [*report["decoder_state_bytes"]] == ["wan", "tiny"]
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert {"sample-sheet.png", "sample.json"} < names


def _picture(path: pathlib.Path, seed: int) -> np.ndarray:
  """Writes a picture and returns its pixels."""
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 2, (4, 6, 3), dtype=np.uint8) * 255
  given = blocks.repeat(8, axis=0).repeat(8, axis=1)
  contact_sheet.write_png(path, Image.fromarray(given))
  return given


def test_a_picture_becomes_the_first_frame(release, tmp_path, seed) -> None:
  given = _picture(tmp_path / "given.png", seed)
  config = _config(release, tmp_path, image=str(tmp_path / "given.png"))
  sample.sample(config)
  for video in _videos(tmp_path):
    assert len(video) == 9
    assert np.abs(video[0].astype(int) - given).mean() < 16


def test_a_tiny_decoder_of_other_latents_is_refused(release, tmp_path) -> None:
  config = _config(release, tmp_path, decoder="tiny")
  config.parts.tiny_decoder = str(release / "wan" / "vae")
  with pytest.raises(ValueError, match="holds no 'tiny_decoder'; give the"):
    sample.sample(config)
  for changes, words in (
    (dict(channels=6), "has channels=6, but the vae has 4"),
    (dict(temporal=(True,) * 3), "temporal_stride=8, but the vae has 4"),
    (dict(patch=2), "spatial_stride=16, but the vae has 8"),
  ):
    sizes = tiny_decoder.tiny(**changes)
    model = tiny_decoder.TinyDecoder(sizes, rngs=nnx.Rngs(0))
    released.save(tmp_path / "tiny", model)
    config = _config(release, tmp_path, decoder="tiny")
    config.parts.tiny_decoder = str(tmp_path / "tiny")
    with pytest.raises(ValueError, match=words):
      sample.sample(config)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
  """Networks in the order of loading, with the encoders alive just before."""
  load, encoders, alive = released.load, [], []

  def spy(path, needed, **kwargs):
    gc.collect()
    alive.append((needed, sum(ref() is not None for ref in encoders)))
    model = load(path, needed, **kwargs)
    if needed == "umt5":
      encoders.append(weakref.ref(model))
    return model

  monkeypatch.setattr(released, "load", spy)
  return alive


def test_the_encoder_is_gone_before_the_dit_comes(
  release, tmp_path, loaded
) -> None:
  sample.sample(_config(release, tmp_path))
  assert loaded == [("umt5", 0), ("vae", 0), ("dit", 0)]


def test_the_tiny_decoder_takes_the_place_of_the_vae(
  release, tmp_path, loaded, seed, capsys
) -> None:
  given = _picture(tmp_path / "given.png", seed)
  config = _config(release, tmp_path, image=str(tmp_path / "given.png"))
  config.decoder, config.checkpoint = "tiny", str(release / "wan")
  config.parts.dit = str(release / "videomla" / "dit")
  with pytest.raises(ValueError, match=r"lacks \['.*/wan/tiny_decoder'\]"):
    sample.sample(config)
  config.parts.tiny_decoder = str(release / "videomla" / "tiny_decoder")
  report = sample.sample(config)
  # The VAE comes last, and only since there is a picture to encode.
  order = ["umt5", "tiny_decoder", "dit", "vae"]
  assert [name for name, _ in loaded] == order
  for video in _videos(tmp_path):
    assert video.shape == (9, 32, 48, 3)
    assert np.abs(video[0].astype(int) - given).mean() < 16
  assert report["decoder"] == "tiny"
  assert [*report["decoder_state_bytes"]] == ["tiny", "wan"]
  said = capsys.readouterr().out
  assert "decoder: tiny, " in said and "; wan would hold " in said
  assert "freed after the given frames are encoded" in said


def test_the_encoder_comes_and_goes_for_every_call_from_python(
  release, loaded
) -> None:
  model = videomla_jax.load(release / "videomla", height=32, width=48)
  assert loaded == []
  call = dict(seconds=5 / 16, sampler=dict(kind="few_step"))
  for prompt in tiny_release.PROMPTS:
    video = videomla_jax.generate(model, prompt, **call)
    assert video.pixels.shape == (1, 5, 32, 48, 3)
  # The networks stay; of the encoder nothing does.
  order = ["umt5", "vae", "dit", "umt5"]
  assert loaded == [(name, 0) for name in order]


def test_embeddings_from_a_file_give_the_same_video(
  release, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config = tiny_project.config("embed")
  config.checkpoint, config.prompts = str(release / "wan"), _PROMPTS
  config.output = str(tmp_path / "prompts.safetensors")
  assert embed.embed(config) == 3  # two prompts and the negative one
  assert embed.embed(config) == 0
  config.prompts = "a dog"
  assert embed.embed(config) == 1
  asked = request.Request.from_config(_config(release, tmp_path))
  source = sources.open_source(asked.networks)
  direct = source.embed(tiny_release.PROMPTS, negative="")
  stored = embeddings.read(config.output, [*tiny_release.PROMPTS, "", ""])
  assert direct.shape == stored.shape == (4, 512, 32)
  # The file holds bfloat16, to which the DiT rounds its text anyway.
  rounded = np.asarray(direct, ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(rounded, stored)

  def unused(*args):
    raise AssertionError("the text encoder was used")

  monkeypatch.setattr(umt5, "embed_texts", unused)
  sample.sample(
    _config(
      release,
      tmp_path,
      embeddings=config.output,
    )
  )
  assert len(_videos(tmp_path)) == 2
  for part in ("umt5", "tokenizer"):
    twice = _config(
      release,
      tmp_path,
      embeddings=config.output,
      parts={part: str(release / "wan" / part)},
    )
    with pytest.raises(
      ValueError, match=f"parts.{part}=.* has no effect besid"
    ):
      sample.sample(twice)


def test_embeddings_need_no_folders_of_the_encoder(release, tmp_path) -> None:
  config = tiny_project.config("embed")
  config.checkpoint, config.prompts = str(release / "wan"), _PROMPTS
  config.output = str(tmp_path / "prompts.safetensors")
  embed.embed(config)
  for part in ("dit", "vae"):
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / part).symlink_to(release / "wan" / part)
  asked = _config(release, tmp_path, embeddings=config.output)
  asked.checkpoint = str(tmp_path / "model")
  source = sources.open_source(request.Request.from_config(asked).networks)
  assert source.embed(tiny_release.PROMPTS, negative=None).shape[0] == 2


def test_parts_may_lie_elsewhere(release, tmp_path) -> None:
  parts = dict(dit=str(release / "videomla" / "dit"))
  config = _config(release, tmp_path, parts=parts)
  config.checkpoint = str(release / "wan")
  report = sample.sample(config)
  assert report["cache_scalars_per_token_layer"] == 8 + 4


def test_a_prompt_of_too_many_tokens_is_cut_and_told(
  release, tmp_path, capsys
) -> None:
  long = "fox " * 600
  config = _config(release, tmp_path, prompts=f"a fox; {long}")
  report = sample.sample(config)
  ((prompt, tokens),) = report["tokens_of_cut_prompts"].items()
  assert prompt == long.strip() and tokens > 600
  assert f"has {tokens} tokens, of which" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("part", "field", "said"),
  [
    ("vae", "channels", "takes 4 channels of a latent, but the vae gives 5"),
    ("umt5", "width", "channels of a text, but the text encoder gives 33"),
  ],
)
def test_parts_of_two_releases_are_refused_before_any_is_loaded(
  release, tmp_path, part, field, said, monkeypatch: pytest.MonkeyPatch
) -> None:
  config_at = released.config_at

  def other(path):
    sizes = config_at(path)
    if pathlib.Path(path).name != part:
      return sizes
    # What may be read of it is enough here.
    return types.SimpleNamespace(**{field: getattr(sizes, field) + 1})

  monkeypatch.setattr(released, "config_at", other)
  with pytest.raises(ValueError, match=said):
    sample.sample(_config(release, tmp_path))


_MISTAKES = {
  "no parts": (dict(checkpoint="nowhere"), "is not a directory"),
  "no vae": (dict(parts=dict(vae="nowhere")), r"lacks \['nowhere'\]"),
  "no encoder": (dict(parts=dict(umt5="gone")), "config.embeddings"),
  "height": (dict(height=40), "multiple of 16; use 32"),
  "width": (dict(width=8), "multiple of 16; use 16"),
  "empty prompt": (dict(prompts="a;;b"), r"prompts\[1\] is empty"),
  "no embeddings": (dict(embeddings="gone"), "does not exist"),
  "random": (dict(checkpoint="random:wan"), "use one of"),
  "decoder": (dict(decoder="small"), "decoder='small' is unknown; use one of"),
  "vae": (dict(parts=dict(vae="DIT")), "holds no 'vae'; give the folder"),
  "tiny_decoder": (
    dict(parts=dict(tiny_decoder="x")),
    "parts.tiny_decoder='x' has no effect without decoder='tiny'",
  ),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistakes_are_found_before_anything_compiles(
  release, tmp_path, mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
  changes, words = _MISTAKES[mistake]
  if mistake == "vae":
    changes = dict(parts=dict(vae=str(release / "wan" / "dit")))

  def too_late(*args, **kwargs):
    raise AssertionError("the rollout was reached")

  monkeypatch.setattr(sample, "_write_videos", too_late)
  with pytest.raises(ValueError, match=words):
    sample.sample(_config(release, tmp_path, **changes))


def test_half_weights_halve_the_kernels_and_nothing_else(release) -> None:
  path = release / "wan" / "dit"
  whole = released.load(path, "wan_dit", dtype="bfloat16")
  half = released.load(path, "wan_dit", dtype="bfloat16", half_weights=True)
  kernels = half.blocks.ffn.into.kernel, half.blocks.self_attention.query.kernel
  assert {k.dtype.name for k in kernels} == {"bfloat16"}
  float32 = (
    half.time_project.kernel,
    half.blocks.cross_norm.gain,
    half.head.kernel,
  )
  assert {k.dtype.name for k in float32} == {"float32"}
  sizes = [sum(x.nbytes for x in jax.tree.leaves(m)) for m in (whole, half)]
  assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize(
  ("variant", "decoder"),
  [("wan_tiny", ""), ("wan_tiny_bidirectional", "tiny")],
)
def test_random_networks_run_the_whole_pipeline(
  tmp_path, variant, decoder
) -> None:
  config = tiny_project.config("sample", f"{variant},steps=2")
  config.decoder = decoder
  config.vae_tile = 5 if decoder else 0
  config.seconds = 9 / 16
  config.output.folder = str(tmp_path / "out")
  sample.sample(config)
  (video,) = _videos(tmp_path)
  assert video.shape == (9, 32, 48, 3)
  assert video.std() > 0
