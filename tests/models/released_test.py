"""A family of releases is one row, from its files to its frames."""

import pathlib

from flax import nnx
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.conversion import components
from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.conversion.names import vae as vae_names
from videomla_jax.data import encode
from videomla_jax.models import attention
from videomla_jax.models import released
from videomla_jax.models import tokenizer
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config

# Sizes, strides, statistics, files and speed that no release has.
MADE_UP = released.Family(
  files={
    "dit": "network*.safetensors",
    "vae": "Made_up_VAE.pth",
    "umt5": "text.pth",
    "tokenizer": "words/spiece.model",
  },
  dit=wan_config.WanConfig(
    attention=attention.AttentionConfig(kind="dense", width=48, num_heads=3),
    num_layers=1,
    ffn_width=96,
    channels=6,
    freq_dim=32,
    text_dim=32,
    dtype="float32",
  ),
  vae=vae_coders.VaeConfig(
    width=8,
    channels=6,
    multipliers=(1, 2, 2),
    num_blocks=1,
    temporal=(True, True),
    mean=(0.5,) * 6,
    std=(2.0,) * 6,
  ),
  text_encoder=tiny_release.UMT5,
  fps=24,
  shift=3.0,
  height=24,
  width=40,
)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> released.Family:
  monkeypatch.setitem(released.FAMILIES, "made_up", MADE_UP)
  return MADE_UP


def _write_release(folder: pathlib.Path, seed: int) -> None:
  """A release of the made-up family in its own layout."""
  rng = np.random.default_rng(seed)
  folder.mkdir()
  safetensors_numpy.save_file(
    tiny_release.draw(dit_names.table_of(MADE_UP.dit), rng),
    folder / "network.safetensors",
  )
  tiny_release.write_pth(
    folder / "Made_up_VAE.pth",
    tiny_release.draw(vae_names.table_of(MADE_UP.vae), rng),
  )
  tiny_release.write_tokenizer(folder / "words" / tokenizer.FILE)


def test_another_family_needs_no_more_than_its_row(
  tmp_path: pathlib.Path, seed: int, made_up: released.Family
) -> None:
  _write_release(tmp_path / "release", seed)
  # The number of heads comes from the row: 48 channels do not tell it.
  options = tiny_release.options(
    source=str(tmp_path / "release"),
    output=str(tmp_path / "model"),
    parts="dit,vae,tokenizer",  # it has no text encoder of its own
    num_heads=None,
  )
  convert.convert(options)
  parts = sorted(p.name for p in (tmp_path / "model").iterdir())
  assert parts == ["dit", "tokenizer", "vae"]
  dit = released.load(tmp_path / "model" / "dit", "dit")
  codec = released.load(tmp_path / "model" / "vae", "vae")
  assert dit.config == made_up.dit
  assert codec.config == made_up.vae
  assert (codec.temporal_stride, codec.spatial_stride) == (4, 4)
  for part in ("dit", "vae"):
    assert released.family_at(tmp_path / "model" / part) is made_up
  spec = encode.EncoderConfig(
    checkpoint=str(tmp_path / "model"), embeddings="somewhere"
  )
  sizes = dict(num_frames=9, height=24, width=40)
  assert spec.latent_shape(**sizes) == (3, 6, 10, 6)
  with pytest.raises(ValueError, match=r"clip.height=28 .* multiple of 8"):
    spec.latent_shape(**(sizes | dict(height=28)))


@pytest.mark.parametrize("name", [*released.FAMILIES])
def test_networks_of_a_row_fit_each_other(name: str) -> None:
  family = released.FAMILIES[name]
  assert family.dit.channels == family.vae.channels
  assert family.dit.text_dim == family.text_encoder.width
  assert family.height % family.pixel_step == 0
  assert family.width % family.pixel_step == 0
  released_parts = components.COMPONENTS.keys() - components.EXTRA
  assert {*family.files} in (released_parts, set())


@pytest.mark.parametrize("name", [*released.FAMILIES])
def test_family_is_told_from_its_networks(name: str) -> None:
  family = released.FAMILIES[name]
  assert released.family_of(family.dit) is family
  # Families may share a VAE; then all that depends on it is the same.
  assert released.family_of(family.vae).vae == family.vae


def test_networks_of_other_sizes_count_to_a_family_with_such_latents() -> None:
  other = wan_config.tiny(kind="latent", num_layers=3)
  assert released.family_of(other) is released.FAMILIES["wan_tiny"]
  alone = wan_config.tiny(kind="latent", channels=5, num_layers=3)
  assert released.family_of(alone) is released.FAMILIES["wan_1p3b"]


def test_text_encoder_tells_no_family(tmp_path: pathlib.Path) -> None:
  encoder = umt5.Umt5Encoder(tiny_release.UMT5, rngs=nnx.Rngs(0))
  released.save(tmp_path / "umt5", encoder)
  assert released.config_at(tmp_path / "umt5") == tiny_release.UMT5
  with pytest.raises(ValueError, match="is a text encoder"):
    released.family_at(tmp_path / "umt5")


def test_layers_apart_are_not_stored(tmp_path: pathlib.Path) -> None:
  config = wan_config.tiny(spare_memory=False)
  model = wan.with_layers_apart(wan.WanDiT(config, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match="model has its layers apart"):
    released.save(tmp_path / "dit", model)
