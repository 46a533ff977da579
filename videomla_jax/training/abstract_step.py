"""The step of a stage with shapes in place of weights.

Nothing is loaded and no device is needed, so that a laptop can compile the
program of a cluster (`costs.aot`) or count its operations (`costs.flops`).
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from videomla_jax import sharding
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.training import batches
from videomla_jax.training import optim
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib


def abstract_networks(
  stage: stage_lib.Stage,
  settings: settings_lib.Training,
  sizes: dict[str, str],
) -> dict[str, wan.WanDiT]:
  """Returns the networks of a stage as shapes; frozen kernels are bfloat16.

  Args:
    stage: A stage of released networks.
    settings: Settings of the stage.
    sizes: Role -> name in `wan_config.SIZES`; `model.size` for the other roles.
  """
  networks = {}
  for role in stage.starts_from:
    kind = "dense" if role in stage.scores else settings.model.kind
    size = sizes.get(role, settings.model.size)
    make: Callable[..., wan_config.WanConfig] = wan_config.SIZES[size]
    config = make(kind=kind, **settings.network)
    networks[role] = nnx.eval_shape(
      lambda config=config: wan.WanDiT(config, rngs=nnx.Rngs(0))
    )
    if role not in stage.trained:
      # Loading does the same: bfloat16 is all that a forward pass reads.
      released.halve(networks[role])
  return networks


def _place(tree: PyTree, layout: PyTree) -> PyTree:
  """Returns shapes that know how they lie on the devices."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    layout,
  )


def abstract_batch(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns a batch of prepared clips as shapes.

  Args:
    stage: A stage of released networks.
    settings: Settings of the stage.
  """
  data, examples = settings.data, stage.examples_per_step(settings)
  batch = batches.abstract_prompts(data, examples)
  if stage.reads_clips:
    latents = (examples, data.num_frames, *data.latent_shape)
    # Prepared latents are stored in float16.
    batch["latents"] = jax.ShapeDtypeStruct(latents, jnp.float16)
  return batch


def step_and_arguments(
  stage: stage_lib.Stage,
  settings: settings_lib.Training,
  mesh: jax.sharding.Mesh,
  *,
  sizes: dict[str, str] | None = None,
) -> tuple[jax.stages.Wrapped, tuple[PyTree, ...]]:
  """Returns the jitted step of a stage and its abstract, sharded arguments.

  Args:
    stage: The stage.
    settings: Settings of the stage.
    mesh: The devices.
    sizes: Sizes of single networks, see `abstract_networks`.

  Returns:
    A jitted function of `(state, batch, key, frozen)`, and these.

  Raises:
    ValueError: If networks or batch cannot be split over the mesh.
  """
  networks = abstract_networks(stage, settings, sizes or {})
  sharding.check_batch(
    settings.data.batch_size, mesh, microbatches=settings.optim.accumulate
  )
  # Shapes of averages and moments follow from those of the networks.
  state = jax.eval_shape(lambda n: stage.init(n, settings), networks)
  layout = sharding.shardings(state, mesh)
  frozen = stage.frozen(networks)
  step = functools.partial(stage.make_step(settings), program=None)
  # Every device has all of the negative prompt and of the key.
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(sharding.BATCH)
  )
  batch = {
    name: _place(x, whole if name == "negative" else split)
    for name, x in abstract_batch(stage, settings).items()
  }
  # A key has a dtype of its own, so JAX is asked for its shape.
  key = _place(jax.eval_shape(lambda: jax.random.key(0)), whole)
  # The new state takes the place of the old one, in the same layout.
  jitted = jax.jit(
    lambda state, batch, key, frozen: step(state, batch, key, frozen=frozen),
    donate_argnums=0,
    out_shardings=(layout, None),
  )
  placed = _place(frozen, sharding.shardings(frozen, mesh))
  return jitted, (_place(state, layout), batch, key, placed)


def components(
  arguments: tuple[PyTree, ...], mesh: jax.sharding.Mesh
) -> dict[str, int]:
  """Returns the bytes that one device holds of each argument of a step.

  Args:
    arguments: What `step_and_arguments` returned.
    mesh: The devices.
  """
  state, _, _, frozen = arguments
  trained = {"student": state}
  if not isinstance(state, optim.TrainState):
    # Stage 3 trains two networks, each with a state of its own.
    trained = {
      name: x
      for name, x in state._asdict().items()
      if isinstance(x, optim.TrainState)
    }
  held: dict[str, PyTree] = {}
  for name, one in trained.items():
    held[f"{name}: parameters"] = one.model
    held[f"{name}: average"] = one.ema
    held[f"{name}: moments"] = one.optimiser
  for role, model in frozen.items():
    held[f"{role}: parameters, frozen"] = model
  return {
    name: sharding.bytes_per_device(tree, mesh)
    for name, tree in held.items()
    if tree is not None
  }
