"""Tests of reading `.pth`: views, types, what training code leaves in them."""

import argparse
import collections
import io
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests import tiny_release
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import pickle_machine
from videomla_jax.storage import tensor_files
from videomla_jax.storage import torch_archive
from videomla_jax.storage import torch_pickle


def _archive(path: pathlib.Path, described: bytes, **members: bytes) -> None:
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", described)
    for name, data in members.items():
      archive.writestr(f"archive/data/{name}", data)


def _text(text: str) -> bytes:
  data = text.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _numbers(*numbers: int) -> bytes:
  return b"(" + b"".join(b"J" + struct.pack("<i", x) for x in numbers) + b"t"


def _tensor(
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  *,
  offset: int = 0,
  count: int = 24,
  key: str = "0",
) -> bytes:
  """Operations that leave a tensor of float32 on the stack."""
  storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key)
  storage += _text("cpu") + b"J" + struct.pack("<i", count) + b"tQ"
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage
    + b"J"
    + struct.pack("<i", offset)
    + _numbers(*shape)
    + _numbers(*strides)
    + b"\x89ccollections\nOrderedDict\n)RtR"
  )


def _write(path: pathlib.Path, tensor: bytes, data: bytes) -> None:
  """A dictionary whose only entry is a tensor."""
  _archive(path, b"\x80\x02}" + _text("w") + tensor + b"s.", **{"0": data})


def _open(path: pathlib.Path) -> dict[str, lazy_tensor.LazyTensor]:
  with tensor_files.open_tensors(path) as tensors:
    return tensors


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, seed: int) -> None:
  rng = np.random.default_rng(seed)
  given = {
    "a": rng.standard_normal((3, 4, 5)).astype(dtype),
    "b": rng.standard_normal(7).astype(dtype),
    "c": np.asarray(rng.standard_normal(), dtype),
  }
  tiny_release.write_pth(tmp_path / "x.pth", given)
  with tensor_files.open_tensors(tmp_path / "x.pth") as tensors:
    assert tensors.keys() == given.keys()
    for name, x in given.items():
      assert (tensors[name].shape, tensors[name].dtype) == (x.shape, x.dtype)
      np.testing.assert_array_equal(tensors[name].read(), x)


@pytest.mark.parametrize("protocol", range(6))
def test_what_training_code_saves_does_not_matter(
  tmp_path, protocol: int, seed: int
) -> None:
  x = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
  others = dict(
    args=argparse.Namespace(lr=1e-4, path=pathlib.PurePosixPath("a/b")),
    history=collections.defaultdict(list, loss=[1.0, float("inf")]),
    learning_rate=np.float64(0.5),
    random_state=np.arange(5),
    seen={1, 2}, kept=frozenset("ab"), none=None, yes=True, large=2**70,
    ordered=collections.OrderedDict(a=1), data=b"\x00\xff", slices=slice(1),
    rates=[{"lr": 1e-4, "betas": (0.9, 0.999)}], numbers={0: {"step": 1}},
    pairs={(1, 2): "x"}, unicode="\U0001f98a", kinds=[dict, int, str, list],
  )  # fmt: skip
  described = pickle.dumps(others, protocol=protocol)
  described = described[:-1] + _text("generator_ema") + b"}" + _text("w")
  described += _tensor((4, 6), (6, 1)) + b"ss."
  _archive(tmp_path / "x.pth", described, **{"0": x.tobytes()})
  with tensor_files.open_tensors(tmp_path / "x.pth") as tensors:
    assert tensors.keys() == {"w"}
    np.testing.assert_array_equal(tensors["w"].read(), x)


def test_networks_are_found_below_other_dictionaries(tmp_path, seed) -> None:
  x = np.random.default_rng(seed).standard_normal(24).astype(np.float32)
  described = b"\x80\x02}" + _text("state") + b"}" + _text("ema") + b"}"
  described += _text("w") + _tensor((24,), (1,)) + b"sss."
  _archive(tmp_path / "x.pth", described, **{"0": x.tobytes()})
  with tensor_files.open_tensors(tmp_path / "x.pth", select="state.ema") as t:
    np.testing.assert_array_equal(t["w"].read(), x)


