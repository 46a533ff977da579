"""From a config to frozen dataclasses: how every command starts.

A config file gives a `ConfigDict`, in which any name may hold anything. A
command reads it once, into dataclasses whose fields have the names of the
config's keys; what lies below the command sees only those.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import html.entities
import math
import re
import typing
from typing import Any

import ml_collections

type Values = Mapping[str, object] | ml_collections.ConfigDict

# Metadata of a field whose own keys lie beside the others, in no group.
INLINE = {"inline": True}

# What may be a separator, or may only look like one.
_SEMICOLON = re.compile(r"(\\;|&#?\w+;|;)")
_LARGEST = 2**63 - 1  # of what arrays and files can count


def read[T](kind: type[T], config: Values, *, at: str = "") -> T:
  """Builds a dataclass from the config group of the same keys.

  A field that is a dataclass is read from a group of its own; with the metadata
  `INLINE` its keys are expected beside the others. A tuple of strings may be
  written as one string with semicolons.

  Args:
    kind: The dataclass. A key may be missing only if its field has a default.
    config: The group.
    at: Name of the group in messages, with a full stop at its end.

  Raises:
    ValueError: If a key is unknown or missing, or a value has another type.
  """
  values = dict(config.items())  # A `ConfigDict` is no `Mapping`.
  # Unknown keys are reported before missing ones, since a misspelt key is both.
  known = [*dict.fromkeys(_keys(kind))]
  unknown = sorted(values.keys() - set(known))
  if unknown:
    raise ValueError(f"{at}{unknown[0]} is unknown; use one of {known}.")
  return typing.cast(T, _build(kind, values, at))


def split(text: str) -> tuple[str, ...]:
  r"""Splits one string at its semicolons; those at the end do not count.

  This is the rule of every key that holds a list in one string. A semicolon
  that belongs to a text is written `\;`. One that ends a character reference of
  HTML, such as `&amp;`, belongs to it without that.

  Args:
    text: What the user wrote.
  """
  parts = [""]
  for piece in _SEMICOLON.split(text):
    is_reference = piece[1:] in html.entities.html5 or re.match(
      "&#([0-9]+|x[0-9a-f]+);", piece, re.IGNORECASE
    )
    if piece.endswith(";") and piece != r"\;" and not is_reference:
      # "&roll;" is no character: its semicolon separates like any other.
      parts[-1] += piece[:-1]
      parts.append("")
    else:
      parts[-1] += piece.replace(r"\;", ";")
  parts = [part.strip() for part in parts]
  while len(parts) > 1 and not parts[-1]:
    parts.pop()
  return tuple(parts)


def to_dict(group: object) -> dict[str, object]:
  """Gives the plain values of a group, sorted by key as a config sorts them."""
  values = dataclasses.asdict(typing.cast(Any, group))
  return dict(sorted(values.items()))


def _fields(kind: object) -> tuple[dataclasses.Field[object], ...]:
  """Lists the fields of a dataclass."""
  # The type of "any dataclass" is private to the type checkers' own stubs.
  return dataclasses.fields(typing.cast(Any, kind))


def _keys(kind: object) -> list[str]:
  """Lists the keys of a group, those of inline fields included."""
  keys: list[str] = []
  for field in _fields(kind):
    inline = field.metadata.get("inline")
    keys += _keys(field.type) if inline else [field.name]
  return keys


def _build(kind: object, values: dict[str, object], at: str) -> object:
  """Fills the fields that have a value; the others keep their defaults."""
  given: dict[str, object] = {}
  for field in _fields(kind):
    if field.metadata.get("inline"):
      given[field.name] = _build(field.type, values, at)
    elif field.name in values:
      value = values[field.name]
      given[field.name] = _value(field.type, value, f"{at}{field.name}")
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise ValueError(f"{at}{field.name} is missing; add it to the config.")
  return typing.cast(Callable[..., object], kind)(**given)


def _value(kind: object, value: object, name: str) -> object:
  """Checks one value against its field's annotation, and freezes it."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is typing.Annotated:
    value = _value(arguments[0], value, name)
    # What lies beside the type are functions that check or complete a value.
    for change in arguments[1:]:
      value = change(value, name)
    return value
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    if isinstance(value, kind):
      return value
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      return read(kind, value, at=f"{name}.")
  elif origin is Mapping:
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      return {
        k: _value(arguments[1], v, f"{name}.{k}") for k, v in value.items()
      }
  elif origin is tuple:
    if isinstance(value, str):
      value = split(value)
    if isinstance(value, (list, tuple)):
      return tuple(_value(arguments[0], x, name) for x in value)
  elif _fits(arguments or (typing.cast(type, kind),), value):
    _check_plain(value, name)
    return value
  raise ValueError(f"{name}={value!r} must be {_described(kind)}.")


def _fits(allowed: tuple[type, ...], value: object) -> bool:
  """Says whether a plain value is of one of some types."""
  if isinstance(value, bool) and bool not in allowed:
    return False  # Python's booleans are integers, too.
  return isinstance(value, allowed)


def _check_plain(value: object, name: str) -> None:
  """Refuses numbers and texts that nothing can work with."""
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{name}={value} must be finite; write a number.")
  if isinstance(value, (int, float)) and abs(value) > _LARGEST:
    raise ValueError(f"{name}={value!r} must be at most {_LARGEST:.0e}.")
  # A character that stands for a byte which is not UTF-8 cannot be written.
  if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
    raise ValueError(
      f"{name}={value!r} has characters that no text may have; remove them."
    )


def _described(kind: object) -> str:
  """Words an annotation for a message."""
  if typing.get_origin(kind) is typing.Annotated:
    return _described(typing.get_args(kind)[0])
  if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is Mapping:
    return "a group of keys"
  if typing.get_origin(kind) is tuple:
    return f"a list of {_described(typing.get_args(kind)[0])}"
  kinds = typing.get_args(kind) or (kind,)
  names = [str(getattr(k, "__name__", k)) for k in kinds]
  return " or ".join("None" if n == "NoneType" else n for n in names)
