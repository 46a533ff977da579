"""Tests of conversion: whole releases, round trips, interruptions."""

import json
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax import convert
from videomla_jax.conversion import export
from videomla_jax.conversion import release
from videomla_jax.conversion import to_latent as init_model
from videomla_jax.conversion.names import umt5 as umt5_names
from videomla_jax.conversion.names import vae as vae_names
from videomla_jax.models import released
from videomla_jax.storage import model_folder
from videomla_jax.storage import model_writer
from videomla_jax.storage import tree_names


def _run(source: pathlib.Path, output: pathlib.Path, **changes: Any) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  return tree_names.flat_dict(model_folder.load_model_state(path)[0])


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of the safetensors files in a folder."""
  tensors = {}
  for file in path.glob("*.safetensors"):
    tensors |= safetensors_numpy.load_file(file)
  return tensors


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_a_release_becomes_a_folder_of_parts(layout, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  write = getattr(tiny_release, f"write_{layout}")
  write(tmp_path / "release", rng)
  _run(tmp_path / "release", tmp_path / "model")
  parts = sorted(p.name for p in (tmp_path / "model").iterdir())
  assert parts == ["dit", "tokenizer", "umt5", "vae"]
  dit = released.load(tmp_path / "model" / "dit", "wan_dit")
  assert dit.config.num_layers == tiny_release.DIT.num_layers
  assert dit.config.attention.num_heads == tiny_release.HEADS
  vae = released.load(tmp_path / "model" / "vae", "wan_vae")
  assert vae.config == tiny_release.VAE
  encoder = released.load(tmp_path / "model" / "umt5", "umt5")
  assert encoder.tokens.dtype == ml_dtypes.bfloat16
  with pytest.raises(ValueError, match="holds a 'wan_vae' where a 'wan_dit'"):
    released.load(tmp_path / "model" / "vae", "wan_dit")


_NETWORKS = {
  "dit": (tiny_release.dit_table(), "diffusers", np.float32),
  "vae": (vae_names.table_of(tiny_release.VAE), "diffusers", np.float32),
  "umt5": (
    umt5_names.table_of(tiny_release.UMT5),
    "transformers",
    ml_dtypes.bfloat16,
  ),
}


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pth"])
@pytest.mark.parametrize("other", [False, True], ids=["original", "other"])
@pytest.mark.parametrize("network", _NETWORKS)
def test_converting_and_exporting_is_bit_exact(
  network: str, other: bool, kind: str, tmp_path: pathlib.Path, seed: int
) -> None:
  table, format_name, dtype = _NETWORKS[network]
  format_name = format_name if other else "original"
  given = tiny_release.draw(
    table, np.random.default_rng(seed), format_name=format_name, dtype=dtype
  )
  source = tmp_path / "given.safetensors"
  if kind == "safetensors":
    safetensors_numpy.save_file(given, source)
  elif kind == "shards":
    source = tmp_path / "given"
    tiny_release.write_shards(source, given, 3)
  else:
    source = tmp_path / "given.pth"
    tiny_release.write_pth(source, given)
  _run(source, tmp_path / "model")
  _run(tmp_path / "model", tmp_path / "back", export=format_name)
  back = _read(tmp_path / "back")
  assert back.keys() == given.keys()
  for name, x in given.items():
    assert back[name].dtype == x.dtype
    np.testing.assert_array_equal(back[name], x)


def test_large_exports_come_in_shards_with_an_index(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = tiny_release.draw(tiny_release.dit_table(), rng)
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  with release.open_network(
    tmp_path / "given.safetensors", num_heads=tiny_release.HEADS
  ) as (_, tensors):
    written = export.safetensors_writer.write_safetensors(
      tmp_path / "out", tensors, shard_bytes=200_000
    )
    assert [*written] == [*tensors]
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  assert len(files) > 2
  assert all(f.stat().st_size < 250_000 for f in files)
  back = _read(tmp_path / "out")
  for name, x in given.items():
    np.testing.assert_array_equal(back[name], x)
  _run(tmp_path / "out", tmp_path / "model")  # the index is found
  assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_encoders_load_in_the_type_they_are_stored(
  dtype: str, tmp_path, seed: int
) -> None:
  given = tiny_release.draw(
    umt5_names.table_of(tiny_release.UMT5), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  _run(tmp_path / "given.safetensors", tmp_path / "model", dtype=dtype)
  encoder = released.load(tmp_path / "model", "umt5")
  leaves = jax.tree.leaves(encoder)
  assert {x.dtype.name for x in leaves} == {dtype}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_type_is_as_asked(dtype: str, tmp_path, seed: int) -> None:
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  _run(tmp_path / "given.safetensors", tmp_path / "model", dtype=dtype)
  for x in _arrays(tmp_path / "model").values():
    assert x.dtype.name == dtype
  kernel = _arrays(tmp_path / "model")["head/kernel"]
  expected = given["head.head.weight"].T.astype(kernel.dtype)
  np.testing.assert_array_equal(kernel, expected)


def test_generator_of_a_training_checkpoint_is_found(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  averaged, plain = (
    tiny_release.draw(tiny_release.dit_table(), rng) for _ in range(2)
  )
  tiny_release.write_pth(
    tmp_path / "model.pt",
    dict(
      generator={f"model.{n}": x for n, x in plain.items()},
      generator_ema={
        f"model._fsdp_wrapped_module.{n}": x for n, x in averaged.items()
      },
      step=np.asarray([7]),
    ),
  )
  for select, given in (("", averaged), ("generator", plain)):
    _run(tmp_path / "model.pt", tmp_path / "out", select=select)
    np.testing.assert_array_equal(
      _arrays(tmp_path / "out")["head/kernel"], given["head.head.weight"].T
    )
  with pytest.raises(ValueError, match=r"use one of \['generator'"):
    _run(tmp_path / "model.pt", tmp_path / "out", select="critic")


@pytest.mark.parametrize("method", ["spectral", "random"])
def test_latent_attention_equals_the_conversion_in_memory(
  method: str, tmp_path: pathlib.Path, seed: int
) -> None:
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  _run(tmp_path / "given.safetensors", tmp_path / "dense")
  _run(tmp_path / "dense", tmp_path / "latent", to="latent", init=method)
  dense = released.load(tmp_path / "dense", "wan_dit")
  latent = released.load(tmp_path / "latent", "wan_dit")
  sizes = latent.config.attention
  assert (sizes.kind, sizes.d_c, sizes.d_rope, sizes.d_q) == (
    "latent",
    8,
    4,
    32,
  )
  expected, reports = init_model.to_latent(dense, latent.config, method=method)
  a, b = (
    tree_names.flat_dict(model_folder.model_arrays(m))
    for m in (latent, expected)
  )
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
  text = (tmp_path / "latent" / release.REPORT).read_text()
  assert json.loads(text) == [r.to_dict() for r in reports]


def test_latent_networks_survive_an_export(tmp_path, seed: int) -> None:
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  _run(tmp_path / "given.safetensors", tmp_path / "latent", to="latent")
  _run(tmp_path / "latent", tmp_path / "back", export="original")
  _run(tmp_path / "back", tmp_path / "again")
  a, b = (_arrays(tmp_path / name) for name in ("latent", "again"))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_an_interruption_leaves_nothing_that_loads(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  source, output = tmp_path / "given.safetensors", tmp_path / "model"
  safetensors_numpy.save_file(given, source)
  write, count = model_writer.ModelWriter.write, []

  def failing(self, *args, **kwargs):
    count.append(args)
    if len(count) == 20:
      raise KeyboardInterrupt
    write(self, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(model_writer.ModelWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
      _run(source, output)
  assert sorted(p.name for p in tmp_path.iterdir()) == [source.name]
  # What a killed process leaves is not the model, and goes at the next run.
  (tmp_path / ".model.999999999.tmp").mkdir()
  _run(source, output)
  assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, "model"]


def test_a_failed_conversion_keeps_the_model_that_was_there(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  rng = np.random.default_rng(seed)
  source, output = tmp_path / "given.safetensors", tmp_path / "model"
  given = tiny_release.draw(tiny_release.dit_table(), rng)
  safetensors_numpy.save_file(given, source)
  _run(source, output)
  before = _arrays(output)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(model_writer.ModelWriter, "_write", full)
  with pytest.raises(ValueError, match="No space left on device.*free space"):
    _run(source, output)
  after = _arrays(output)
  for name in before:
    np.testing.assert_array_equal(after[name], before[name])
  assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, "model"]


def test_too_small_a_disk_is_refused_before_writing(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  usage = release.shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(release.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(ValueError, match=r"GB are free; choose another disk"):
    _run(tmp_path / "given.safetensors", tmp_path / "model")
  assert not (tmp_path / "model").exists()


def _damage(path: pathlib.Path, how: str) -> None:
  """Spoils the checkpoint at `path`."""
  if how == "truncated":
    path.write_bytes(path.read_bytes()[:-7])
  elif how == "empty":
    path.write_bytes(b"")
  else:
    tensors = safetensors_numpy.load_file(path)
    if how == "missing":
      del tensors["blocks.1.ffn.0.weight"]
    elif how == "unmatched":
      tensors["blocks.0.lora.weight"] = np.zeros((2, 2), np.float32)
    elif how == "mis-shaped":
      tensors["head.modulation"] = np.zeros((1, 3, 64), np.float32)
    elif how == "quantised":
      tensors["blocks.0.ffn.0.weight"] = np.zeros((128, 64), np.int8)
    elif how == "another":
      tensors = {"conv.weight": np.zeros((3, 3), np.float32)}
    safetensors_numpy.save_file(tensors, path)


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ("truncated", "damaged or incomplete"),
    ("empty", "damaged or incomplete"),
    ("missing", r"missing: blocks\.1\.ffn\.0\.weight"),
    ("unmatched", r"unmatched: blocks\.0\.lora\.weight"),
    ("mis-shaped", r"head\.modulation \(1, 3, 64\) not \(1, 2, 64\)"),
    ("quantised", "quantised"),
    ("another", "no network known here"),
  ],
)
def test_bad_files_are_refused_before_writing(how, words, tmp_path, seed):
  path = tmp_path / "given.safetensors"
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed)
  )
  safetensors_numpy.save_file(given, path)
  _damage(path, how)
  with pytest.raises(ValueError, match=words):
    _run(path, tmp_path / "model")
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(source=None), "--source is missing"),
    (dict(output=None), "--output is missing"),
    (dict(source="nowhere"), "does not exist"),
    (dict(source="a.gguf"), "is quantised"),
    (dict(source="same", output="same"), "is the source"),
  ],
)
def test_bad_options_are_refused(changes, words) -> None:
  options = tiny_release.options(**(dict(source="x", output="y") | changes))
  with pytest.raises(ValueError, match=words):
    convert.convert(options)


def test_only_a_dense_dit_becomes_latent(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  given = tiny_release.draw(vae_names.table_of(tiny_release.VAE), rng)
  safetensors_numpy.save_file(given, tmp_path / "vae.safetensors")
  with pytest.raises(ValueError, match="changes a DiT"):
    _run(tmp_path / "vae.safetensors", tmp_path / "out", to="latent")
  with pytest.raises(ValueError, match=r"format='transformers' is unknown"):
    _run(tmp_path / "vae.safetensors", tmp_path / "out", export="transformers")


def test_exports_name_their_framework(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  given = tiny_release.draw(vae_names.table_of(tiny_release.VAE), rng)
  safetensors_numpy.save_file(given, tmp_path / "vae.safetensors")
  _run(tmp_path / "vae.safetensors", tmp_path / "out", export="diffusers")
  path = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
  with safetensors.safe_open(path, framework="numpy") as file:
    assert file.metadata() == {"format": "pt"}
