"""Configs of models as the plain JSON values that lie beside their weights."""

from collections.abc import Mapping
import dataclasses
import math
import types
import typing
from typing import Any, ClassVar

# No size of a published network is larger; the vocabulary of its text encoder
# has 256,384 ids. A config may come from anybody, and building what it
# describes must not take for ever.
_LARGEST = 2**20
_DTYPES = ("float32", "bfloat16", "float16")
_LONGEST = 100  # letters of a name, or entries of a list


class PlainConfig:
  """Adds a round trip through plain values to a frozen dataclass.

  JSON knows neither tuples nor nested classes, so reading looks at the types
  that the fields declare.

  Attributes:
    title: What messages call the config.
    remedy: What a user can do about a config that does not fit.
  """

  title: ClassVar[str] = "model config"
  remedy: ClassVar[str] = "convert it again"

  @classmethod
  def from_dict[Config](cls: type[Config], values: object) -> Config:
    """Returns the config that `to_dict` turned into plain values.

    Args:
      values: Plain values of all fields that have no default.

    Raises:
      ValueError: If a field is missing, unknown, of another kind or out of
        range.
    """
    try:
      return _build(cls, values, at="")
    except ValueError as error:
      words = typing.cast(type[PlainConfig], cls)
      raise ValueError(
        f"{words.title} does not fit this version ({error}); {words.remedy}."
      ) from error

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as values that JSON can hold."""
    return _plain(dataclasses.asdict(typing.cast(Any, self)))


def _build[Kind](kind: type[Kind], values: object, *, at: str) -> Kind:
  """Makes one dataclass; fields that are dataclasses are made likewise."""
  if not isinstance(values, Mapping):
    raise ValueError(f"{at.rstrip('.') or 'it'} is no group of values")
  hints = typing.get_type_hints(kind)
  fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
  unknown = sorted(str(name)[:_LONGEST] for name in values.keys() - fields)
  if unknown:
    raise ValueError(f"{at}{unknown[0]!r} is unknown")
  given = {
    name: _typed(hints[name], value, f"{at}{name}")
    for name, value in values.items()
  }
  missing = [
    name
    for name, field in fields.items()
    if name not in given
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise ValueError(f"{at}{missing[0]} is missing")
  return kind(**given)


def _typed(hint: Any, value: object, name: str) -> Any:
  """Returns a value of the declared type, or says that it is none."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return _any_of(arguments, value, name)
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return _build(hint, value, at=f"{name}.")
  if origin is tuple and isinstance(value, (list, tuple)):
    # JSON turned tuples into lists, with which a frozen dataclass has no hash.
    return _entries(arguments, value, name)
  if origin is typing.Literal and value in arguments:
    return value
  if isinstance(hint, type) and _fits(hint, value):
    # JSON has one kind of numbers.
    return float(typing.cast(float, value)) if hint is float else value
  raise ValueError(f"{name}={_shown(value)} is of another kind or too large")


def _any_of(hints: tuple[Any, ...], value: object, name: str) -> Any:
  """Returns a value of the first type that it fits."""
  if value is None and types.NoneType in hints:
    return None
  first: ValueError | None = None
  for hint in hints:
    if hint is not types.NoneType:
      try:
        return _typed(hint, value, name)
      except ValueError as error:
        first = first or error
  assert first is not None  # A union has more than None.
  raise first


def _entries(
  hints: tuple[Any, ...], values: list[object] | tuple[object, ...], name: str
) -> tuple[Any, ...]:
  """Returns a tuple of the declared length and types."""
  any_length = hints[-1] is Ellipsis
  length = _LONGEST if any_length else len(hints)
  if len(values) > length or (not any_length and len(values) < length):
    raise ValueError(f"{name} has {len(values)} entries")
  kinds = hints[:1] * len(values) if any_length else hints
  return tuple(
    _typed(kind, value, f"{name}[{i}]")
    for i, (kind, value) in enumerate(zip(kinds, values, strict=True))
  )


def _fits(kind: type, value: object) -> bool:
  """Says whether a plain value is of a type, and no larger than any size."""
  if isinstance(value, bool):
    return kind is bool  # Python's booleans are integers, too.
  if isinstance(value, str):
    return kind is str and len(value) <= _LONGEST
  if isinstance(value, int):
    return kind in (int, float) and abs(value) <= _LARGEST
  return (
    isinstance(value, kind)
    and isinstance(value, float)
    and (math.isfinite(value))
  )


def _shown(value: object) -> str:
  """Returns a value as a message shows it, however long it is."""
  text = ascii(value)
  return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_range(
  config: object, **ranges: tuple[float | int, float | int]
) -> None:
  """Refuses numbers that no network has.

  Args:
    config: A config whose fields are looked at.
    **ranges: Smallest and largest value of a field, by its name; those of a
      tuple hold for each entry.

  Raises:
    ValueError: If a field is out of its range.
  """
  for name, (least, most) in ranges.items():
    value = getattr(config, name)
    for number in value if isinstance(value, tuple) else (value,):
      if number is not None and not least <= number <= most:
        raise ValueError(
          f"{name}={number} must be between {least:g} and {most:g}."
        )


def check_dtype(config: object, *names: str) -> None:
  """Refuses number formats in which no network computes.

  Args:
    config: A config whose fields are looked at.
    *names: Fields that hold the name of a format.

  Raises:
    ValueError: If a field has another name.
  """
  for name in names:
    if getattr(config, name) not in _DTYPES:
      raise ValueError(
        f"{name}={getattr(config, name)!r} is unknown; use one of {_DTYPES}."
      )


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  return [_plain(x) for x in value] if isinstance(value, tuple) else value
