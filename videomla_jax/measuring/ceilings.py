"""What the device does at most: a product of matrices and a copy."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from videomla_jax.measuring import row as row_lib


def rows(*, side: int) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    side: Rows and columns of the matrices.
  """

  def product() -> list[row_lib.Figure]:
    a, b = (
      jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16)
      for i in range(2)
    )
    took = row_lib.seconds(jax.jit(jnp.matmul), a, b)
    return [row_lib.Figure("", 2 * side**3 / took / 1e12, "TFLOP/s")]

  def copy() -> list[row_lib.Figure]:
    x = jnp.zeros((8 * side * side,), jnp.bfloat16)
    took = row_lib.seconds(jax.jit(lambda x: x + 1), x)
    return [row_lib.Figure("", 2 * x.nbytes / took / 1e12, "TB/s")]

  yield row_lib.Row(
    name="matmul",
    measure=product,
    shape=f"{side}x{side}x{side}",
    implementation="xla",
    direction="forward",
  )
  yield row_lib.Row(name="copy", measure=copy, implementation="xla")
