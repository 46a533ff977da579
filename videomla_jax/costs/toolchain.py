"""The compilers for absent GPUs and TPUs, and where XLA leaves its code."""

import importlib.util
import os
import pathlib

from videomla_jax.costs import machine_code

XLA_DUMPS = "xla"  # name of a folder inside of that of `dump_environment`


def check_toolchain() -> None:
  """Raises `NotImplementedError` if the cross-compiler is not installed."""
  for name in ("jax_cuda13_plugin", "nvidia"):
    if importlib.util.find_spec(name) is None:
      raise NotImplementedError(
        "compiling for a GPU needs JAX's CUDA plugin and ptxas; run "
        "pip install 'videomla-jax[aot]'."
      )


def prepare_environment() -> None:
  """Puts the installed ptxas first on PATH: an old one refuses new PTX."""
  check_toolchain()
  tools = str(pathlib.Path(machine_code.tool("ptxas")).parent)
  path = os.environ.get("PATH", "").split(os.pathsep)
  others = [folder for folder in path if folder != tools]
  os.environ["PATH"] = os.pathsep.join([tools, *others])


def prepare_tpu_environment() -> None:
  """Keeps the TPU compiler from asking a cloud what machine this is.

  Raises:
    NotImplementedError: If the compiler is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise NotImplementedError(
      "compiling for a TPU needs libtpu; run pip install 'videomla-jax[tpu]'."
    )
  # It reads them when it is loaded, and waits for an answer of the cloud where
  # they are not set. What is compiled for follows from the topology alone.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Only one process at a time may use a TPU; any number of them may compile.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def dump_environment(folder: pathlib.Path) -> dict[str, str]:
  """Returns an environment in which Mosaic and XLA write reports to `folder`.

  Args:
    folder: An empty folder, in which `tools` is made. Mosaic writes machine
      code and its figures to it, XLA the launches of kernels to its `xla`.

  Returns:
    Variables for a new process, since JAX reads them when it starts.
  """
  check_toolchain()
  tools = folder / "tools" / "bin"
  tools.mkdir(parents=True, exist_ok=True)
  # Mosaic looks for both in the folder `bin` of CUDA_ROOT.
  for name in ("ptxas", "nvdisasm"):
    link = tools / name
    if not link.exists():
      link.symlink_to(machine_code.tool(name))
  return {
    "JAX_PLATFORMS": "cpu",
    "CUDA_ROOT": str(tools.parent),
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_dump_to={folder / XLA_DUMPS} --xla_dump_hlo_as_text",
    "MOSAIC_GPU_DUMP_TO": str(folder),
    "MOSAIC_GPU_DUMP_PTX": "1",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "MOSAIC_GPU_DUMP_SASS": "1",
  }
