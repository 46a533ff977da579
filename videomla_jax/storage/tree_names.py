"""Names with slashes for the leaves of pytrees, and their comparison."""

from typing import Any

import jax
from jaxtyping import PyTree


def check_same(
  expected: dict[str, tuple[int, ...]],
  given: dict[str, tuple[int, ...]],
  *,
  what: str,
  error: type[ValueError] = ValueError,
) -> None:
  """Raises one error that lists every missing, unknown or mis-shaped name.

  Args:
    expected: Shapes by name that are needed.
    given: Shapes by name that are there.
    what: What the names belong to, for the error.
    error: Kind of the error.
  """
  differences = {
    "missing": sorted(expected.keys() - given.keys()),
    "unknown": sorted(given.keys() - expected.keys()),
    "mis-shaped": [
      f"{name} {given[name]} instead of {expected[name]}"
      for name in sorted(expected.keys() & given.keys())
      if expected[name] != given[name]
    ],
  }
  if any(differences.values()):
    listed = ", ".join(
      f"{k}: {_shorten(v)}" for k, v in differences.items() if v
    )
    raise error(
      f"{what} do not fit the model ({listed}); build the model from the"
      " config saved with them"
    )


def _shorten(names: list[str], limit: int = 8) -> str:
  """Joins the first names and counts those beyond `limit`."""
  rest = f" and {len(names) - limit} more" if len(names) > limit else ""
  return "[" + ", ".join(names[:limit]) + rest + "]"


def flat_dict(tree: PyTree) -> dict[str, Any]:
  """Flattens nested dictionaries into one whose keys have slashes."""
  if not isinstance(tree, dict):
    return {"": tree}
  return {
    f"{key}/{name}" if name else str(key): x
    for key, value in tree.items()
    for name, x in flat_dict(value).items()
  }


def nested_dict(flat: dict[str, Any]) -> dict[str, Any]:
  """Nests what `flat_dict` flattened, with strings as keys."""
  nested: dict[str, Any] = {}
  for name, value in flat.items():
    *folders, last = name.split("/")
    level = nested
    for folder in folders:
      level = level.setdefault(folder, {})
    level[last] = value
  return nested


def flat_tree(tree: PyTree) -> dict[str, Any]:
  """Flattens any pytree into a dictionary whose keys have slashes.

  Args:
    tree: Any pytree.

  Raises:
    ValueError: If two leaves have one name.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = jax.tree_util.keystr
  flat = {name(path, simple=True, separator="/"): x for path, x in leaves}
  if len(flat) != len(leaves):
    raise ValueError(
      "state has two leaves of one name; give their containers distinct keys"
    )
  return flat
