"""How latents are denoised: noise levels, step rule, guidance, noise.

docs/method.md, section 7. Few-step students jump to x0 and add fresh
noise; many-step models follow the flow ODE with Euler or UniPC steps and
guidance. A step rule is a class, a row of `RULES` at the end of this file;
`solve` runs a whole schedule inside one program, `step` one network call of it.
"""

from collections.abc import Callable
import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped
import numpy as np

from videomla_jax.diffusion import flow
from videomla_jax.diffusion import unipc as unipc_lib
from videomla_jax.models import wan_config

# Which pass of a chunk makes the entries that the cache keeps.
COMMITS = ("clean", "last_pass")

# With guidance the network has two rows for each of the b videos.
Latents = Float[Array, "b T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """Noise levels, step rule and guidance of a schedule.

  Attributes:
    sigmas: Noise levels of the network calls, descending from at most 1; the
      level after the last is 0.
    rule: Name in `RULES`: "renoise" jumps to x0 and adds fresh noise (few-step
      students), "euler" and "unipc" follow the flow ODE (many-step models).
    guidance: w in `uncond + w (cond - uncond)`; None runs no unconditional
      pass.
    commit: One of `COMMITS`: a further pass over the clean chunk, or the last
      denoising pass, which saves that one.
  """

  sigmas: tuple[float, ...]
  rule: str
  guidance: float | None = None
  commit: str = "clean"

  def __post_init__(self) -> None:
    levels = (*self.sigmas, 0.0)
    descends = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or levels[0] > 1 or not descends:
      raise ValueError(
        f"sampler.sigmas={self.sigmas} must descend from at most 1 and stay "
        "above 0; list the noise levels of the network calls."
      )
    if self.rule not in RULES:
      raise ValueError(
        f"sampler.rule={self.rule!r} is unknown; use one of {sorted(RULES)}."
      )
    if self.commit not in COMMITS:
      raise ValueError(
        f"sampler.commit={self.commit!r} is unknown; use one of {COMMITS}."
      )
    # Rules refuse levels that they cannot work with, before anything compiles.
    self.step_rule.weights(self.sigmas)

  @property
  def step_rule(self) -> "Rule":
    """The rule, from the table."""
    return RULES[self.rule]

  @property
  def rows_per_video(self) -> int:
    """Network inputs per video: two with guidance."""
    return 1 if self.guidance is None else 2


def few_step(
  steps: tuple[float | int, ...] = (1000, 750, 500, 250),
  *,
  shift: float | int = 5.0,
) -> Sampler:
  """Returns the distilled student's sampler, docs/method.md, section 7.2.

  Args:
    steps: Timesteps of the network calls, 0..1000, before the shift.
    shift: Warp of the schedule.
  """
  sigmas = flow.few_step_sigmas(steps, s=shift)
  # Samplers are static arguments, so their levels must be hashable.
  return Sampler(sigmas=tuple(map(float, sigmas)), rule="renoise")


def euler(num_steps: int, *, shift: float, guidance: float | None) -> Sampler:
  """Returns the many-step sampler of stage-1 models.

  Args:
    num_steps: Network calls.
    shift: Warp of the schedule.
    guidance: w in `uncond + w (cond - uncond)`; None runs no unconditional
      rows.

  Raises:
    ValueError: If there is no step.
  """
  _check_steps(num_steps)
  sigmas = flow.sigma_table(num_steps, s=shift)
  return Sampler(
    sigmas=tuple(map(float, sigmas)), rule="euler", guidance=guidance
  )


def unipc(num_steps: int, *, shift: float, guidance: float | None) -> Sampler:
  """Returns Wan's own many-step sampler.

  Levels start at S(0.999), the last entry of the table Wan was trained on.

  Args:
    num_steps: Network calls.
    shift: Warp of the schedule.
    guidance: w in `uncond + w (cond - uncond)`; None runs no unconditional
      rows.

  Raises:
    ValueError: If there is no step.
  """
  # UniPC works in log(1 - sigma), so the first level must stay below 1.
  _check_steps(num_steps)
  levels = np.linspace(1 - 1 / wan_config.MAX_TIMESTEP, 0, num_steps + 1)[:-1]
  sigmas = flow.shift(levels, shift)
  return Sampler(
    sigmas=tuple(map(float, sigmas)), rule="unipc", guidance=guidance
  )


def _check_steps(num_steps: int) -> None:
  """Refuses a schedule without steps."""
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps} must be at least 1; use 10.")


class Noise(NamedTuple):
  """Gaussian noise of one chunk.

  Attributes:
    start: Noise that the chunk starts from.
    fresh: Noise that is added after each call but the last, if the rule adds
      any.
  """

  start: Latents
  fresh: Float[Array, "K B T H W C"]


def joined(chunks: Float[Array, "G b T H W C"]) -> Float[Array, "b GT H W C"]:
  """Joins the frames of chunks that were made one after the other."""
  latents = jnp.moveaxis(chunks, 0, 1)
  return latents.reshape(latents.shape[0], -1, *latents.shape[3:])


def split_keys(key: Shaped[Array, "..."], batch: int) -> Key[Array, "b"]:
  """Returns one key per video, folded from one key or as they are.

  Args:
    key: Typed key or keys; raw ones of `jax.random.PRNGKey` are wrapped.
    batch: Number of videos.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if key.ndim:
    return key
  # Numbers are folded in, so that video i has the same key in every batch.
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def chunk_noise(
  keys: Key[Array, "b"],
  chunk: Int[Array, ""],
  *,
  shape: tuple[int, ...],
  sampler: Sampler,
) -> Noise:
  """Draws the noise of one chunk from the keys and its number alone.

  So no chunk depends on the length of the video, nor a video on its batch.

  Args:
    keys: One random key per video.
    chunk: Index of the chunk.
    shape: T, H, W, C of the chunk.
    sampler: Sets how often noise is added again.
  """
  # Start noise first, then fresh noise, so both kinds of rules start alike.
  count = len(sampler.sigmas) if sampler.step_rule.adds_noise else 1

  # The number of the chunk is folded in, so a stream needs no list of keys.
  def draw(key: Array) -> Array:
    key = jax.random.fold_in(key, chunk)
    return jax.random.normal(key, (count, *shape), jnp.float32)

  noise = jax.vmap(draw, out_axes=1)(keys)
  return Noise(noise[0], noise[1:])


class Call(NamedTuple):
  """One network call of a schedule; with a leading axis, all of them.

  Attributes:
    sigma: Noise level of the call; the axis of one stands for all frames.
    next_sigma: Level after it.
    fresh: Noise to add, for rules that add any; frame, place and channel are
      one axis.
    weights: Constants of the rule for this call, if it has any.
    first: Whether this is the first call.
  """

  sigma: Float[Array, "*K 1"]
  next_sigma: Float[Array, "*K 1"]
  fresh: Array | None
  weights: PyTree
  first: Array


class State(NamedTuple):
  """Latents on their way, and what a multistep rule remembers."""

  x: Latents
  history: PyTree


class Rule:
  """How latents move from one noise level to the next; the base of all rules.

  Attributes:
    adds_noise: Whether every call but the last is followed by fresh noise.
  """

  adds_noise = False

  def weights(self, sigmas: tuple[float, ...]) -> PyTree:
    """Returns constants of all calls, leading axis K, or None.

    Raises:
      ValueError: If the rule cannot work with these levels.
    """
    del sigmas

  def start(self, noise: Latents) -> PyTree:
    """Returns what the rule remembers before the first call, or None."""
    del noise

  def step(self, state: State, velocity: Latents, call: Call) -> State:
    """Moves latents from the level of a call to the next level."""
    raise NotImplementedError


class Renoise(Rule):
  """Jumps to x0 and adds fresh noise, docs/method.md, Eq. (7.2)."""

  adds_noise = True

  def step(self, state: State, velocity: Latents, call: Call) -> State:
    """Predicts x0 and noises it to the next level."""
    x0 = flow.x0_from_velocity(state.x, velocity, call.sigma)
    assert call.fresh is not None  # the rule adds noise, see `calls`
    fresh = call.fresh.reshape(x0.shape)
    return State(flow.add_noise(x0, fresh, call.next_sigma), None)


class Euler(Rule):
  """Follows the flow ODE with first-order steps."""

  def step(self, state: State, velocity: Latents, call: Call) -> State:
    """Goes straight along the velocity."""
    x = flow.euler_step(state.x, velocity, call.sigma, call.next_sigma)
    return State(x, None)


class UniPC(Rule):
  """Follows the flow ODE with Wan's multistep solver, see `unipc`."""

  def weights(self, sigmas: tuple[float, ...]) -> unipc_lib.Weights:
    """Returns the weights of predictor and corrector."""
    return unipc_lib.weights(sigmas)

  def start(self, noise: Latents) -> unipc_lib.History:
    """Returns a history whose weights are zero."""
    return unipc_lib.start(noise)

  def step(self, state: State, velocity: Latents, call: Call) -> State:
    """Corrects the last step and takes the next one."""
    x0 = flow.x0_from_velocity(state.x, velocity, call.sigma)
    return State(
      *unipc_lib.step(
        state.x, x0, state.history, call.weights, first=call.first
      )
    )


RULES: dict[str, Rule] = {
  "renoise": Renoise(),
  "euler": Euler(),
  "unipc": UniPC(),
}


def calls(sampler: Sampler, noise: Noise) -> Call:
  """Returns all network calls of a schedule, with a leading axis."""
  # Levels are arrays, so that all calls are one loop with one network in it.
  sigmas = jnp.asarray((*sampler.sigmas, 0.0), jnp.float32)[:, None]
  fresh = None
  if sampler.step_rule.adds_noise:  # The last call is followed by no noise.
    last = jnp.zeros_like(noise.start)[None]
    # A TPU fills its last axis up to 128: 16 channels would take 8 times their
    # size, 67 MB for a chunk at 480p that is held until the last call.
    size = math.prod(noise.start.shape[1:])  # one step has no fresh noise
    flat = (x.reshape(*x.shape[:2], size) for x in (noise.fresh, last))
    fresh = jnp.concatenate([*flat])
  rows = sampler.step_rule.weights(sampler.sigmas)
  rows = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), rows)
  first = jnp.arange(len(sampler.sigmas)) == 0
  return Call(sigmas[:-1], sigmas[1:], fresh, rows, first)


