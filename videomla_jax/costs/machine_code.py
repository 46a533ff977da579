"""Reads machine code of compiled programs: registers, spills, instructions.

NVIDIA's own tools, which Triton brings along, read the binaries.
"""

import dataclasses
import importlib.util
import pathlib
import re
import subprocess
import tempfile

from videomla_jax.costs import serialized_program

# These are the instructions of tensor cores and of local memory, as all
# generations of GPUs call them.
TENSOR_CORE = re.compile(r"\b(UTC\w*MMA|HGMMA|QGMMA|HMMA|IMMA)\b")
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)(\.\w+)*\b")
# Tensor memory is taken in units of 32 columns; their number is in a uniform
# register.
_TAKE = re.compile(r"UTCATOMSWS\.FIND_AND_SET\S* UP\d, UR\d+, (UR\d+)")
_TMEM_UNIT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
  """The resources that the machine code of one kernel uses.

  Attributes:
    name: Symbol of the kernel.
    registers: Registers per thread.
    stack_bytes: Local memory per thread that the compiler reserved.
    smem_bytes: Shared memory. Triton's kernels ask for more when they start,
      which is not counted here, see `launched_smem_bytes`.
    tmem_columns: Columns of tensor memory; None where none is taken.
    local_memory_ops: Loads and stores of local memory, which are spills.
    tensor_core_ops: Number of matrix instructions.
  """

  name: str
  registers: int
  stack_bytes: int
  smem_bytes: int
  tmem_columns: int | None
  local_memory_ops: int
  tensor_core_ops: int


def kernels(serialized: bytes) -> list[Kernel]:
  """Reads every kernel of a serialised program, those with most products first.

  Args:
    serialized: A program as XLA serialises it.
  """
  found = [
    k for image in serialized_program.cubins(serialized) for k in read(image)
  ]
  return sorted(found, key=lambda k: -k.tensor_core_ops)


def read(cubin: bytes) -> list[Kernel]:
  """Reads the kernels of one GPU binary.

  Args:
    cubin: The binary.

  Raises:
    NotImplementedError: If NVIDIA's tools are not installed.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "code.cubin"
    path.write_bytes(cubin)
    usage = _run("cuobjdump", "--dump-resource-usage", str(path))
    names = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", usage)
    return [_kernel(path, name, text) for name, text in names]


def _kernel(path: pathlib.Path, name: str, usage: str) -> Kernel:
  """Joins the resources of a kernel with the counts in its code."""
  # A binary has one kernel here; the code of several would be counted together.
  code = _run("nvdisasm", "-c", str(path))
  values = dict(re.findall(r"(\w+):(\d+)", usage))
  return Kernel(
    name=name,
    registers=int(values["REG"]),
    stack_bytes=int(values["STACK"]) + int(values["LOCAL"]),
    smem_bytes=int(values["SHARED"]),
    tmem_columns=tmem_columns(code),
    local_memory_ops=len(LOCAL_MEMORY.findall(code)),
    tensor_core_ops=len(TENSOR_CORE.findall(code)),
  )


def tmem_columns(code: str) -> int | None:
  """Reads how many columns of tensor memory machine code takes.

  Args:
    code: Machine code as nvdisasm prints it.

  Returns:
    Number of columns; None if it takes none.

  Raises:
    ValueError: If it takes some and does not tell how many.
  """
  take = _TAKE.search(code)
  if take is None:
    return None
  told = re.findall(rf"UMOV {take[1]}, (0x[0-9a-f]+)", code[: take.start()])
  if not told:
    raise ValueError("the machine code does not tell its columns")
  # The register may have served for other numbers before: the last one counts.
  return _TMEM_UNIT * int(told[-1], 16)


def launched_smem_bytes(folder: pathlib.Path, name: str) -> int:
  """Reads how much shared memory kernels ask for when they start, at most.

  Args:
    folder: Folder to which XLA dumped one program, see `aot.dump_environment`.
    name: Beginning of the names of the kernels.

  Raises:
    ValueError: If the dump does not tell.
  """
  pattern = re.compile(rf"\] {re.escape(name)}\w* .*shared_memory: (\d+) bytes")
  texts = folder.glob("*.thunk_sequence_after_thunk_passes.txt")
  found = [int(n) for path in texts for n in pattern.findall(path.read_text())]
  if not found:
    raise ValueError(f"the dump of the program does not tell of {name}")
  return max(found)


def mosaic_kernels(folder: pathlib.Path) -> list[Kernel]:
  """Reads the kernels that Mosaic dumped, see `aot.dump_environment`.

  Args:
    folder: Folder of the dumps.

  Raises:
    ValueError: If a report lacks a number, which is not taken for zero.
  """
  found = []
  for report in sorted(folder.glob("*.ptxas")):
    text = report.read_text()
    code = report.with_suffix(".sass_ctrl").read_text()
    resources = report.with_name(report.stem + ".resources.txt").read_text()

    found.append(
      Kernel(
        name=report.stem,
        registers=_number(r"Used (\d+) registers", text),
        stack_bytes=_number(r"(\d+) bytes stack frame", text)
        + _number(r"(\d+) bytes spill stores", text),
        smem_bytes=_number(r"smem_scratch_bytes=(\d+)", resources),
        tmem_columns=_number(r"tmem_scratch_cols=(\d+)", resources),
        local_memory_ops=len(LOCAL_MEMORY.findall(code)),
        tensor_core_ops=len(TENSOR_CORE.findall(code)),
      )
    )
  return found


def _number(pattern: str, text: str) -> int:
  """Finds a number in a report."""
  match = re.search(pattern, text)
  if not match:
    raise ValueError(f"a report of Mosaic does not tell {pattern!r}")
  return int(match.group(1))


def tool(name: str) -> str:
  """Returns the path of a tool that Triton brings along, or CUDA for ptxas.

  Args:
    name: Name of the program.

  Raises:
    NotImplementedError: If it is not installed.
  """
  # XLA writes PTX for the ptxas of its own CUDA, and an older one refuses it.
  cuda = importlib.util.find_spec("nvidia") if name == "ptxas" else None
  for folder in (cuda.submodule_search_locations or ()) if cuda else ():
    path = pathlib.Path(folder) / "cu13" / "bin" / name
    if path.is_file():
      return str(path)
  spec = importlib.util.find_spec("triton")
  for folder in (spec.submodule_search_locations or ()) if spec else ():
    path = pathlib.Path(folder) / "backends" / "nvidia" / "bin" / name
    if path.is_file():
      return str(path)
  raise NotImplementedError(
    f"{name} comes with Triton, which is not installed; run "
    "pip install 'videomla-jax[aot]'."
  )


def _run(name: str, *args: str) -> str:
  """Runs a tool and returns what it prints."""
  done = subprocess.run(
    [tool(name), *args], capture_output=True, text=True, check=True
  )
  return done.stdout
