"""Decoding a chunk of 480 x 832, compiled for an H100: traffic and memory."""

import pytest

from tests.aot import decoder_program
from videomla_jax.costs import decoder_memory
from videomla_jax.costs import decoder_traffic

pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")

_KINDS = [("wan", {}), ("wan", dict(spare_memory=True)), ("tiny", {})]
_STATE = 1_889_280_000  # docs/method.md, section 4.4


# Commit 107f9ef had 297 convolutions, moved 128 GB beside them, and needed
# 3,173 MB of temporaries.
@pytest.mark.parametrize(
  ("spare_memory", "convolutions", "most", "temporaries"),
  [(False, 35, 44.5e9, 3.0e9), (True, 105, 60e9, 1.3e9)],
)
def test_little_is_moved_beside_convolutions(
  spare_memory, convolutions, most, temporaries
):
  changes = dict(spare_memory=True) if spare_memory else {}
  program = decoder_program.compiled("h100", "wan", **changes)
  found = decoder_traffic.operations(program.text)
  sums = decoder_traffic.total(found)
  moved = decoder_traffic.beside_convolutions(found)
  print(f"{spare_memory=}: {moved / 1e9:.1f} GB, {sums}")
  assert sums["convolution"][0] == convolutions
  assert moved <= most
  assert program.temporary_bytes <= temporaries
  # Weights are laid out once, whatever loops: 73 million, read in float32 and
  # written in bfloat16.
  assert sums["weights"][1] <= 0.5e9
  # Nothing is turned from one layout into another.
  assert sums["copy"][1] <= 0.05e9


def test_the_memory_of_earlier_frames_is_updated_in_place():
  program = decoder_program.compiled("h100", "wan")
  assert program.alias_bytes == pytest.approx(_STATE, rel=1e-3)


@pytest.mark.parametrize(("name", "changes"), _KINDS)
def test_temporaries_are_predicted(name, changes):
  program = decoder_program.compiled("h100", name, **changes)
  predicted = decoder_memory.temporaries(
    decoder_program.model(name, **changes),
    videos=1,
    frame=decoder_program.FRAME,
    latents=decoder_program.LATENTS,
    platform="gpu",
  )
  print(f"{name}, {changes}: predicted {predicted / 1e6:.0f} MB")
  assert 1 / 1.2 <= predicted / program.temporary_bytes <= 1.2
