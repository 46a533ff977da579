"""Embeds prompts with Wan's text encoder, once.

  python -m videomla_jax.embed --config=configs/embed.py \
    --config.checkpoint=models/wan_1p3b --config.prompts="A red fox in snow"

The encoder is 11.4 GB in bfloat16; not run at full size (no weights at hand).
"""

import ml_collections

import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; there are no variants.

  Args:
    arg: Must be empty.

  Raises:
    ValueError: If there is an argument.
  """
  config = common.without_variants(arg)
  config.checkpoint = "models/wan_1p3b"  # holds umt5/ and tokenizer/
  config.prompts = ""  # separated by semicolons
  config.prompts_file = ""  # one prompt per line
  config.negative_prompt = ""  # embedded as well, for guidance
  config.output = "prompts.safetensors"  # extended if it exists
  config.save_every = 16  # prompts that are embedded and written together
  return config
