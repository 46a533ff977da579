"""The real 1.3B chunk step, compiled for a TPU v6e that is not here."""

import pytest

from tests.aot import chunk_program
from videomla_jax.costs import collectives

pytest.importorskip("libtpu", reason="needs the extra tpu")


@pytest.fixture(scope="module")
def program():
  return chunk_program.compiled("v6e")


def test_attention_runs_in_the_kernel_of_jax(program):
  # To the video and to the text, in denoising passes and in the one that
  # commits.
  assert program.text.count('custom_call_target="tpu_custom_call"') == 4
  assert collectives.of(program.text) == []


def test_the_step_needs_little_memory(program):
  # 544 MB with the scores of plain XLA.
  assert program.temporary_bytes <= 200e6


def test_the_cache_is_updated_in_place_and_in_one_layout(program):
  cache_bytes = 4 * 1560 * chunk_program.LAYERS * 224 * 2
  # The compiler fills 1,560 tokens up to 13 times 128.
  assert cache_bytes <= program.alias_bytes <= 1.07 * cache_bytes
  # Nothing copies the entries of all layers.
  layers = f"= bf16[{chunk_program.LAYERS},1,4,1560,192]"
  copies = [
    line
    for line in program.text.splitlines()
    if layers in line and " copy(" in line
  ]
  assert not copies
