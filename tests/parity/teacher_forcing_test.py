"""Stage-1 training against the original masked [clean, noisy] forward.

Not compared: the noised context (`aug_*`), since our context is always clean,
and diffusion forcing (`df_*`), which no stage of ours uses.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.parity import goldens
from videomla_jax.conversion.names import dit as names
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_NAME = "teacher_forcing"
_RUNS = {"tf_c1": 1, "tf_c3": 3}


def _golden(name: str) -> jax.Array:
  return jnp.asarray(goldens.load(_NAME)[name])


def _latents(name: str) -> jax.Array:
  return goldens.channels_last(goldens.load(_NAME)[name])


def _window(run: str) -> window_lib.Window:
  # The original's mask has neither window nor sink.
  return window_lib.Window(
    chunk_frames=_RUNS[run], sink_frames=0, local_frames=None
  )


def _sigma(run: str) -> np.ndarray:
  return _golden(f"{run}/t") / np.float32(wan_config.MAX_TIMESTEP)


@pytest.mark.parametrize("run", _RUNS)
def test_velocity_equals_the_original(run: str) -> None:
  noisy = flow.add_noise(
    _latents("in/clean"), _latents("in/noise"), _sigma(run)
  )
  tolerances.assert_close(noisy, _latents(f"{run}/x_t"), "golden")
  velocity = jax.jit(teacher_forcing.velocity, static_argnames="window")(
    goldens.model(_NAME),
    _latents("in/clean"),
    noisy,
    _golden(f"{run}/t"),
    _golden("in/text"),
    window=_window(run),
  )
  tolerances.assert_close(velocity, _latents(f"{run}/v"), "golden")
  x0 = flow.x0_from_velocity(noisy, velocity, _sigma(run))
  tolerances.assert_close(x0, _latents(f"{run}/x0"), "golden")


@pytest.mark.parametrize("run", _RUNS)
def test_loss_and_gradients_equal_the_original(run: str) -> None:
  weight = flow.training_weight(jnp.asarray(_sigma(run)))
  tolerances.assert_close(weight, _golden(f"{run}/weight"), "golden")

  @jax.jit
  def loss_and_gradient(model):
    graph, state = nnx.split(model)

    def loss(state):
      return teacher_forcing.loss(
        nnx.merge(graph, state),
        _latents("in/clean"),
        _latents("in/noise"),
        _sigma(run),
        _golden("in/text"),
        window=_window(run),
        weight=weight,
      )

    return jax.value_and_grad(loss, has_aux=True)(state)

  (total, per_frame), grads = loss_and_gradient(goldens.model(_NAME))
  tolerances.assert_close(total, _golden(f"{run}/loss"), "golden")
  tolerances.assert_close(per_frame, _golden(f"{run}/loss_per_frame"), "golden")
  _check_gradients(run, grads)


def _check_gradients(run: str, grads: nnx.State) -> None:
  flat = tree_names.flat_dict(
    model_folder.model_arrays(nnx.to_pure_dict(grads))
  )
  norm = np.sqrt(
    sum(np.square(g, dtype=np.float64).sum() for g in flat.values())
  )
  tolerances.assert_close(norm, _golden(f"{run}/grad_norm"), "golden")
  prefix = f"{run}/grad/"
  found = [k for k in goldens.load(_NAME) if k.startswith(prefix)]
  assert found
  sizes = goldens.network_config(goldens.config(_NAME))
  tensors = names.table_of(sizes).tensors
  for name in found:
    tensor = tensors[name.removeprefix(prefix)]
    ours = flat[tensor.path]
    ours = ours if tensor.block is None else ours[tensor.block]
    golden = tensor.layout.to_ours(goldens.load(_NAME)[name])
    tolerances.assert_close(ours, golden, "golden")


@pytest.mark.parametrize("run", _RUNS)
def test_plan_equals_the_originals_mask(run: str) -> None:
  frames, chunk = 9, _RUNS[run]
  plan = teacher_forcing.plan(frames, window=_window(run))
  seen = np.zeros((2 * frames, 2 * frames), bool)
  for m, history in enumerate(plan.history):
    own = np.arange(m * chunk, (m + 1) * chunk)
    for half in (0, frames):  # Clean frames, then noisy ones.
      rows = seen[half + own]
      rows[:, history[history >= 0]] = True
      rows[:, half + own] = True
      seen[half + own] = rows
  tokens = goldens.config(_NAME)["tokens_per_frame"]
  mask = np.repeat(np.repeat(seen, tokens, 0), tokens, 1)
  np.testing.assert_array_equal(mask, _golden(f"{run}/mask"))
