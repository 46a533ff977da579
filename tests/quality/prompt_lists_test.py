"""Lists of prompts are read in both forms, or refused in one sentence."""

import json
import pathlib
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from videomla_jax.quality import plan
from videomla_jax.quality import prompt_lists

_ROWS: list[dict[str, Any]] = [
  {"prompt_en": "a dog", "dimension": ["subject_consistency"]},
  {"prompt_en": "a cat, Van Gogh style", "dimension": ["appearance_style"]},
  {
    "prompt_en": "a dog",
    "dimension": ["scene"],
    "auxiliary_info": {"scene": {}},
  },
]


def _write(folder: pathlib.Path, content: object) -> pathlib.Path:
  path = folder / "VBench_full_info.json"
  path.write_text(json.dumps(content))
  return path


def test_vbenchs_list_joins_equal_prompts(tmp_path: pathlib.Path) -> None:
  found = prompt_lists.read(_write(tmp_path, _ROWS))
  assert found.standard
  assert [(x.prompt, x.name, x.dimensions) for x in found.entries] == [
    ("a dog", "a dog", ("subject_consistency", "scene")),
    ("a cat, Van Gogh style", "a cat, Van Gogh style", ("appearance_style",)),
  ]
  (cat,) = found.chosen(["appearance_style"]).entries
  assert cat.prompt.startswith("a cat")
  assert found.chosen([]) is found
  with pytest.raises(ValueError, match="have no prompt in the list"):
    found.chosen(["color"])


def test_texts_take_the_place_of_prompts_but_not_of_names(
  tmp_path: pathlib.Path,
) -> None:
  (tmp_path / "a.txt").write_text("a dog\n\na cat\n")
  (tmp_path / "b.txt").write_text("a brown dog in snow\na black cat\n")
  found = prompt_lists.read(tmp_path / "a.txt", texts=tmp_path / "b.txt")
  assert not found.standard
  assert [(x.name, x.text) for x in found.entries] == [
    ("a dog", "a brown dog in snow"),
    ("a cat", "a black cat"),
  ]
  (tmp_path / "b.txt").write_text("a brown dog in snow\n")
  with pytest.raises(ValueError, match="has 1 lines for 2 prompts"):
    prompt_lists.read(tmp_path / "a.txt", texts=tmp_path / "b.txt")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ({}, "no list of prompts"),
    ([], "no list of prompts"),
    ([1], "entry 0 has no text 'prompt_en'"),
    ([{"prompt_en": " ", "dimension": ["scene"]}], "no text 'prompt_en'"),
    ([_ROWS[0], {"prompt_en": "x"}], "entry 1 has no list 'dimension'"),
    ([{"prompt_en": "x", "dimension": ["taste"]}], "dimension 'taste'"),
    ([{"prompt_en": "x", "dimension": [[]]}], r"dimension \[\]"),
    ([{"prompt_en": "a/b", "dimension": ["scene"]}], "be the name of a file"),
    ([{"prompt_en": "x" * 400, "dimension": ["scene"]}], "the name of a file"),
    (
      [_ROWS[0], {"prompt_en": "a \ud800", "dimension": ["scene"]}],
      r"prompts_file='.*', entry 1 has a prompt with half of a character",
    ),
  ],
)
def test_a_malformed_list_is_one_sentence(
  content: object, words: str, tmp_path: pathlib.Path
) -> None:
  with pytest.raises(ValueError, match=words):
    prompt_lists.read(_write(tmp_path, content))


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
@pytest.mark.parametrize(
  "content", [None, b"", b"{", b"\xff\xfea", b"\0", b"[" * 100_000]
)
def test_what_is_no_list_is_one_sentence(
  name: str, content: bytes | None, tmp_path: pathlib.Path
) -> None:
  if content is not None:
    (tmp_path / name).write_bytes(content)
  if name == "a.txt" and content == b"{":
    return  # a prompt like any other
  with pytest.raises(ValueError, match=r"prompts_file='.*' .*; (give|write) "):
    prompt_lists.read(tmp_path / name)


@given(st.text(min_size=1), st.integers(0, 10**6))
def test_names_are_names_and_round_trip(prompt: str, index: int) -> None:
  try:
    prompt.encode()
  except UnicodeEncodeError:
    return  # no text of a config or a file
  name = prompt_lists.file_name(prompt)
  file = f"{name}-{index}.mp4"
  assert file == pathlib.PurePath(file).name and not file.startswith(".")
  assert len(file.encode()) <= 250 and "_" not in file and "\0" not in file
  assert plan.parts_of(file.removesuffix(".mp4")) == (name, index)
  # What is a name already keeps it, so that VBench finds the prompt again; all
  # others end with a digest.
  assert name == prompt or re.search(r"(^| )[0-9a-f]{8}$", name)


def test_names_that_differ_in_capital_letters_are_known() -> None:
  assert prompt_lists.of_texts(["Cat", "cat"]).needs_case
  assert not prompt_lists.of_texts(["cat", "dog"]).needs_case


def test_long_prompts_with_one_beginning_have_different_names() -> None:
  one, two = "a" * 500, "a" * 501
  assert prompt_lists.file_name(one) != prompt_lists.file_name(two)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_prompt_has_the_name_that_another_one_is_given(prompt: str) -> None:
  # Each prompt is the file name of the one before it.
  prompts = [prompt, "a/b", "/", "_" * 300]
  for _ in range(3):
    prompts += [prompt_lists.file_name(x) for x in prompts]
  prompts = [*dict.fromkeys(prompts)]
  assert len({prompt_lists.file_name(x) for x in prompts}) == len(prompts)


def test_prompts_of_one_name_are_refused(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setattr(prompt_lists, "file_name", lambda prompt: prompt[:3])
  with pytest.raises(ValueError, match="'abcd' and 'abce' .* have one file"):
    prompt_lists.of_texts(["abcd", "abce", "abcd"])


@pytest.mark.parametrize("name", ["list.json", "list.txt"])
def test_lists_of_both_forms_have_one_bound(
  name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(prompt_lists, "_MOST_BYTES", 1000)
  (tmp_path / "small.txt").write_text("a\n")
  (tmp_path / name).write_bytes(b"a\n" * 501)
  with pytest.raises(ValueError, match="it has more than 1000 bytes"):
    prompt_lists.read(tmp_path / name)
  with pytest.raises(ValueError, match="texts_file=.* has more than 1000 byte"):
    prompt_lists.read(tmp_path / "small.txt", texts=tmp_path / name)
