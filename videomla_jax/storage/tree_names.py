"""Slash-separated names for the leaves of pytrees, and their comparison."""

import typing

import jax

PyTree = typing.Any


def check_same(
  own: dict[str, tuple[int, ...]],
  given: dict[str, tuple[int, ...]],
  *,
  what: str,
  error: type[ValueError] = ValueError,
) -> None:
  """Raises one error that lists every missing, unknown or mis-shaped name."""
  parts = {
    "missing": sorted(own.keys() - given.keys()),
    "unknown": sorted(given.keys() - own.keys()),
    "mis-shaped": [
      f"{name} {given[name]} instead of {own[name]}"
      for name in sorted(own.keys() & given.keys())
      if own[name] != given[name]
    ],
  }
  if any(parts.values()):
    listed = ", ".join(f"{k}: {_shorten(v)}" for k, v in parts.items() if v)
    raise error(
      f"{what} do not fit the model ({listed}); build the model from the"
      " config saved with them"
    )


def _shorten(names: list[str], limit: int = 8) -> str:
  """Joins names, counting those beyond `limit`."""
  rest = f" and {len(names) - limit} more" if len(names) > limit else ""
  return "[" + ", ".join(names[:limit]) + rest + "]"


def flat_dict(tree: PyTree) -> dict[str, typing.Any]:
  """Flattens nested dictionaries to names with slashes."""
  if not isinstance(tree, dict):
    return {"": tree}
  return {
    f"{key}/{name}" if name else str(key): x
    for key, value in tree.items()
    for name, x in flat_dict(value).items()
  }


def nested_dict(flat: dict[str, typing.Any]) -> dict[str, typing.Any]:
  """Inverts `flat_dict`, with string keys."""
  nested: dict[str, typing.Any] = {}
  for name, value in flat.items():
    *folders, last = name.split("/")
    level = nested
    for folder in folders:
      level = level.setdefault(folder, {})
    level[last] = value
  return nested


def flat_tree(tree: PyTree) -> dict[str, typing.Any]:
  """Flattens any pytree to unique names with slashes."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = jax.tree_util.keystr
  flat = {name(path, simple=True, separator="/"): x for path, x in leaves}
  if len(flat) != len(leaves):
    raise ValueError(
      "state has two leaves of one name; give their containers distinct keys"
    )
  return flat
