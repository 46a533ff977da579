"""Turns text into token ids as Wan does: clean, cut into pieces, end, pad.

docs/method.md, section 5.1. The vocabulary is a SentencePiece file; Wan's is
that of UMT5 (`google/umt5-xxl/spiece.model` in the release).
"""

import html
import io
import os
import pathlib

import ftfy
from jaxtyping import Int
import numpy as np
import sentencepiece

from videomla_jax.storage import foreign_files
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import printable

MAX_TOKENS = 512  # M of every Wan
FILE = "spiece.model"
_PAD, _EOS = 0, 1
_MOST_ESCAPES = 10
_MOST_BYTES = 64 * 2**20  # Wan's has 4.5 MB


def clean(text: str) -> str:
  """Returns text without broken encodings, HTML and runs of white space."""
  text = _without_deep_escapes(text)
  # Wan unescapes twice, and a text that is cleaned otherwise has other ids.
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split())


def _without_deep_escapes(text: str) -> str:
  """Returns a text without ampersands if it is escaped more than a few times.

  Nobody writes &amp;amp; ten times over. Each round of unescaping would walk
  through all of the text, and a text of 32 kB could ask for thousands.
  """
  once = text
  for _ in range(_MOST_ESCAPES):
    once, before = html.unescape(once), once
    if once == before:
      return text
  return text.replace("&", " ")


class Tokenizer:
  """Cuts texts into pieces and adds T5's special ids: 0 pads, 1 ends a text."""

  def __init__(self, model: bytes, *, max_tokens: int = MAX_TOKENS) -> None:
    """Reads a serialised SentencePiece model.

    Args:
      model: Bytes of the file.
      max_tokens: M, length of the padded ids, `</s>` included.

    Raises:
      ValueError: If it is no such model, or has other special ids.
    """
    try:
      if not 0 < len(model) <= _MOST_BYTES:
        raise ValueError("empty" if not model else "more than 64 MiB")
      self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except foreign_files.ERRORS as error:
      raise ValueError(
        f"tokenizer is no SentencePiece model ({printable.text(error)}); give "
        f"the {FILE} of the release."
      ) from error
    special = self._pieces.pad_id(), self._pieces.eos_id()
    if special != (_PAD, _EOS):
      raise ValueError(
        f"tokenizer has pad and end ids {special} instead of {_PAD, _EOS}; "
        "use the one that the encoder was trained with."
      )
    self.max_tokens = max_tokens

  @classmethod
  def load(
    cls, path: str | os.PathLike[str], *, max_tokens: int = MAX_TOKENS
  ) -> "Tokenizer":
    """Reads a SentencePiece model from its file or its folder.

    Args:
      path: The file, or the folder that holds `spiece.model`.
      max_tokens: M, length of the padded ids, `</s>` included.

    Raises:
      ValueError: If the file is missing or no tokenizer.
    """
    path = pathlib.Path(path)
    path = path / FILE if path.is_dir() else path
    try:
      model = ordinary_files.read_bytes(path, limit=_MOST_BYTES)
    except ordinary_files.BadFile as error:
      raise ValueError(
        f"tokenizer={str(path)!r} cannot be read: it {error}; give the {FILE} "
        "of the release (google/umt5-xxl)."
      ) from error
    foreign_files.check_kind(path, field="tokenizer")
    try:
      return cls(model, max_tokens=max_tokens)
    except ValueError as error:
      text = str(error).removeprefix("tokenizer ")
      raise ValueError(f"tokenizer={str(path)!r} {text}") from error

  @property
  def vocabulary(self) -> int:
    """Number of different token ids."""
    return self._pieces.vocab_size()

  def num_tokens(self, text: str) -> int:
    """Returns the tokens of a whole text, `</s>` included.

    More than `max_tokens` are not kept, which users are told.

    Args:
      text: A text as the user wrote it.
    """
    return len(self._pieces.encode(clean(text))) + 1

  def __call__(
    self, texts: list[str]
  ) -> tuple[Int[np.ndarray, "B M"], Int[np.ndarray, "B"]]:
    """Returns token ids, zero-padded, and how many of each row are real.

    Args:
      texts: Texts as the user wrote them; they are cleaned here. Of a long one
        the first M - 1 pieces are taken, so that `</s>` has a place.
    """
    ids = np.full((len(texts), self.max_tokens), _PAD, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
      pieces = self._pieces.encode(clean(text))[: self.max_tokens - 1]
      lengths[i] = len(pieces) + 1
      ids[i, : lengths[i]] = [*pieces, _EOS]
    return ids, lengths


def train_tokenizer(texts: list[str], *, vocabulary: int = 512) -> Tokenizer:
  """Makes a small vocabulary from a few texts, to try the machinery.

  Args:
    texts: Texts that it must be able to write; other characters are unknown.
    vocabulary: Most ids that it may have.
  """
  # The limit is soft, since a few texts may not hold as many pieces.
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([clean(t) or "a" for t in texts]),
    model_writer=model,
    vocab_size=vocabulary,
    hard_vocab_limit=False,
    model_type="unigram",
    pad_id=_PAD,
    eos_id=_EOS,
    unk_id=2,
    bos_id=-1,
    pad_piece="<pad>",
    eos_piece="</s>",
    unk_piece="<unk>",
    minloglevel=2,
  )
  return Tokenizer(model.getvalue())
