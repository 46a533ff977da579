"""Real training steps at 1.3B, compiled for eight B200 that are not here.

One clip of 21 latent frames at 480 x 832 per example. Stage 3 has a student with
latent attention, its average, critic and real score, one example per GPU.
"""

import functools

import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import sharding
from videomla_jax.costs import aot
from videomla_jax.costs import collectives
from videomla_jax.storage import tree_names
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table

pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")


def _weights(arguments):
  """Elements of the weights of one layer, of all networks."""
  state, *_, frozen = arguments
  flat = tree_names.flat_tree((state, frozen))
  return {
    int(np.prod(x.shape[1:] if "/blocks/" in name else x.shape))
    for name, x in flat.items()
  }


@functools.cache
def _compile(stage, fsdp=8, sequence=1, tensor=1):
  config = tiny_project.config(stage, "wan_1p3b")
  config.data.batch_size = fsdp
  description, settings = table.read(config)
  mesh = aot.mesh("b200", (1, fsdp, sequence, tensor), sharding.AXES)
  step, arguments = abstract_step.step_and_arguments(
    description, settings, mesh
  )
  compiled = aot.compile_for(step, *arguments, devices=mesh)
  return compiled, arguments, mesh


@functools.cache
def _program():
  compiled, arguments, mesh = _compile("dmd")
  parts = abstract_step.components(arguments, mesh)
  for name, size in parts.items():
    print(f"{name:32s}{size / 1e9:8.2f} GB per device")
  print(
    f"temporaries {compiled.temporary_bytes / 1e9:.1f} GB, compiled in "
    f"{compiled.seconds:.0f} s"
  )
  return compiled, parts


def test_the_step_fits_with_room_to_spare():
  compiled, parts = _program()
  # Batch and key come on top of what the table lists.
  assert 0 <= compiled.argument_bytes - sum(parts.values()) < 1e9
  held = compiled.argument_bytes + compiled.temporary_bytes
  assert held < 180e9
  assert compiled.temporary_bytes < 16e9  # 26 with all scores of the text


def test_the_state_is_updated_in_place():
  compiled, parts = _program()
  trained = sum(x for name, x in parts.items() if "frozen" not in name)
  assert compiled.alias_bytes >= trained


def _traffic(stage, **sizes):
  """Elements of what travels by kind of collective, and of weights."""
  compiled, arguments, _ = _compile(stage, **sizes)
  traffic = {}
  for one in collectives.of(compiled.text):
    print(one)
    traffic.setdefault(one.kind, set()).update(one.sizes)
  return traffic, _weights(arguments)


def test_weights_are_gathered_and_gradients_scattered_and_nothing_else():
  traffic, weights = _traffic("dmd")
  assert set(traffic) == {"all-gather", "reduce-scatter", "all-reduce"}
  assert traffic["all-gather"] <= weights
  assert {8 * size for size in traffic["reduce-scatter"]} <= weights
  # Norms, biases and scalars, which every device has whole.
  assert max(traffic["all-reduce"]) < 2e5


def test_tokens_and_heads_are_split_without_exchanging_activations():
  traffic, weights = _traffic("teacher_forcing", fsdp=2, sequence=2, tensor=2)
  assert "all-to-all" not in traffic
  # The compiler sends some weights through an idle axis before it gathers them.
  parts = {size // n for size in weights for n in (2, 4, 8)}
  assert traffic["collective-permute"] <= parts
  # Latents and positional keys of all tokens: what the sequence axis costs.
  chunks, frames, tokens = 7 * 13, 1560, (192, 32)
  assert {chunks * frames * n for n in tokens} <= traffic["all-gather"]


def test_latent_attention_runs_in_our_kernels():
  compiled, _ = _program()
  assert "mosaic_gpu" in compiled.text  # rollout
  assert "triton" in compiled.text  # gradient
