"""What all configs share: variants as arguments, never as copies."""

from typing import Any


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Turns `file.py:dense,seed=3` into typed values.

  Args:
    arg: Comma-separated `name=value`; a bare name is a switch (True), or the
      value of the one default that is a string and comes first.
    **defaults: Names, types and default values.

  Returns:
    The defaults with the given values.

  Raises:
    ValueError: If a name is unknown or a value has the wrong type.
  """
  values = dict(defaults)
  first = next(iter(defaults), None)
  for part in filter(None, (arg or "").split(",")):
    name, given, text = part.partition("=")
    if not given and isinstance(defaults.get(name), bool):
      values[name] = True
    elif not given and isinstance(defaults.get(first), str):
      values[first] = name
    elif name not in defaults or not given:
      raise ValueError(
        f"config argument {part!r} is unknown; use one of "
        f"{', '.join(f'{k}={v}' for k, v in defaults.items())}."
      )
    else:
      values[name] = _typed(name, text, defaults[name])
  return values


def _typed(name: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    if text not in ("true", "false", "True", "False"):
      raise ValueError(
        f"config argument {name}={text!r} must be true or false."
      )
    return text in ("true", "True")
  try:
    return type(default)(text)
  except ValueError as error:
    raise ValueError(
      f"config argument {name}={text!r} must be of type "
      f"{type(default).__name__}."
    ) from error
