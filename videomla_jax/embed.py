"""Embeds prompts once, for machines that cannot hold the text encoder.

  python -m videomla_jax.embed --config=configs/embed.py \
    --config.checkpoint=models/wan_1p3b --config.output=prompts.safetensors \
    --config.prompts="A red fox runs through deep snow; A cat on a sofa"

`sample --config.embeddings=prompts.safetensors` then needs no text encoder.
Prompts that the file holds already are skipped.
"""

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from videomla_jax.costs import memory
from videomla_jax.data import embeddings
from videomla_jax.data import prompt_files
from videomla_jax.models import released
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import umt5
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import output_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
  """What is embedded; the fields are the keys of `configs/embed.py`.

  Attributes:
    checkpoint: Folder of `convert` with umt5/ and tokenizer/.
    prompts: Texts; empty ones are ignored.
    prompts_file: Text file with one prompt per line, or empty.
    negative_prompt: Text that guidance steers away from, embedded as well.
    output: File of embeddings, extended if it exists.
    save_every: Prompts that are embedded and written together.
  """

  checkpoint: config_values.Path
  prompts: tuple[str, ...]
  prompts_file: config_values.Path
  negative_prompt: str
  output: config_values.Path
  save_every: Annotated[int, config_values.Range(1, 10_000)]

  def all_prompts(self) -> list[str]:
    """Lists the prompts of the config and of the file, without repeats.

    The negative prompt is the last one.

    Raises:
      ValueError: If there are none, or the file cannot be read.
    """
    prompts = [*self.prompts]
    if self.prompts_file:
      prompts += prompt_files.read_prompts(self.prompts_file)
    prompts = [*dict.fromkeys(filter(None, prompts))]
    if not prompts:
      raise ValueError(
        "prompts and prompts_file are both empty; give prompts, separated by "
        "semicolons, or a file."
      )
    # Guidance needs the embedding of the negative prompt, be it empty.
    return [*prompts, self.negative_prompt]


def embed(config: config_reader.Values) -> int:
  """Embeds the prompts of one config that are not known yet.

  Args:
    config: Values of the keys in `configs/embed.py`.

  Returns:
    The number of prompts that were embedded.

  Raises:
    ValueError: If prompts, checkpoint or output cannot work.
  """
  request = config_reader.read(Embedding, config)
  prompts = request.all_prompts()
  # What cannot be written would cost the whole work.
  output_folder.check_file(request.output)
  folder = pathlib.Path(request.checkpoint)
  tokenizer = tokenizer_lib.Tokenizer.load(folder / "tokenizer")
  if not (folder / "umt5").is_dir():
    raise ValueError(
      f"checkpoint={str(folder)!r} has no folder umt5; give the folder that "
      "convert wrote."
    )
  # Embeddings of another encoder must not be taken for those of this one.
  identity = embeddings.encoder_identity(folder / "umt5")
  known = embeddings.known(request.output, encoder=identity)
  new = [
    p for p in prompts if embeddings.key_of(p, encoder=identity) not in known
  ]
  print(f"prompts: {len(new)} new, {len(prompts) - len(new)} known", flush=True)
  if new:
    # The encoder (11.4 GB at full size) is loaded only if a prompt is new.
    cut = _embed_all(request, tokenizer, identity, new)
    if cut:
      print(
        f"{cut} prompts have more than {tokenizer.max_tokens} tokens and lost"
        " their ends",
        flush=True,
      )
  return len(new)


def _embed_all(
  request: Embedding,
  tokenizer: tokenizer_lib.Tokenizer,
  identity: str,
  prompts: list[str],
) -> int:
  """Loads the encoder and embeds in batches; every batch is stored at once.

  Args:
    request: What is embedded.
    tokenizer: Cuts prompts into tokens.
    identity: Identity of the encoder.
    prompts: Prompts that the file lacks.

  Returns:
    How many prompts were too long.
  """
  encoder = released.load(pathlib.Path(request.checkpoint) / "umt5", "umt5")
  print(memory.described("text encoder", encoder), flush=True)
  num_cut = 0
  with progress_bar.Progress(len(prompts), "embed", unit="prompt") as progress:
    for i in range(0, len(prompts), request.save_every):
      batch = prompts[i : i + request.save_every]
      rows = np.asarray(umt5.embed_texts(encoder, tokenizer, batch))
      lengths_of = {prompt: tokenizer.num_tokens(prompt) for prompt in batch}
      cut = {p: n for p, n in lengths_of.items() if n > tokenizer.max_tokens}
      num_cut += len(cut)
      # Padding is not stored: most of a prompt's 512 tokens are nothing else.
      _, lengths = tokenizer(batch)
      embedded = {
        p: row[:n] for p, row, n in zip(batch, rows, lengths, strict=True)
      }
      embeddings.add(request.output, embedded, encoder=identity, cut=cut)
      progress.update(len(batch))
  return num_cut


if __name__ == "__main__":
  cli.run(embed)
