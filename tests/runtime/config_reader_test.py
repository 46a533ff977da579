"""Tests of the door from configs to dataclasses."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any

import ml_collections
import pytest

from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
  name: str
  depth: int | None = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
  seed: int
  height: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Whole:
  common: _Common = dataclasses.field(metadata=config_reader.INLINE)
  place: _Place
  words: tuple[str, ...]
  weights: Mapping[str, str]
  seed: int
  speed: float | int = 1.0
  loud: bool = False


_VALUES: dict[str, Any] = dict(
  seed=7,
  place=dict(name="here"),
  words=" a cat ;a dog;; ",
  weights=dict(b="x", a="y"),
)


@pytest.mark.parametrize("kind", [dict, ml_collections.ConfigDict])
def test_groups_inline_keys_and_lists_find_their_fields(kind: type) -> None:
  read = config_reader.read(_Whole, kind(_VALUES | dict(height=2, speed=3)))
  assert read == _Whole(
    common=_Common(seed=7, height=2),
    place=_Place(name="here"),
    words=("a cat", "a dog"),
    weights=dict(b="x", a="y"),
    seed=7,
    speed=3,
  )


def test_finished_groups_and_tuples_stay_what_they_are() -> None:
  place = _Place(name="a;b", depth=None)
  values = _VALUES | dict(place=place, words=("a; b",))
  read = config_reader.read(_Whole, values)
  assert read.place is place and read.words == ("a; b",)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(sped=1), r"sped is unknown; use one of \['seed', 'height', 'place'"),
    (dict(place=dict(name="a", deep=1)), "place.deep is unknown; use one of"),
    (dict(place=dict(depth=1)), "place.name is missing"),
    (dict(place=3), "place=3 must be a group"),
    (dict(place=dict(name="a", depth="1")), "place.depth='1' .* int or None"),
    (dict(speed="fast"), "speed='fast' must be float or int"),
    (dict(seed=True), "seed=True must be int"),
    (dict(seed=1.5), "seed=1.5 must be int"),
    (dict(loud=1), "loud=1 must be bool"),
    (dict(words=3), "words=3 must be a list of str"),
    (dict(words=["a", 3]), "words=3 must be str"),
    (dict(weights=dict(a=1)), "weights.a=1 must be str"),
  ],
)
def test_wrong_keys_and_values_are_refused_in_one_sentence(
  changes: dict[str, Any], said: str
) -> None:
  with pytest.raises(ValueError, match=said):
    config_reader.read(_Whole, _VALUES | changes)


def test_missing_key_is_refused_even_where_it_lies_inline() -> None:
  values = {k: v for k, v in _VALUES.items() if k != "seed"}
  with pytest.raises(ValueError, match="seed is missing; add it"):
    config_reader.read(_Whole, values)


def test_plain_values_come_back_sorted_as_a_config_sorts_them() -> None:
  values = config_reader.to_dict(_Place(name="a", depth=2))
  config = ml_collections.ConfigDict(values)
  assert [*values.items()] == [*config.to_dict().items()]
  assert config_reader.read(_Place, values) == _Place(name="a", depth=2)


@pytest.mark.parametrize(
  ("text", "parts"),
  [
    ("a; b ;c", ("a", "b", "c")),
    ("a;;b;; ", ("a", "", "b")),
    ("", ("",)),
    (r"one\; two; three", ("one; two", "three")),
    ("salt &amp; pepper; a &#38; b", ("salt &amp; pepper", "a &#38; b")),
    ("rock&roll; jazz", ("rock&roll", "jazz")),
    ("AT&T; &; &#;", ("AT&T", "&", "&#")),
    ('say "hi";\n  it\'s ok\n', ('say "hi"', "it's ok")),
  ],
)
def test_one_rule_separates_texts_in_a_string(
  text: str, parts: tuple[str, ...]
) -> None:
  assert config_reader.split(text) == parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Numbers:
  seed: config_values.Seed = 0
  steps: Annotated[int | None, config_values.Range(1, 9)] = None
  share: float | int = 0.5
  word: str = ""


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(seed=-1), "seed=-1 must be at least 0"),
    (dict(seed=2**32), "seed=4294967296 must be at most 4294967295"),
    (dict(seed=2**70), "must be at most"),
    (dict(seed=None), "seed=None must be int"),
    (dict(steps=0), "steps=0 must be at least 1"),
    (dict(steps=10), "steps=10 must be at most 9"),
    (dict(share=float("inf")), "share=inf must be finite"),
    (dict(share=float("nan")), "share=nan must be finite"),
    (dict(share=1e300), "share=1e.300 must be at most"),
    (dict(word="a\0"), "characters that no text may have"),
    (dict(word="\udcff"), "characters that no text may have"),
    (dict(word=["a"]), r"word=\['a'\] must be str"),
  ],
)
def test_values_that_nothing_works_with_are_refused(
  changes: dict[str, Any], said: str
) -> None:
  with pytest.raises(ValueError, match=said):
    config_reader.read(_Numbers, changes)


def test_values_at_the_bounds_pass() -> None:
  values = dict(seed=2**32 - 1, steps=9, share=-1e18, word="狐\n")
  read = config_reader.read(_Numbers, values)
  assert dataclasses.asdict(read) == values
  assert config_reader.read(_Numbers, dict(steps=None)).steps is None
