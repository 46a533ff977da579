"""Tests of merged LoRAs, through the command and against W + B A."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_lora
from tests import tiny_release
from tests import tolerances
from videomla_jax import convert
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

Arrays = dict[str, np.ndarray]


def _run(source: pathlib.Path, output: pathlib.Path, **changes: Any) -> None:
  convert.convert(
    tiny_release.options(source=str(source), output=str(output), **changes)
  )


def _arrays(path: pathlib.Path) -> Arrays:
  return tree_names.flat_dict(model_folder.load_model_state(path)[0])


def _write(folder: pathlib.Path, seed: int, **kwargs: Any) -> Arrays:
  """Writes FOLDER/given.safetensors, a dense network."""
  given = tiny_release.draw(
    tiny_release.dit_table(), np.random.default_rng(seed), **kwargs
  )
  safetensors_numpy.save_file(given, folder / "given.safetensors")
  return given


def _save(folder: pathlib.Path, lora: Arrays, name: str = "lora") -> str:
  path = folder / f"{name}.safetensors"
  safetensors_numpy.save_file(lora, path)
  return str(path)


def _expected(given: Arrays, *added: Arrays) -> Arrays:
  """Our parameters of W + the sum of what is added."""
  total = {name: np.asarray(x, np.float64) for name, x in given.items()}
  for some in added:
    for name, x in some.items():
      total[name] = total[name] + x
  return tiny_release.dit_table().read(total)


@pytest.mark.parametrize("format_name", tiny_lora.FORMATS)
def test_a_merged_lora_is_the_sum(format_name, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  lora, added = tiny_lora.draw(
    rng, format_name, layers=(*tiny_lora.LAYERS, "patch_embedding")
  )
  _run(
    tmp_path / "given.safetensors",
    tmp_path / "model",
    lora=_save(tmp_path, lora),
    lora_scale="0.5",
  )
  half = {name: 0.5 * x for name, x in added.items()}
  found = _arrays(tmp_path / "model")
  for path, x in _expected(given, half).items():
    tolerances.assert_close(found[path], x, "float32")
  note = model_folder.read_config(tmp_path / "model")["source"]["lora"]
  assert [n["scale"] for n in note] == [0.5]
  assert note[0]["tensors"] == len(added) and len(note[0]["sha256"]) == 64


def test_several_loras_add_up_whatever_their_files(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  a, added_a = tiny_lora.draw(rng, "kohya")
  b, added_b = tiny_lora.draw(rng, "diffusers")
  tiny_release.write_pth(tmp_path / "b, too.pt", b)
  _run(
    tmp_path / "given.safetensors",
    tmp_path / "model",
    lora=f"{_save(tmp_path, a)},{_save(tmp_path, b, 'b')}",
    lora_scale="1,-2",
  )
  twice = {name: -2 * x for name, x in added_b.items()}
  found = _arrays(tmp_path / "model")
  for path, x in _expected(given, added_a, twice).items():
    tolerances.assert_close(found[path], x, "float32")
  # One name may hold a comma, and PyTorch's own files are read as well.
  _run(
    tmp_path / "given.safetensors",
    tmp_path / "model",
    lora=str(tmp_path / "b, too.pt"),
  )
  found = _arrays(tmp_path / "model")
  for path, x in _expected(given, added_b).items():
    tolerances.assert_close(found[path], x, "float32")


def test_whole_differences_are_added(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  added = {
    name: rng.standard_normal(given[name].shape, np.float32)
    for name in (
      "blocks.0.ffn.0.weight",
      "blocks.0.ffn.0.bias",
      "blocks.1.self_attn.norm_q.weight",
      "blocks.1.norm3.bias",
      "blocks.0.modulation",
    )
  }
  endings = {".weight": ".diff", ".bias": ".diff_b", "modulation": ""}
  lora = {}
  for name, x in added.items():
    if name.endswith("modulation"):
      lora[f"diffusion_model.{name}.diff"] = x
    for ending, theirs in endings.items():
      if theirs and name.endswith(ending):
        lora["diffusion_model." + name.removesuffix(ending) + theirs] = x
  assert len(lora) == len(added)
  _run(
    tmp_path / "given.safetensors",
    tmp_path / "model",
    lora=_save(tmp_path, lora),
  )
  found = _arrays(tmp_path / "model")
  for path, x in _expected(given, added).items():
    tolerances.assert_close(found[path], x, "float32")


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float16])
def test_alpha_may_be_a_whole_number(kind, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  lora, added = tiny_lora.draw(rng, "kohya", alpha=2.0)
  lora = {n: x.astype(kind) if "alpha" in n else x for n, x in lora.items()}
  source = tmp_path / "given.safetensors"
  _run(source, tmp_path / "model", lora=_save(tmp_path, lora))
  found = _arrays(tmp_path / "model")
  for path, x in _expected(given, added).items():
    tolerances.assert_close(found[path], x, "float32")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_lora_of_zeros_changes_no_bit(dtype, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed, dtype=dtype)
  given["blocks.0.ffn.0.weight"][0] = -0.0
  safetensors_numpy.save_file(given, tmp_path / "given.safetensors")
  lora, _ = tiny_lora.draw(rng, "peft")
  zero = {n: np.zeros_like(x) if "lora_B" in n else x for n, x in lora.items()}
  for changes in (dict(), dict(export="diffusers")):
    outputs = []
    for name, more in (("a", dict()), ("b", dict(lora=_save(tmp_path, zero)))):
      output = tmp_path / f"{name}{len(changes)}"
      _run(tmp_path / "given.safetensors", output, **changes, **more)
      outputs.append(output)
    a, b = (
      safetensors_numpy.load_file(next(o.glob("*.safetensors")))
      if changes
      else _arrays(o)
      for o in outputs
    )
    assert a.keys() == b.keys()
    for name, x in a.items():
      assert x.dtype == b[name].dtype and x.tobytes() == b[name].tobytes()


@pytest.mark.parametrize("stored", ["source", "float32", "bfloat16"])
def test_merged_weights_are_rounded_once(stored, tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed, dtype=ml_dtypes.bfloat16)
  lora, added = tiny_lora.draw(rng, "peft")
  source, output = tmp_path / "given.safetensors", tmp_path / "model"
  _run(source, output, lora=_save(tmp_path, lora), dtype=stored)
  found = _arrays(output)["head/kernel"]
  exact = _expected(given, added)["head/kernel"]
  name = "float32" if stored == "float32" else "bfloat16"
  assert found.dtype.name == name
  bound = dict(float32=2e-6, bfloat16=2.0**-8)[name]
  error = np.abs(found.astype(np.float64) - exact)
  # Half a unit in the last place of each number, and the sum's own rounding.
  assert (error <= bound * np.abs(exact) + 2e-6).all()


def test_a_dense_merge_becomes_latent_in_one_run(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  _write(tmp_path, seed)
  lora = _save(tmp_path, tiny_lora.draw(rng, "comfyui")[0])
  source = tmp_path / "given.safetensors"
  _run(source, tmp_path / "dense", lora=lora)
  _run(tmp_path / "dense", tmp_path / "two", to="latent")
  _run(source, tmp_path / "one", to="latent", lora=lora)
  one, two = _arrays(tmp_path / "one"), _arrays(tmp_path / "two")
  for name, x in one.items():
    np.testing.assert_array_equal(x, two[name])
  with pytest.raises(ValueError, match=r"1 layers of dense self.*--to=latent"):
    _run(tmp_path / "one", tmp_path / "o", lora=lora)
  assert not (tmp_path / "o").exists()
  # What attention to itself has nothing to do with is merged there as well.
  other, _ = tiny_lora.draw(rng, "peft", layers=("blocks.0.ffn.0", "head.head"))
  _run(tmp_path / "one", tmp_path / "o", lora=_save(tmp_path, other))
  assert (_arrays(tmp_path / "o")["head/kernel"] != one["head/kernel"]).any()


def test_keys_that_fit_nothing_are_listed(tmp_path, seed, capsys) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  lora, added = tiny_lora.draw(rng, "diffusers")
  extra = {
    f"transformer.blocks.{n}.attn2.add_k_proj.lora_A.weight": np.ones((3, 64))
    for n in range(6)
  }
  path = _save(tmp_path, lora | extra)
  source, output = tmp_path / "given.safetensors", tmp_path / "model"
  with pytest.raises(
    ValueError, match=rf"6 of {len(lora) + 6} keys .*blocks\.0.*--nolora_strict"
  ):
    _run(source, output, lora=path)
  assert not output.exists()
  _run(source, output, lora=path, lora_strict=False)
  assert "left out 6 keys" in capsys.readouterr().out
  found = _arrays(output)
  for name, x in _expected(given, added).items():
    tolerances.assert_close(found[name], x, "float32")
  (note,) = model_folder.read_config(output)["source"]["lora"]
  assert sorted(note["left_out"]) == sorted(extra)


def _bad(rng: np.random.Generator, how: str) -> Arrays:
  lora, _ = tiny_lora.draw(rng, "kohya")
  name = "lora_unet_blocks_0_self_attn_q"
  down, up = (f"{name}.lora_{half}.weight" for half in ("down", "up"))
  if how == "half":
    del lora[up]
  elif how == "another size":
    lora[up] = np.zeros((65, tiny_lora.RANK), np.float32)
  elif how == "rank":
    lora[up] = np.zeros((64, tiny_lora.RANK + 1), np.float32)
  elif how == "nan":
    lora[down][0, 0] = np.nan
  elif how == "alpha":
    lora[f"{name}.alpha"] = np.asarray(np.inf, np.float32)
  elif how == "alphas":
    lora[f"{name}.alpha"] = np.ones(2, np.float32)
  elif how == "twice":
    lora["diffusion_model.blocks.0.self_attn.q.lora_up.weight"] = lora[up]
  elif how == "dora":
    lora[f"{name}.dora_scale"] = np.ones((64, 1), np.float32)
  elif how == "loha":
    lora = {f"{name}.hada_w1_a": np.ones((64, 3), np.float32)}
  elif how == "lokr":
    lora = {f"{name}.lokr_w1": np.ones((8, 8), np.float32)}
  elif how == "another network":
    lora = {f"lora_te1_{n}": x for n, x in lora.items()}
  return lora


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ("half", r"only a part of the update of blocks\.0\.self_attn\.q"),
    (
      "another size",
      r"\(\(65, 3\), \(3, 64\)\), but the tensor has \(64, 64\)",
    ),
    ("rank", r"\(\(64, 4\), \(3, 64\)\), but the tensor"),
    ("nan", r"not finite in its update of blocks\.0\.self_attn\.q\.weight"),
    ("alpha", "numbers that are not finite"),
    ("alphas", "numbers that are not finite"),
    ("twice", r"changes blocks\.0\.self_attn\.q twice.*one adapter"),
    ("dora", "is a DoRA .*plain LoRA"),
    ("loha", "is a LoHa .*plain LoRA"),
    ("lokr", "is a LoKr .*plain LoRA"),
    ("another network", "no key that fits the network"),
  ],
)
def test_bad_loras_are_refused_before_writing(how, words, tmp_path, seed):
  _write(tmp_path, seed)
  path = _save(tmp_path, _bad(np.random.default_rng(seed), how))
  with pytest.raises(ValueError, match=words):
    _run(tmp_path / "given.safetensors", tmp_path / "model", lora=path)
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(lora="missing.safetensors"), "is no file; give a LoRA"),
    (dict(lora=__file__), r"lora='.*lora_test\.py' is of an unknown kind"),
    (dict(lora_scale="2"), "has no effect without --lora"),
    (dict(lora="x", lora_scale="nan"), "must be one finite number"),
    (dict(lora="x", lora_scale="much"), "must be one finite number"),
    (dict(lora="x", lora_scale="1,2"), "one for each of the 1 files"),
  ],
)
def test_bad_flags_are_refused(changes, words, tmp_path, seed) -> None:
  _write(tmp_path, seed)
  with pytest.raises(ValueError, match=words):
    _run(tmp_path / "given.safetensors", tmp_path / "model", **changes)


def test_an_adapter_of_peft_says_its_strength_beside_it(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  given = _write(tmp_path, seed)
  lora, added = tiny_lora.draw(rng, "peft")
  folder = tmp_path / "adapter"
  folder.mkdir()
  _save(folder, lora, "adapter_model")
  about = dict(peft_type="LORA", r=tiny_lora.RANK, lora_alpha=6)
  (folder / "adapter_config.json").write_text(json.dumps(about))
  source, output = tmp_path / "given.safetensors", tmp_path / "model"
  _run(source, output, lora=str(folder))
  factor = 6 / tiny_lora.RANK
  found = _arrays(output)
  for path, x in _expected(
    given, {name: factor * x for name, x in added.items()}
  ).items():
    tolerances.assert_close(found[path], x, "float32")
