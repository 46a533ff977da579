"""Rows of the chunk step: the network with its denoising steps and commit.

A row runs the program of `rollout.scan_chunks` behind a full window, which is
what every later chunk of a video costs.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax.costs import memory
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.measuring import random_networks
from videomla_jax.measuring import row as row_lib
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

# The student of the paper.
SAMPLER = sampling.few_step((1000, 750, 500, 250))
WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_TIMED = 4  # chunks behind those that fill the window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A rollout to measure.

  Attributes:
    kind: "latent" or "dense".
    window: Which frames a chunk sees.
    videos: Videos side by side.
    cache_dtype: Number format of the cache; None is the network's.
    products: How blocks multiply, see `WanConfig`.
  """

  kind: str = "latent"
  window: window_lib.Window = WINDOW
  videos: int = 1
  cache_dtype: str | None = None
  products: str = ""

  @property
  def words(self) -> str:
    """What differs from one video and the paper's window."""
    words = [f"window {self.window.sink_frames}+{self.window.local_frames}"]
    words += [f"{self.videos} videos"] if self.videos > 1 else []
    words += [f"{self.cache_dtype} cache"] if self.cache_dtype else []
    words += [self.products] if self.products else []
    return ", ".join(words)


CASES = (
  Case(),
  Case(kind="dense"),
  Case(
    kind="dense",
    window=window_lib.Window(chunk_frames=3, sink_frames=0, local_frames=21),
  ),
  Case(cache_dtype="int8"),
  Case(videos=8),
  Case(products="float8_per_token"),
)


def rows(
  *,
  make: Callable[..., wan_config.WanConfig],
  frame: tuple[int, int, int],
  cases: Sequence[Case] = CASES,
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    make: Makes the sizes of the network from its `kind`.
    frame: H, W, C of a latent frame.
    cases: The rollouts.
  """
  for case in cases:
    yield row_lib.Row(
      name="chunk_step",
      measure=functools.partial(_measure, make(kind=case.kind), frame, case),
      shape=f"{frame[0]}x{frame[1]} latents, {case.words}",
      attention=case.kind,
      implementation="auto",
      direction="forward",
    )


def text_of(config: wan_config.WanConfig, videos: int) -> jax.Array:
  """Draws embeddings in place of a text encoder's."""
  shape = (videos, config.text_tokens, config.text_dim)
  return jax.random.normal(jax.random.key(3), shape, jnp.dtype(config.dtype))


def _measure(
  config: wan_config.WanConfig, frame: tuple[int, int, int], case: Case
) -> list[row_lib.Figure]:
  """Compiles the step, fills the window, and times what follows."""
  window, chunk = case.window, case.window.chunk_frames
  seen = window.sink_frames + (window.local_frames or 0)
  fill = -(-seen // chunk) + 1
  most = (fill + _TIMED) * chunk
  model = random_networks.make(
    lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)), halve=True
  )
  model = released.with_products(model, case.products)
  text = text_of(config, case.videos)
  keys = jax.random.split(jax.random.key(0), case.videos)
  state = rollout.start(
    model,
    text,
    keys,
    frame=frame,
    window=window,
    sampler=SAMPLER,
    max_frames=most,
    cache_dtype=case.cache_dtype,
  )
  static = dict(window=window, sampler=SAMPLER, chunks=1, frame=frame)
  program, figures = row_lib.compiled(
    rollout.scan_chunks, model, state, text, **static
  )

  def step(carry: tuple[Any, rollout.Rollout]) -> tuple[Any, rollout.Rollout]:
    return program(model, carry[1], text)

  carry: tuple[Any, rollout.Rollout] = (None, state)
  for _ in range(fill - 1):
    carry = step(carry)
  # The step that is not timed fills the window.
  took, (latents, _) = row_lib.seconds_of_steps(step, carry, count=_TIMED)
  needs = memory.needs(
    model,
    rows=case.videos,
    frame=frame,
    window=window,
    max_frames=most,
    cache_dtype=case.cache_dtype,
  )
  # A latent frame is four pixel frames.
  frames = 4 * chunk * case.videos
  held = needs.parameter_bytes + needs.cache_bytes
  return [
    row_lib.Figure("", took * 1e3, "ms"),
    row_lib.Figure("rate", frames / took, "frames/s"),
    *figures,
    row_lib.Figure(
      "temporaries_predicted", (needs.peak_bytes - held) / 1e6, "MB"
    ),
    row_lib.Figure("finite", float(jnp.isfinite(latents).all()), "1 is yes"),
  ]
