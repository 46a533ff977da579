"""Embeds prompts once, for machines that cannot hold the text encoder.

  python -m videomla_jax.embed --config=configs/embed.py \
    --config.checkpoint=models/wan_1p3b --config.output=prompts.safetensors \
    --config.prompts="A red fox runs through deep snow; A cat on a sofa"

`sample --config.embeddings=prompts.safetensors` then needs no text encoder.
Prompts that the file holds already are skipped.
"""

import pathlib
from typing import Any

import numpy as np

from videomla_jax import sample
from videomla_jax.costs import memory
from videomla_jax.data import embeddings
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics


def read_prompts(config: Any) -> list[str]:
  """Prompts of the config and of a file with one per line, without repeats.

  Raises:
    ValueError: If there are none, or the file cannot be read.
  """
  prompts = sample.split_prompts(config.prompts)
  if config.prompts_file:
    try:
      text = pathlib.Path(config.prompts_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(
        f"prompts_file={config.prompts_file!r} cannot be read; give a text "
        "file with one prompt per line."
      ) from error
    prompts += [line.strip() for line in text.splitlines()]
  prompts = [*dict.fromkeys(filter(None, prompts))]
  if not prompts:
    raise ValueError(
      "prompts and prompts_file are both empty; give prompts, separated by "
      "semicolons, or a file."
    )
  # Guidance needs the embedding of the negative prompt, be it empty.
  return [*prompts, config.negative_prompt]


def embed(config: Any) -> int:
  """Runs one config.

  Args:
    config: See configs/embed.py.

  Returns:
    Number of prompts that were embedded and not known before.

  Raises:
    ValueError: If prompts, checkpoint or output cannot work.
  """
  prompts = read_prompts(config)
  folder = pathlib.Path(config.checkpoint)
  tokenizer = tokenizer_lib.Tokenizer.load(folder / "tokenizer")
  if not (folder / "umt5").is_dir():
    raise ValueError(
      f"checkpoint={str(folder)!r} has no folder umt5; give the folder that "
      "convert wrote."
    )
  identity = embeddings.encoder_identity(folder / "umt5")
  known = embeddings.known(config.output, encoder=identity)
  new = [
    p for p in prompts if embeddings.key_of(p, encoder=identity) not in known
  ]
  print(f"prompts: {len(new)} new, {len(prompts) - len(new)} known", flush=True)
  if new:
    _embed_all(config, folder, tokenizer, identity, new)
  return len(new)


def _embed_all(config, folder, tokenizer, identity, prompts):
  """Loads the encoder and embeds in batches; every batch is kept at once."""
  encoder = released.load(folder / "umt5", "umt5")
  print(memory.described("text encoder", encoder), flush=True)
  with metrics.Progress(len(prompts), "embed", unit="prompt") as progress:
    for i in range(0, len(prompts), config.save_every):
      batch = prompts[i : i + config.save_every]
      rows = np.asarray(umt5.embed_texts(encoder, tokenizer, batch))
      _, lengths = tokenizer(batch)
      made = {
        p: row[:n] for p, row, n in zip(batch, rows, lengths, strict=True)
      }
      embeddings.add(config.output, made, encoder=identity)
      progress.update(len(batch))


if __name__ == "__main__":
  cli.run(embed)
