"""Tests of the formats in which XLA serialises a program."""

import pyarrow

from videomla_jax.costs import serialized_program


def test_snappy_streams_are_read_back():
  data = b"latent attention " * 400 + bytes(range(256)) * 20
  packed = pyarrow.compress(data, codec="snappy", asbytes=True)
  assert serialized_program.unsnap(b"??" + packed, 2) == (data, 2 + len(packed))
