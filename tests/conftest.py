"""Shared test set-up: the CPU, and a fresh seed that every failure names."""

import collections.abc
import contextlib
import os
import signal
import sys
import typing

import pytest

# Tests mean the same thing on every machine; GPU tests override this.
_PLATFORMS = os.environ.get("VIDEOMLA_PLATFORMS", "cpu")
os.environ["JAX_PLATFORMS"] = _PLATFORMS
if "jax" in sys.modules:  # A plugin was faster.
  sys.modules["jax"].config.update("jax_platforms", _PLATFORMS)

_SEED = "VIDEOMLA_SEED"

# A shell lets what it runs in the background ignore SIGINT, and `nohup` SIGHUP;
# children inherit that, and tests that stop a child would wait for ever.
for _number, _usual in (
  (signal.SIGINT, signal.default_int_handler),
  (signal.SIGHUP, signal.SIG_DFL),
):
  if signal.getsignal(_number) is signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # only the main thread may listen
      signal.signal(_number, _usual)

try:
  import hypothesis

  # Compilation makes the first example slow, so there is no deadline.
  hypothesis.settings.register_profile(
    "videomla",
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[
      hypothesis.HealthCheck.function_scoped_fixture,
      hypothesis.HealthCheck.too_slow,
    ],
  )
  hypothesis.settings.load_profile("videomla")
except ImportError:  # The peers' environment has no such tests.
  pass


@pytest.fixture(autouse=True)
def _listen_to_signals() -> collections.abc.Iterator[None]:
  """Listens to signals again, which a run that was stopped ignores.

  Children of later tests would inherit that, and could not be stopped.
  """
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}
  yield
  for number, handler in before.items():
    if signal.getsignal(number) is not handler:
      signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> collections.abc.Iterator[None]:
  """Frees the compiled programs of a test file.

  Each holds memory maps, of which a process may have 65,530; with the programs
  of all tests the compiler ends in a segmentation fault.
  """
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def _keep_verbosity() -> collections.abc.Iterator[None]:
  """Lets no command silence the warnings that later tests look for."""
  if "absl.logging" not in sys.modules:
    yield
    return
  logging = sys.modules["absl.logging"]
  before = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  yield
  logging.set_verbosity(before)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
  """Returns a fresh seed, or the one in VIDEOMLA_SEED to repeat a failure."""
  given = os.environ.get(_SEED)
  value = int(given) if given else int.from_bytes(os.urandom(4), "little") >> 1
  request.node.user_properties.append(("seed", value))
  return value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Files with slow tests come first: none is left for the end, alone."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
  item: pytest.Item,
) -> collections.abc.Generator[None, typing.Any, None]:
  """Adds the seed to the report of a failing test."""
  outcome = yield
  report = outcome.get_result()
  seeds = dict(item.user_properties)
  if report.failed and "seed" in seeds:
    text = f"repeat with {_SEED}={seeds['seed']}"
    report.sections.append(("seed", text))