def start(sampler: Sampler, noise: Noise) -> State:
  """Returns the state before the first network call."""
  return State(noise.start, sampler.step_rule.start(noise.start))


def step(
  sampler: Sampler, state: State, velocity: Latents, call: Call
) -> State:
  """Moves latents from the level of a call to the next level.

  Args:
    sampler: Names the rule.
    state: Latents that the network saw.
    velocity: Velocity that the network predicted, guidance applied.
    call: The call that it answered.
  """
  return sampler.step_rule.step(state, velocity, call)


def guided(
  velocity_of: Callable[[Latents, Array], Latents], sampler: Sampler
) -> Callable[[Latents, Array], Latents]:
  """Turns a network of conditional and unconditional rows into a guided one.

  Args:
    velocity_of: Network of two rows per video, the conditional ones first.
    sampler: Sets the guidance; without guidance the network stays as it is.
  """
  if sampler.guidance is None:
    return velocity_of

  def guide(x: Latents, sigma: Array) -> Latents:
    # One batch of both kinds of rows reads the weights once.
    both = velocity_of(jnp.concatenate([x, x]), sigma)
    return flow.guide(*jnp.split(both, 2), sampler.guidance)

  return guide


def solve(
  velocity_of: Callable[[Latents, Array], Latents],
  noise: Noise,
  *,
  sampler: Sampler,
  num_calls: Int[Array, ""] | None = None,
) -> Latents:
  """Denoises from pure noise to x0 in one loop.

  Args:
    velocity_of: The network, see `guided`; its level has shape `[1]`.
    noise: Start and fresh noise.
    sampler: Levels, rule and guidance.
    num_calls: Network calls after which to stop; all by default.

  Returns:
    Clean latents, or those that the call after the last one would see.
  """
  network = guided(velocity_of, sampler)
  begin, every_call = start(sampler, noise), calls(sampler, noise)

  def body(state: State, call: Call) -> tuple[State, None]:
    return step(sampler, state, network(state.x, call.sigma), call), None

  # A scan is differentiable and its length is known; a loop up to a traced call
  # is neither, which a rollout that stops early does not need.
  if num_calls is None:
    return jax.lax.scan(body, begin, every_call)[0].x

  def numbered(k: Array, state: State) -> State:
    return body(state, jax.tree.map(lambda leaf: leaf[k], every_call))[0]

  return jax.lax.fori_loop(0, num_calls, numbered, begin).x
