"""Tests of paths as users write them."""

import pathlib

import pytest

from videomla_jax.storage import paths


def test_a_tilde_is_the_home(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("HOME", str(tmp_path))
  assert paths.local("~/a b/狐", "output") == f"{tmp_path}/a b/狐"
  assert paths.local("~", "output") == str(tmp_path)
  # A home need not exist.
  monkeypatch.setenv("HOME", str(tmp_path / "missing"))
  assert paths.local("~/a", "x") == str(tmp_path / "missing" / "a")


@pytest.mark.parametrize(
  "path",
  [
    *(
      "",
      "shipped:small_student",
      "random:wan_tiny",
      "a:b/c",
      "./gs:",
      "12:30",
    ),
    *("~~", "a~", "/data/~x", "ab c/ü", "C:x"),
  ],
)
def test_other_names_stay_as_they_are(path: str, tmp_path, monkeypatch) -> None:
  monkeypatch.chdir(tmp_path)
  if path == "~~":
    (tmp_path / path).touch()
  assert paths.local(path, "x") == path
  if path != "./gs:":  # A path without the dot looks like an address.
    path = str(pathlib.PurePath(path))
    assert paths.local(pathlib.PurePath(path), "x") == path


@pytest.mark.parametrize(
  "path",
  [
    *("gs://b/x", "s3://b", "hf://a/b", "http://h/x", "https://h", "file:///x"),
    *(
      "GS://b/x",
      "  s3://b",
      "abfss://c@a/x",
      "gs:/b/x",
      "gs:",
      "tcp://1:2",
      "r2:/b",
    ),
  ],
)
def test_addresses_are_refused(path: str) -> None:
  with pytest.raises(ValueError, match="x=.* is an address, and only local"):
    paths.local(path, "x")


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("~nobody_of_this_name/x", "home folder that is not known"),
    ("a\0b", "a zero character"),
  ],
)
def test_what_is_no_path_is_refused(path, said: str) -> None:
  with pytest.raises(ValueError, match=said):
    paths.local(path, "x")
