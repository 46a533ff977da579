"""PyTorch's attention on a CPU, one call per line of input.

  python attention_torch.py QUERIES KEYS HEADS WIDTH

Every answer is the seconds of one call.
"""

import sys
import time

import torch


def main() -> None:
  """Draws the arrays and answers line by line."""
  queries, keys, heads, width = map(int, sys.argv[1:])
  draw = lambda rows: torch.randn(1, heads, rows, width)
  q, k, v = draw(queries), draw(keys), draw(keys)
  call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
  with torch.inference_mode():
    call()
    print(f"PyTorch {torch.__version__}", flush=True)
    for _ in sys.stdin:
      started = time.perf_counter()
      call()
      print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
  main()
