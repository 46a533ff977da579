"""A few hundred damaged files of every kind are read or refused well."""

import pathlib

import pytest

from tests import fuzz
from tests import mutations

_COUNT = 300


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused(
  name: str, tmp_path: pathlib.Path, seed: int
) -> None:
  mutations.run(fuzz.reader(name), tmp_path, count=_COUNT, seed=seed)