def test_views_share_a_storage(tmp_path, seed: int) -> None:
  # A transposed slice, which torch.save keeps as offset and strides.
  flat = np.random.default_rng(seed).standard_normal(24).astype(np.float32)
  _write(tmp_path / "x.pth", _tensor((3, 5), (1, 4), offset=4), flat.tobytes())
  with tensor_files.open_tensors(tmp_path / "x.pth") as tensors:
    expected = flat[4:].reshape(5, 4).T[:3]
    np.testing.assert_array_equal(tensors["w"].read(), expected)


@pytest.mark.parametrize(
  ("tensor", "words"),
  [
    (_tensor((3, 6), (1, 4), offset=4), "does not fit its storage"),
    (_tensor((3, 5), (-1, 4)), "does not fit its storage"),
    (_tensor((3, 5), (1, 4), offset=-1), "does not fit its storage"),
    (_tensor((3, 5), (1,)), "does not fit its storage"),
    (_tensor((24,), (1,), count=2**31 - 1), "a storage has 96 bytes and not"),
    (_tensor((24,), (1,), count=12), "a storage has 96 bytes and not 48"),
    (_tensor((24,), (1,), key="1"), r"member 'archive/data/1' is missing"),
    (_tensor((24,), (1,), key="../data.pkl"), "is missing"),
    # No numbers of the file are read, but a network of 64 GB is written.
    (_tensor((2**17, 2**17), (0, 0)), "repeat the same numbers"),
    (_tensor((1,) * 17, (0,) * 17), "other arguments than PyTorch"),
  ],
)
def test_tensors_must_fit_what_is_stored(tmp_path, tensor, words) -> None:
  _write(tmp_path / "x.pth", tensor, bytes(96))
  with pytest.raises(ValueError, match=rf"x\.pth.*{words}"):
    _open(tmp_path / "x.pth")


class _Acts:
  """Unpickling this anywhere else would create a file."""

  def __init__(self, path: str):
    self._path = path

  def __reduce__(self):
    return open, (self._path, "w")


@pytest.mark.parametrize("where", ["top", "value", "key"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, where) -> None:
  path, trap = tmp_path / "x.pth", tmp_path / "trap"
  acts = _Acts(str(trap))
  content = {
    "top": acts,
    "value": {"weight": acts},
    "key": {"weight": [("deep", {"deeper": acts})]},
  }[where]
  _archive(path, pickle.dumps(content))
  with pytest.raises(ValueError, match="asks to run .*open.*it was refused"):
    _open(path)
  assert not trap.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("collections", "UserDict"),
    ("numpy", "load"),
    ("pathlib2", "Path"),
  ],
)
@pytest.mark.parametrize("how", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_every_other_name_is_refused(tmp_path, module, name, how) -> None:
  described = {
    "GLOBAL": f"c{module}\n{name}\n)R.".encode(),
    "STACK_GLOBAL": _text(module) + _text(name) + b"\x93)R.",
    "INST": f"(i{module}\n{name}\n.".encode(),
  }[how]
  _archive(tmp_path / "x.pth", described)
  with pytest.raises(ValueError, match=f"asks to run {module}.{name}"):
    _open(tmp_path / "x.pth")


@pytest.mark.parametrize(
  "target",
  [b"ctorch\nBFloat16Storage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"],
)
def test_names_of_pytorch_cannot_be_given_a_state(tmp_path, target) -> None:
  # The numbers would change NumPy's type of all bfloat16 in this process.
  state = b"(J\x03\0\0\0" + _text("<") + b"NNNJ\0\0\0\0J\x01\0\0\0J\0\0\0\0t"
  _archive(tmp_path / "x.pth", b"\x80\x02" + target + state + b"b0}.")
  before = repr(np.dtype(ml_dtypes.bfloat16)), np.dtype(np.float32).itemsize
  with pytest.raises(ValueError, match="a state is given to what has none"):
    _open(tmp_path / "x.pth")
  after = repr(np.dtype(ml_dtypes.bfloat16)), np.dtype(np.float32).itemsize
  assert after == before


def test_results_of_calls_are_plain_values(tmp_path) -> None:
  """Whatever is called, nothing of ours comes back that could be changed."""
  for call in (
    b"cargparse\nNamespace\n)R",
    b"cargparse\nNamespace\n)\x81}" + _text("__class__") + b"Nsb",
    b"cpathlib\nPosixPath\n(" + _text("/etc/passwd") + b"tR",
    b"c_codecs\nencode\n(" + _text("a") + _text("b") + b"tR",
  ):
    names = torch_pickle.torch_names.TorchNames(
      lambda *x: None, lambda *x: None, lazy_tensor.LazyTensor
    )
    value = pickle_machine.load(b"\x80\x02" + call + b".", names)
    assert type(value) is pickle_machine.Inert


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "is damaged or incomplete .*download it again"),
    (pickle.dumps({"a": 1}), "old kind of pickle"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "is a web page"),
  ],
)
def test_what_is_no_archive_is_refused(tmp_path, content, words) -> None:
  (tmp_path / "x.pth").write_bytes(content)
  with pytest.raises(ValueError, match=words):
    _open(tmp_path / "x.pth")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ([1, 2], "holds a list"),
    ({"step": 3}, "holds no tensors"),
  ],
)
def test_archives_without_weights_are_refused(tmp_path, content, words):
  _archive(tmp_path / "x.pth", pickle.dumps(content))
  with pytest.raises(ValueError, match=words):
    _open(tmp_path / "x.pth")


