"""The compiled step of a stage, known before there is a device or a weight.

Networks are shapes only, so that a cluster's program is compiled on a laptop:
`aot` for GPUs that are not there, or the devices at hand.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax import sharding
from videomla_jax.models import released as components_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.training import batches as batches_lib
from videomla_jax.training.stages import table

# Roles whose networks are bidirectional and dense, whatever the student is.
_DENSE = ("real", "critic")


def abstract_networks(config: Any, sizes: dict[str, str]) -> dict[str, Any]:
  """Networks of a stage as shapes; frozen kernels are bfloat16.

  Args:
    config: Of a stage with released networks.
    sizes: Role -> name in `wan_config.SIZES`; the config's model.size by
      default.
  """
  made = {}
  for role in table.get(config).STARTS_FROM:
    kind = "dense" if role in _DENSE else config.model.kind
    size = wan_config.SIZES[sizes.get(role, config.model.size)]
    network = size(kind=kind, **config.network.to_dict())
    made[role] = nnx.eval_shape(
      lambda network=network: wan.WanDiT(network, rngs=nnx.Rngs(0))
    )
    if role not in table.trained(config):
      components_lib.halve(made[role])
  return made


def _place(tree: Any, where: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
  )


def abstract_batch(config: Any) -> dict[str, Any]:
  """A batch as shapes."""
  examples = batches_lib.examples_per_step(config)
  batch = batches_lib.abstract_prompts(config)
  if config.stage != "dmd":
    latents = (examples, config.data.num_frames, *config.data.latent_shape)
    batch["latents"] = jax.ShapeDtypeStruct(latents, jnp.float16)
  return batch


def step_and_arguments(
  config: Any, mesh: jax.sharding.Mesh, *, sizes: dict[str, str] | None = None
) -> tuple[Any, tuple[Any, ...]]:
  """The jitted step of a stage and its abstract, sharded arguments.

  Args:
    config: Of a stage.
    mesh: The devices.
    sizes: See `abstract_networks`.

  Returns:
    A jitted function of `(state, batch, key, frozen)`, and these.

  Raises:
    ValueError: If networks or batch cannot be split over the mesh.
  """
  networks = abstract_networks(config, sizes or {})
  sharding.check_batch(
    config.data.batch_size, mesh, parts=config.optim.accumulate
  )
  state = jax.eval_shape(lambda n: table.init(n, config), networks)
  where = sharding.shardings(state, mesh)
  trained = table.trained(config)
  frozen = {role: x for role, x in networks.items() if role not in trained}
  step = functools.partial(table.step(config), variant=None)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(sharding.BATCH)
  )
  batch = {
    name: _place(x, whole if name == "negative" else split)
    for name, x in abstract_batch(config).items()
  }
  key = _place(jax.eval_shape(lambda: jax.random.key(0)), whole)
  jitted = jax.jit(
    lambda state, batch, key, frozen: step(state, batch, key, frozen=frozen),
    donate_argnums=0,
    out_shardings=(where, None),
  )
  placed = _place(frozen, sharding.shardings(frozen, mesh))
  return jitted, (_place(state, where), batch, key, placed)


def components(arguments: tuple[Any, ...], mesh: Any) -> dict[str, int]:
  """Bytes that one device holds of each part of a step's arguments."""
  state, _, _, frozen = arguments
  parts: dict[str, Any] = {}
  trained = {"student": state}
  if hasattr(state, "critic"):
    trained = {"student": state.student, "critic": state.critic}
  for name, one in trained.items():
    parts[f"{name}: parameters"] = one.model
    parts[f"{name}: average"] = one.ema
    parts[f"{name}: moments"] = one.optimiser
  for role, model in frozen.items():
    parts[f"{role}: parameters, frozen"] = model
  return {
    name: sharding.bytes_per_device(part, mesh)
    for name, part in parts.items()
    if part is not None
  }
