"""Tests of the machine that reads pickles: what it builds, and its bounds."""

import pickle
import struct
import time
import tracemalloc

import pytest

from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import pickle_machine
from videomla_jax.storage import torch_names


def _load(program: bytes):
  names = torch_names.TorchNames(
    lambda *x: None, lambda *x: None, lazy_tensor.LazyTensor
  )
  return pickle_machine.load(program, names)


_SHARED = ["a"]
_VALUES = (
  [1, -1, 2**31, -(2**63), 2**100, 0.5, float("inf"), True, False, None],
  {"a": {"b": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, 0: "", -1: []},
  ["text", "\u00e9\ud7ff\U0001f98a", b"", b"bytes" * 100, "long" * 100],
  [_SHARED, _SHARED, {"c": _SHARED}],
)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", _VALUES, ids=range(len(_VALUES)))
def test_plain_values_are_read_as_python_reads_them(value, protocol) -> None:
  loaded = _load(pickle.dumps(value, protocol=protocol))
  # Bytes of the oldest protocols are calls, whose results are not needed.
  if protocol > 2 or b"bytes" * 100 not in value:
    assert loaded == value and type(loaded) is type(value)


def test_values_that_were_one_are_one() -> None:
  first, second, third = _load(pickle.dumps(_VALUES[3]))
  assert first is second is third["c"]


@pytest.mark.parametrize(
  ("program", "words"),
  [
    (b".", "its stack is empty"),
    (b"]", "exhausted before seeing STOP"),
    (b"", "exhausted before seeing STOP"),
    (b"t.", "a mark is missing"),
    (b"(K\x01u.", "cannot be"),
    (b"}(K\x01u.", "a key has no value"),
    (b"K\x01K\x02a.", "cannot be"),
    (b"]K\x01K\x02s.", "cannot be"),
    (b"h\x00.", "before it is there"),
    (b"K\x01)R.", "no function"),
    (b"cargparse\nNamespace\nK\x01R.", "no list of arguments"),
    (b"K\x01K\x02\x93.", "a name is no text"),
    (b"K\x01Q.", "a storage is not described"),
    (b"Pname\n.", "PERSID is not known"),
    (b"\x82\x01.", "EXT1 is not known"),
    (b"\x97.", "NEXT_BUFFER is not known"),
    (b"\x80\x06.", "protocol 6 is not known"),
    (b"K\x01}b.", "a state is given"),
    (b"ctorch\nFloatStorage\n)R.", "no function"),
    (b"ccollections\nOrderedDict\n(K\x01tR.", "other arguments"),
    (b"ccollections\nOrderedDict\n(](K\x01tatR.", "other arguments"),
    (b"\x8b" + struct.pack("<i", 200) + b"\x01" * 200 + b".", "has 1593 bits"),
    (b"L" + b"9" * 5000 + b"\n.", "limit"),
    (b"(" * 1001 + b".", "nested too deeply"),
    (b"ctorch._tensor\n_rebuild_from_type_v2\n(h\x00tR.", "before it is"),
  ],
)
def test_programs_that_make_no_sense_are_refused(program, words) -> None:
  with pytest.raises(ValueError, match=words):
    _load(program)


_STEPS = 3000
_LONG = {
  "deep lists": b"]" * 10_000 + b".",
  "deep tuples": b")" + b"\x85" * 10_000 + b".",
  "many dictionaries": b"}" * 10_000 + b".",
  "many entries of the memo": b"]" + b"\x94" * 10_000 + b".",
  # Four operations copy a thousand pairs, over and over.
  "copies": b"](" + b"NN\x86" * 500 + b"e\x94ccollections\nOrderedDict\n\x94"
  + b"h\x01h\x00\x85R0" * 5 + b".",
}  # fmt: skip


@pytest.mark.parametrize("program", _LONG.values(), ids=_LONG)
def test_operations_and_copies_are_counted(program, monkeypatch) -> None:
  monkeypatch.setattr(pickle_machine, "MOST_STEPS", _STEPS)
  with pytest.raises(ValueError, match="more than 3000 operations"):
    _load(program)


_CHEAP = {
  "an index that a list could not have": b"]r\xff\xff\xff\xff.",
  "a text of four gigabytes": b"X\xff\xff\xff\xff" + bytes(1000),
  "a text of more bytes than there are": b"\x8d" + b"\xff" * 8 + bytes(1000),
  "an integer of two gigabytes": b"\x8b\xff\xff\xff\x7f" + bytes(1000),
  "lists that double": b"]\x94" + b"(h\x00h\x00l\x94" * 100 + b".",
  "a list in itself": b"]\x94h\x00a.",
  "keys that share a hash": b"}("
  + b"".join(
    b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N"
    for i in range(2000)
  )
  + b"u.",
}


@pytest.mark.parametrize("program", _CHEAP.values(), ids=_CHEAP)
def test_small_programs_cost_little(program: bytes) -> None:
  tracemalloc.start(1)
  started = time.monotonic()
  try:
    value = _load(program)
  except ValueError:
    value = None
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  del value
  assert peak < 10_000_000
  assert time.monotonic() - started < 20
