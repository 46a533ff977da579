"""Tests of reading machine code as NVIDIA's tools print it."""

import pytest

from videomla_jax.costs import machine_code


def test_columns_are_read_from_machine_code():
  take = "UTCATOMSWS.FIND_AND_SET.ALIGN UP0, UR4, UR8 ;"
  code = f"UMOV UR8, 0x8 ;\nUMOV UR4, 0x40 ;\n{take}\n"
  assert machine_code.tmem_columns(code) == 256
  assert machine_code.tmem_columns("UMOV UR8, 0x8 ;") is None
  with pytest.raises(ValueError, match="does not tell"):
    machine_code.tmem_columns(take)