def test_a_tensor_alone_is_no_checkpoint(tmp_path) -> None:
  _archive(tmp_path / "x.pth", _tensor((24,), (1,)) + b".", **{"0": bytes(96)})
  with pytest.raises(ValueError, match="holds a tensor; give a dictionary"):
    _open(tmp_path / "x.pth")


def test_a_cut_archive_is_refused(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "x.pth"
  tiny_release.write_pth(
    path, {"a": rng.standard_normal(500).astype(np.float32)}
  )
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match="download it again"):
    _open(path)


@pytest.mark.parametrize("view", [False, True])
def test_a_flipped_byte_of_a_storage_is_noticed(tmp_path, view, seed) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "x.pth"
  x = rng.standard_normal(24).astype(np.float32)
  _write(path, _tensor((5 if view else 24,), (1,)), x.tobytes())
  data = bytearray(path.read_bytes())
  at = bytes(data).index(x.tobytes()) + int(rng.integers(x.nbytes))
  data[at] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  with (
    tensor_files.open_tensors(path) as tensors,
    pytest.raises(ValueError, match=r"x\.pth.*damaged.*CRC"),
  ):
    tensors["w"].read()


def test_a_compressed_archive_is_refused(tmp_path) -> None:
  with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("archive/data.pkl", _tensor((24,), (1,)) + b".")
    z.writestr("archive/data/0", bytes(96))
  with pytest.raises(ValueError, match="compressed members; save it again"):
    _open(tmp_path / "x.pth")


def test_members_must_not_overlap_or_repeat(tmp_path) -> None:
  path = tmp_path / "x.pth"
  _write(path, _tensor((24,), (1,)), bytes(96))
  with zipfile.ZipFile(path, "a") as archive:
    with pytest.warns(UserWarning, match="Duplicate name"):
      archive.writestr("archive/data/0", bytes(96))
  with pytest.raises(ValueError, match="two members of one name"):
    _open(path)
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as archive:
    archive.writestr("archive/data.pkl", b"}.")
    first = archive.infolist()[0]
    archive.filelist.append(zipfile.ZipInfo("again"))
    archive.filelist[-1].header_offset = first.header_offset
    archive.filelist[-1].CRC = first.CRC
    archive.filelist[-1].file_size = archive.filelist[-1].compress_size = 2
  path.write_bytes(data.getvalue())
  with (
    pytest.raises(ValueError, match="members that overlap"),
    torch_archive.open_archive(path),
  ):
    pass
