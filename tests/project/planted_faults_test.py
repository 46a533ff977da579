"""Tests that the planted faults still fit the code that they change."""

import pytest

from tests import faults_to_plant
from tests import planted_faults


@pytest.mark.parametrize("fault", faults_to_plant.FAULTS, ids=lambda x: x.title)
def test_quoted_lines_occur_once_and_the_tests_exist(fault) -> None:
  path = planted_faults.ROOT / "videomla_jax" / fault.file
  assert path.read_text().count(fault.old) == 1, (
    f"quote the new line of {fault.file} in tests/faults_to_plant.py"
  )
  assert fault.old != fault.new
  for name in fault.tests:
    file, _, test = name.partition("::")
    text = (planted_faults.ROOT / "tests" / file).read_text()
    assert f"def {test}" in text, name
