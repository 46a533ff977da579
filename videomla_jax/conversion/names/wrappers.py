"""Names of tensors without the modules that training code wraps around them.

Data parallelism, compilation, checkpointing and trainers each put a network, or
a layer of it, into a module of their own, which adds a word to every name
inside: `module.`, `_orig_mod.`, `model.diffusion_model.`, and so on. One rule
takes them away, whatever they are called: a wrapper holds one module and
nothing else, and no known network has a module of that name there.
"""

from collections.abc import Iterable

type Tree = dict[str, Tree]

_NUMBER = "#"


def tree_of(names: Iterable[str]) -> Tree:
  """Returns the modules of known names, in which numbers stand for each other.

  Args:
    names: Names of tensors, with dots.
  """
  return _tree([_numbered(part) for part in n.split(".")] for n in names)


def unwrapped(names: Iterable[str], known: Tree) -> dict[str, str]:
  """Returns the names of a checkpoint without wrappers.

  Args:
    names: Names of all tensors of the checkpoint; what is a wrapper depends on
      the others.
    known: Modules of the networks that it may hold, see `tree_of`.

  Returns:
    A map from the names to shorter ones; names that stay unknown keep what
    follows the first unknown module.
  """
  split = {name: name.split(".") for name in names}
  found = _tree(split.values())
  return {name: _bare(parts, found, known) for name, parts in split.items()}


def without_private(name: str) -> str:
  """Returns a name without the wrappers of PyTorch itself.

  Their names begin with an underscore. It serves where a name stands alone, and
  nothing tells how many modules lie beside it.

  Args:
    name: Name of a tensor or module, with dots.
  """
  return ".".join(p for p in name.split(".") if not p.startswith("_"))


def _bare(parts: list[str], found: Tree, known: Tree | None) -> str:
  """Returns one name without wrappers, walking both trees from their roots."""
  kept = []
  for part in parts[:-1]:
    alone, found = len(found) == 1, found[part]
    below = None if known is None else known.get(_numbered(part))
    if below is None and known is not None and alone:
      continue
    kept.append(part)
    known = below
  return ".".join([*kept, parts[-1]])


def _numbered(part: str) -> str:
  return _NUMBER if part.isdecimal() else part


def _tree(names: Iterable[list[str]]) -> Tree:
  tree: Tree = {}
  for parts in names:
    node = tree
    for part in parts:
      node = node.setdefault(part, {})
  return tree
