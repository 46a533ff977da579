"""Configs of models as the plain JSON values that lie beside their weights."""

import dataclasses
import types
import typing
from typing import Any, ClassVar


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
  def from_dict[Config](cls: type[Config], values: dict[str, Any]) -> Config:
    """Returns the config that `to_dict` turned into plain values.

    Args:
      values: Plain values of all fields that have no default.

    Raises:
      ValueError: If a field is missing, unknown or of another kind.
    """
    try:
      return _build(cls, values)
    except (AttributeError, KeyError, TypeError) as error:
      words = typing.cast(type[PlainConfig], cls)
      raise ValueError(
        f"{words.title} does not fit this version ({error}); {words.remedy}."
      ) from error

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as values that JSON can hold."""
    return _plain(dataclasses.asdict(typing.cast(Any, self)))


def _build[Kind](kind: type[Kind], values: dict[str, Any]) -> Kind:
  """Makes one dataclass; fields that are dataclasses are made likewise."""
  hints = typing.get_type_hints(kind)
  return kind(**{k: _typed(hints.get(k), v) for k, v in values.items()})


def _typed(hint: Any, value: Any) -> Any:
  # JSON turned tuples into lists, with which a frozen dataclass has no hash.
  if isinstance(value, list):
    return tuple(value)
  if isinstance(value, dict):
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for kind in options:
      if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value)
  return value


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  return [_plain(x) for x in value] if isinstance(value, tuple) else value
