"""Tests of releases that lack a component, or are of another family."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.conversion import components
from videomla_jax.conversion import release
from videomla_jax.conversion.names import tiny_decoder as tiny_names
from videomla_jax.models import tiny_decoder

_FILES = {
  "dit": "diffusion_pytorch_model.safetensors",
  "vae": "Wan2.1_VAE.pth",
  "umt5": "models_t5_umt5-xxl-enc-bf16.pth",
  "tokenizer": "google/umt5-xxl/spiece.model",
}


@pytest.fixture
def given(tmp_path: pathlib.Path, seed: int) -> pathlib.Path:
  """A whole release."""
  tiny_release.write_wan(tmp_path / "given", np.random.default_rng(seed))
  return tmp_path / "given"


@pytest.fixture(autouse=True)
def _no_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
  """What is written does not matter here, and takes most of the time."""

  def empty(output, *unused, **options) -> None:
    pathlib.Path(output).mkdir(parents=True)

  monkeypatch.setattr(release, "write_model", empty)


def _run(source: pathlib.Path, **changes: object) -> list[str]:
  """Names of what is written."""
  output = source.with_name("out")
  options = dict(source=str(source), output=str(output)) | changes
  shutil.rmtree(output, ignore_errors=True)
  try:
    convert.convert(tiny_release.options(**options))
  except ValueError:
    assert not output.exists()  # Nothing is written before all is known.
    raise
  return sorted(p.name for p in output.iterdir())


@pytest.mark.parametrize("component", [x for x in _FILES if x != "dit"])
def test_a_missing_component_is_named(given, component: str) -> None:
  (given / _FILES[component]).unlink()
  rest = ",".join(c for c in _FILES if c != component)
  with pytest.raises(
    ValueError, match=f"given' lacks {component} .*--parts={rest}"
  ):
    _run(given)
  assert _run(given, parts=rest) == sorted(rest.split(","))


def test_only_what_is_named_is_converted(given) -> None:
  assert _run(given, parts="vae") == ["vae"]
  assert _run(given, parts="vae, tokenizer") == ["tokenizer", "vae"]


@pytest.mark.parametrize(
  ("parts", "words"),
  [
    ("vaes", "'vaes', which is none; use some of dit,vae,umt5,tokenizer"),
    ("dit,vae", "holds no 'vae'; it holds dit,umt5,tokenizer"),
  ],
)
def test_what_is_named_must_be_there(given, parts: str, words: str) -> None:
  (given / _FILES["vae"]).unlink()
  with pytest.raises(ValueError, match=words):
    _run(given, parts=parts)


def test_a_single_network_must_be_what_is_named(given) -> None:
  with pytest.raises(ValueError, match="holds 'vae' alone"):
    _run(given / _FILES["vae"], parts="dit")
  assert not _run(given / _FILES["vae"], parts="vae")


def test_two_networks_in_turn_are_refused_by_name(given) -> None:
  for name in ("high_noise_model", "low_noise_model"):
    (given / name).mkdir()
  (given / _FILES["dit"]).rename(given / "high_noise_model" / _FILES["dit"])
  words = r"Wan2\.2-A14B.*--parts=vae,umt5,tokenizer\.$"
  for parts in ("", "dit"):
    with pytest.raises(ValueError, match=words):
      _run(given, parts=parts)
  assert len(_run(given, parts="vae,umt5,tokenizer")) == 3


def test_the_vae_of_wan_2_2_is_refused_by_name(given) -> None:
  (given / _FILES["vae"]).rename(given / "Wan2.2_VAE.pth")
  with pytest.raises(ValueError, match=r"holds 'Wan2\.2_VAE\.pth': it is Wan"):
    _run(given)
  assert len(_run(given, parts="dit,umt5,tokenizer")) == 3


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(channels=12), "latents of 12 channels and its vae for 4"),
    (dict(text_dim=24), "text of width 24 and its umt5 writes 32"),
  ],
)
def test_components_must_fit_each_other(given, changes, words, seed) -> None:
  config = dataclasses.replace(tiny_release.DIT, **changes)
  table, rng = tiny_release.dit_table(config), np.random.default_rng(seed)
  safetensors_numpy.save_file(
    tiny_release.draw(table, rng), given / _FILES["dit"]
  )
  with pytest.raises(ValueError, match=words):
    _run(given)


@pytest.mark.parametrize("channels", [4, 6])
def test_a_tiny_decoder_beside_a_release_is_taken_along(
  given, channels: int, seed: int
) -> None:
  table = tiny_names.table_of(tiny_decoder.tiny(channels=channels))
  tensors = tiny_release.draw(table, np.random.default_rng(seed))
  safetensors_numpy.save_file(tensors, given / "taew2_1.safetensors")
  if channels == tiny_release.DIT.channels:
    assert _run(given) == ["dit", "tiny_decoder", "tokenizer", "umt5", "vae"]
    assert _run(given, parts="tiny_decoder") == ["tiny_decoder"]
    # Folders that were converted before have it under another name.
    assert components.find(given.with_name("out")).keys() == {"tiny_decoder"}
  else:
    words = "latents of 4 channels and its tiny_decoder for 6"
    with pytest.raises(ValueError, match=words):
      _run(given)


@pytest.mark.parametrize("component", _FILES)
def test_the_bad_file_of_a_release_is_named(given, component: str) -> None:
  file = given / _FILES[component]
  file.write_bytes(file.read_bytes()[:-3] if component != "tokenizer" else b"x")
  with pytest.raises(ValueError, match=f"{file.name}'.*(damaged|no Sentence)"):
    _run(given)


def test_names_for_all_networks_are_checked_before_the_first(given) -> None:
  with pytest.raises(ValueError, match="umt5.*format='diffusers' is unknown"):
    _run(given, export="diffusers")
  assert _run(given, export="diffusers", parts="dit,vae") == ["dit", "vae"]
