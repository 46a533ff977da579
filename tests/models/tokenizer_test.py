"""Tests of the tokenizer: cleaning, ends, padding, bad files."""

import time

import numpy as np
import pytest

from videomla_jax.models import tokenizer

_TEXTS = ["a red fox runs through snow", "two cats & a dog on the sofa"]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("  a\tred \n fox ", "a red fox"),
    ("cats &amp;amp; dogs", "cats & dogs"),
    # ftfy takes text with < for HTML and leaves its entities alone.
    ("1 < 2 &amp;amp; dogs", "1 < 2 & dogs"),
    ("caf\u00c3\u00a9", "café"),
    ("\u201cquoted\u201d", '"quoted"'),
    ("", ""),
  ],
)
def test_cleaning_mends_text(text: str, expected: str) -> None:
  assert tokenizer.clean(text) == expected
  assert tokenizer.clean(expected) == expected


def test_texts_that_are_escaped_without_end_are_cleaned_in_no_time() -> None:
  assert tokenizer.clean("a &amp;amp;amp; b") == "a & b"
  deep = "a &" + "amp;" * 5000 + " b"
  started = time.process_time()
  assert tokenizer.clean(deep) == " ".join(deep.replace("&", " ").split())
  nested = "&#5" * 2000 + ";" * 2000
  tokenizer.clean(nested)
  assert time.process_time() - started < 2  # each round takes milliseconds


def test_ids_end_and_are_padded() -> None:
  tokens = tokenizer.train_tokenizer(_TEXTS)
  ids, lengths = tokens([*_TEXTS, ""])
  assert ids.shape == (3, 512)
  for row, length in zip(ids, lengths, strict=True):
    assert row[length - 1] == 1 and not row[length:].any()
    assert (row[: length - 1] > 1).all()
  assert lengths[2] == 1 and lengths[:2].min() > 2
  assert ids.max() < tokens.vocabulary


def test_spelling_of_white_space_and_entities_does_not_matter() -> None:
  tokens = tokenizer.train_tokenizer(_TEXTS)
  a, _ = tokens(_TEXTS)
  b, _ = tokens(
    [f" {t.replace(' ', '  ').replace('&', '&amp;')}" for t in _TEXTS]
  )
  np.testing.assert_array_equal(a, b)


def test_long_texts_are_cut_before_their_end() -> None:
  tokens = tokenizer.train_tokenizer(_TEXTS)
  ids, lengths = tokens(["fox " * 600])
  assert lengths.tolist() == [512]
  assert ids[0, -1] == 1 and (ids[0, :-1] > 1).all()


def test_training_is_deterministic() -> None:
  a, b = (tokenizer.train_tokenizer(_TEXTS) for _ in range(2))
  np.testing.assert_array_equal(a(_TEXTS)[0], b(_TEXTS)[0])


def test_a_folder_is_as_good_as_the_file(tmp_path) -> None:
  model = tokenizer.train_tokenizer(_TEXTS)._pieces.serialized_model_proto()
  (tmp_path / "spiece.model").write_bytes(model)
  for path in (tmp_path, tmp_path / "spiece.model"):
    assert tokenizer.Tokenizer.load(path).vocabulary > 3


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_bad_files_are_refused(tmp_path, content) -> None:
  path = tmp_path / "spiece.model"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=r"spiece.model of the release"):
    tokenizer.Tokenizer.load(path)
