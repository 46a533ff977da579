"""Which videos a list of prompts asks for: names, seeds, and whose turn it is.

VBench looks for `PROMPT-INDEX.mp4`. A video's seed is made of the seed of the
run, its prompt and its index, so it does not depend on what else is in the
list, on the process that makes it, or on what was there before.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import re

from videomla_jax.quality import prompt_lists
from videomla_jax.runtime import config_values

_NUMBERED = re.compile(r"(.+)-(\d+)", re.DOTALL)
_MOST_VIDEOS = 1_000_000
STILL = "temporal_flickering"  # its videos go through a filter of still ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """One video that is to be made.

  Attributes:
    file: Its name, `PROMPT-INDEX.mp4`.
    prompt: The prompt as the list has it.
    text: What the model is given.
    index: Number among the videos of the prompt, from 0.
    seed: Seed of its noise.
  """

  file: str
  prompt: str
  text: str
  index: int
  seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
  """The part of a plan that one of several processes makes.

  Attributes:
    number: Which part, from 1.
    count: Parts in all.
  """

  number: int = 1
  count: int = 1

  @classmethod
  def parse(cls, text: str) -> "Share":
    """Reads a share such as "2/8".

    Args:
      text: What the user wrote.

    Raises:
      ValueError: If it is no such share.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
      raise ValueError(
        f"share={text!r} must be a part such as 1/1, or 3/8 for the third of"
        " eight processes; the first number is at least 1."
      )
    return cls(number=int(match[1]), count=int(match[2]))

  def of(self, videos: Sequence[Video]) -> tuple[Video, ...]:
    """Returns the videos of this share; all shares together are all videos.

    Args:
      videos: The whole plan.
    """
    return tuple(videos[self.number - 1 :: self.count])


def videos_of(
  prompts: prompt_lists.PromptList,
  *,
  samples: int,
  still_samples: int,
  seed: int,
) -> tuple[Video, ...]:
  """Lists every video, prompt by prompt.

  Args:
    prompts: The list.
    samples: Videos of each prompt; VBench asks for five.
    still_samples: Videos of prompts for temporal flickering, of which VBench
      keeps the still ones; it asks for 25.
    seed: Seed of the run.

  Raises:
    ValueError: If they are too many.
  """
  counts = [
    max(samples, still_samples) if STILL in x.dimensions else samples
    for x in prompts.entries
  ]
  if sum(counts) > _MOST_VIDEOS:
    raise ValueError(
      f"samples={samples} and still_samples={still_samples} of {len(counts)}"
      f" prompts are {sum(counts)} videos; ask for at most {_MOST_VIDEOS}."
    )
  return tuple(
    Video(
      file=f"{entry.name}-{index}.mp4",
      prompt=entry.prompt,
      text=entry.text,
      index=index,
      seed=seed_of(seed, entry.prompt, index),
    )
    for entry, count in zip(prompts.entries, counts, strict=True)
    for index in range(count)
  )


def seed_of(seed: int, prompt: str, index: int) -> int:
  """Returns the seed of a video's noise, any that `sample` takes.

  Args:
    seed: Seed of the run.
    prompt: The prompt as the list has it.
    index: Number among the videos of the prompt.
  """
  # Neither number has a zero character, so no two videos have one text.
  text = f"{seed}\0{index}\0{prompt}".encode()
  number = int.from_bytes(hashlib.sha256(text).digest()[:8])
  return number % (config_values.MAX_SEED + 1)


def parts_of(stem: str) -> tuple[str, int | None]:
  """Splits the name of a video into prompt and index, as VBench does.

  Args:
    stem: File name without its ending.

  Returns:
    The prompt and the index; None if the name has none.
  """
  match = _NUMBERED.fullmatch(stem)
  return (match[1], int(match[2])) if match else (stem, None)
