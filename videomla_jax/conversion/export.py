"""Networks written as files that PyTorch's libraries read."""

from videomla_jax.conversion import ladder
from videomla_jax.conversion import release
from videomla_jax.conversion.names import detect
from videomla_jax.storage import params_skeleton
from videomla_jax.storage import safetensors_writer


def check_names(network: detect.Network, format_name: str) -> None:
  """Refuses names under which a network cannot be exported.

  Args:
    network: The network to export.
    format_name: "original", or another that the network may have.

  Raises:
    ValueError: If it has no such names.
  """
  try:
    network.table.names(format_name)
  except ValueError as error:
    raise ValueError(f"{network.architecture}: {error}") from error


def export(
  output: release.PathLike,
  network: detect.Network,
  tensors: release.Tensors,
  *,
  format_name: str,
  advance: release.Advance = lambda: None,
) -> None:
  """Writes a network as safetensors under the names of one format.

  Args:
    output: Folder for one file, or for shards and their index.
    network: What the tensors are.
    tensors: Tensors under original names, see `open_network`.
    format_name: "original", or another that the network has.
    advance: Called after every tensor.

  Raises:
    ValueError: If the network has no such names, or there is no room.
  """
  names = network.table.names(format_name)
  specs = {
    n: params_skeleton.Parameter(x.shape, x.dtype, False)
    for n, x in tensors.items()
  }
  release.check_room(output, specs)
  # The names of files that the frameworks look for.
  stem = "model" if format_name == "transformers" else "diffusion_pytorch_model"
  renamed = {name: tensors[original] for name, original in names.items()}
  # No tensor tells the ladder, so the files say it beside them.
  about = {"rope_ladder": ladder.of(network)} if ladder.of(network) else {}
  for _ in safetensors_writer.write_safetensors(
    output, renamed, stem=stem, metadata=about
  ):
    advance()
