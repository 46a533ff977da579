"""Hostile checkpoints start nothing, connect to nothing and open no other file.

They are read in a process whose audit hook sees every event of Python.
"""

import itertools
import json
import pathlib
import struct
import subprocess
import sys
import zipfile

import numpy as np
from safetensors import numpy as safetensors_numpy

_CHILD = """
import pathlib, sys
from videomla_jax.storage import tensor_files
folder = pathlib.Path(sys.argv[1])

def read(path):
  try:
    with tensor_files.open_tensors(path) as tensors:
      for tensor in tensors.values():
        tensor.read()
    return "read"
  except ValueError as error:
    return str(error)

files = sorted(p for p in folder.rglob("*") if p.is_file())
read(folder / "good.pth")  # what is imported late is imported now
read(folder / "good.safetensors")
seen = []
watching = True

def hook(event, arguments):
  if not watching:
    return
  if event == "open":
    path = str(arguments[0])
    if not path.startswith(str(folder)):
      seen.append((event, path))
  elif event.partition(".")[0] in (
    "compile", "ctypes", "exec", "import", "os", "pickle", "shutil", "socket",
    "subprocess", "urllib", "webbrowser", "http", "ftplib", "code",
  ) and event not in ("os.listdir", "os.scandir"):
    seen.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
results = [read(path) for path in files]
watching = False
for path, result in zip(files, results):
  print(path.name, result)
for event in seen:
  print("SEEN", event)
"""

_NAMES = (
  ("os", "system"), ("posix", "system"), ("builtins", "eval"),
  ("builtins", "exec"), ("builtins", "open"), ("builtins", "__import__"),
  ("subprocess", "Popen"), ("webbrowser", "open"), ("runpy", "run_path"),
  ("importlib", "import_module"), ("socket", "create_connection"),
  ("urllib.request", "urlopen"), ("numpy", "load"), ("torch.hub", "load"),
  ("pathlib", "Path.unlink"), ("pathlib", "Path.write_text"),
  ("shutil", "rmtree"), ("operator", "attrgetter"), ("code", "interact"),
  ("torch._utils", "os.system"), ("collections", "OrderedDict.__reduce__"),
  ("omegaconf", "OmegaConf.load"), ("argparse", "FileType"),
  ("easydict", "os.system"), ("typing", "sys.modules"),
  ("ml_collections", "config_flags.DEFINE_config_file"),
)  # fmt: skip


def _text(text: str) -> bytes:
  data = text.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _programs(trap: str) -> list[bytes]:
  """Every name, called in every way that pickles know, and its state set."""
  programs = []
  for module, name in _NAMES:
    old = f"c{module}\n{name}\n".encode()
    new = _text(module) + _text(name) + b"\x93"
    argument = _text(f"touch {trap}")
    for loaded, call in itertools.product(
      (old, new), (b"\x85R", b"\x85\x81", b"\x85}\x92", b"\x85Rb")
    ):
      programs.append(loaded + argument + call + b".")
    programs.append(b"(" + argument + f"i{module}\n{name}\n.".encode())
    programs.append(b"(" + old + argument + b"o.")
    programs.append(old + b"}" + _text("__setstate__") + old + b"sb" + argument)
  return programs


def test_nothing_is_run_and_nothing_else_is_opened(tmp_path, seed) -> None:
  folder, trap = tmp_path / "given", tmp_path / "trap"
  folder.mkdir()
  x = np.random.default_rng(seed).standard_normal(6).astype(np.float32)
  safetensors_numpy.save_file({"w": x}, folder / "good.safetensors")
  for i, program in enumerate([b"}.", *_programs(str(trap))]):
    name = f"{i:03d}.pth" if i else "good.pth"
    with zipfile.ZipFile(folder / name, "w") as archive:
      archive.writestr("archive/data.pkl", b"\x80\x04" + program)
  for i, file in enumerate(
    ("../trap", "/etc/passwd", "..", "", "a\0b", "file:///etc/passwd", "~/x")
  ):
    index = folder / f"{i}.safetensors.index.json"
    index.write_text(json.dumps(dict(weight_map={"w": file})))
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", _CHILD, str(folder)],
    capture_output=True,
    text=True,
    cwd=root,
    check=True,
  )
  lines = done.stdout.splitlines()
  assert not [line for line in lines if line.startswith("SEEN")]
  assert len(lines) == len(list(folder.iterdir()))
  assert [line for line in lines if line.endswith(" read")] == [
    "good.safetensors read"
  ]
  assert not trap.exists()
