"""What is on disk of a run of the whole way."""

import pytest

from videomla_jax.chain import progress


def test_progress_comes_back_as_it_was_written(tmp_path) -> None:
  assert progress.read(tmp_path) == progress.Progress()
  written = progress.Progress(12.5, {"vae": 7}, {"vae": 0.25}, {"vae": 3.0})
  progress.write(tmp_path, written)
  assert progress.read(tmp_path) == written


@pytest.mark.parametrize("text", ["{}", '{"seconds": "x"}', "not json"])
def test_a_damaged_file_is_named(tmp_path, text) -> None:
  (tmp_path / "chain.json").write_text(text)
  with pytest.raises(ValueError, match=r"chain\.json"):
    progress.read(tmp_path)
