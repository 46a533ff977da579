"""Tests of motion between two walls."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from tests.small_world import step_by_step
from videomla_jax.small_world import bounce

cases = {
  "reach": st.integers(1, 60),
  "velocity": st.integers(-70, 70),
  "share": st.floats(0, 1),
}


@hypothesis.given(**cases)
def test_folded_paths_equal_a_simulation(reach, velocity, share):
  start = round(share * reach)
  straight = start + velocity * np.arange(50)
  expected = step_by_step.simulate(start, velocity, 50, reach)
  np.testing.assert_array_equal(bounce.fold(straight, reach), expected)
  np.testing.assert_array_equal(
    bounce.fold(jnp.asarray(straight), reach), expected
  )


@hypothesis.given(**cases)
def test_heading_is_where_the_next_unit_leads(reach, velocity, share):
  start = round(share * reach)
  straight = start + velocity * np.arange(50)
  sense = np.sign(velocity)
  # Half a unit later, in halves, since a reach of one unit has no room.
  change = bounce.fold(2 * straight + sense, 2 * reach) - 2 * bounce.fold(
    straight, reach
  )
  found = bounce.heading(
    jnp.asarray(straight), jnp.int32(reach), jnp.int32(sense)
  )
  np.testing.assert_array_equal(found, change)
