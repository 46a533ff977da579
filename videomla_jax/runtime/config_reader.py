"""From a config to frozen dataclasses: how every command starts.

A config file gives a `ConfigDict`, in which any name may hold anything. A
command reads it once, into dataclasses whose fields have the names of the
config's keys; what lies below the command sees only those.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import typing
from typing import Any

import ml_collections

type Values = Mapping[str, object] | ml_collections.ConfigDict
_GROUPS = (Mapping, ml_collections.ConfigDict)

# Metadata of a field whose own keys lie beside the others, in no group.
INLINE = {"inline": True}


def chosen_by(key: str, classes: Mapping[str, type]) -> dict[str, object]:
  """Gives the metadata of a group whose class depends on a value in it.

  Args:
    key: Key of the group that names the class.
    classes: Name to dataclass, all of the type that the field declares.
  """
  return {"key": key, "classes": classes}


def read[T](kind: type[T], config: Values, *, at: str = "") -> T:
  """Builds a dataclass from the config group of the same keys.

  A field that is a dataclass is read from a group of its own; with the metadata
  `INLINE` its keys are expected beside the others. A tuple of strings may be
  written as one string with semicolons, and a whole number stands for a float.

  Args:
    kind: The dataclass. A key may be missing only if its field has a default.
    config: The group.
    at: Name of the group in messages, with a full stop at its end.

  Raises:
    ValueError: If a key is unknown or missing, or a value has another type.
  """
  values = dict(config.items())  # A `ConfigDict` is no `Mapping`.
  known = [*dict.fromkeys(_keys(kind))]
  # First, since a key that is misspelt is missing as well.
  for name, value in values.items():
    if name not in known:
      raise ValueError(
        f"{at}{name}={value!r} is unknown here; leave it out, or use one of "
        f"{', '.join(known)}."
      )
  return typing.cast(T, _build(kind, values, at))


def split(text: str) -> tuple[str, ...]:
  """Splits one string at its semicolons; those at the end do not count."""
  return tuple(part.strip() for part in text.rstrip("; ").split(";"))


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
      value, name = values[field.name], f"{at}{field.name}"
      given[field.name] = _value(_class_of(field, value, name), value, name)
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise ValueError(
        f"{at}{field.name} is missing; give it a value, as the files in "
        "configs/ do."
      )
  return typing.cast(Callable[..., object], kind)(**given)


def _class_of(
  field: dataclasses.Field[object], value: object, name: str
) -> object:
  """Gives the class that a field declares, or the one that its value names."""
  classes = field.metadata.get("classes")
  if classes is None or not isinstance(value, _GROUPS):
    return field.type
  key = field.metadata["key"]
  named = value.get(key)
  if named not in classes:
    raise ValueError(
      f"{name}.{key}={named!r} is unknown; use one of {tuple(classes)}."
    )
  return classes[named]


def _value(kind: object, value: object, name: str) -> object:
  """Checks one value against its field's annotation, and freezes it."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    if isinstance(value, kind):
      return value
    if isinstance(value, _GROUPS):
      return read(kind, value, at=f"{name}.")
  elif origin in (Mapping, dict):
    if isinstance(value, _GROUPS):
      return {
        k: _value(arguments[1], v, f"{name}.{k}") for k, v in value.items()
      }
  elif origin is tuple:
    if isinstance(value, str):
      value = split(value)
    if isinstance(value, (list, tuple)):
      return tuple(_value(arguments[0], x, name) for x in value)
  else:
    allowed = arguments or (kind,)
    # True is an instance of int, so the type itself is compared.
    if Any in allowed or type(value) in allowed:
      return value
    if float in allowed and type(value) is int:
      return float(value)
  raise ValueError(f"{name}={value!r} must be of type {_described(kind)}.")


def _described(kind: object) -> str:
  """Words an annotation for a message."""
  if typing.get_origin(kind) is tuple:
    return f"list of {_described(typing.get_args(kind)[0])}"
  kinds = typing.get_args(kind) or (kind,)
  names = [str(getattr(k, "__name__", k)) for k in kinds]
  return " or ".join("None" if n == "NoneType" else n for n in names)
