"""Runs transformers' UMT5 encoder and T5 tokenizer, with fresh weights.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `umt5_test.py` compares with.
"""

import html
import io
import json
import os
import pathlib

import ftfy
import pytest
from safetensors import torch as safetensors_torch
import sentencepiece
import torch
import transformers

_SIZES = {
  "narrow": dict(
    vocab_size=64, d_model=24, num_heads=3, d_kv=8, d_ff=40, num_layers=2
  ),
  "wide": dict(
    vocab_size=96, d_model=40, num_heads=2, d_kv=12, d_ff=36, num_layers=3
  ),
}
TEXTS = (
  "a red fox runs through deep snow at sunrise",
  "  two\tcats &amp;amp; a dog\n on the sofa  ",
  "caf\u00c3\u00a9 \u201cquoted\u201d \u2014 \uff21\uff22 \u00bd",
  "\u4e00\u53ea\u72d0\u72f8 \U0001f98a runs",
  "",
  "fox " * 600,
)


def _folder() -> pathlib.Path:
  return pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])


def _model(sizes: dict[str, int]) -> torch.nn.Module:
  return transformers.UMT5EncoderModel(
    transformers.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
  )


@pytest.mark.parametrize("size", _SIZES)
def test_transformers(size: str, seed: int) -> None:
  torch.manual_seed(seed)
  model = _model(_SIZES[size]).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      norm = "layer_norm" in name
      std = 0.2 if norm else parameter.shape[-1] ** -0.5
      if name.endswith(".q.weight"):
        # Logits have no scale of their own: as at T5's start, queries have it.
        # Without, softmax is so sharp that float32 is off by up to 2e-5 in
        # either framework.
        std *= _SIZES[size]["d_kv"] ** -0.5
      parameter.normal_(mean=float(norm), std=std)
  lengths = torch.tensor([40, 7])
  ids = torch.randint(2, _SIZES[size]["vocab_size"], (2, 40))
  mask = (torch.arange(40) < lengths[:, None]).long()
  ids = ids * mask
  with torch.no_grad():
    out = model(input_ids=ids, attention_mask=mask).last_hidden_state
  tensors = {"in/ids": ids, "in/lengths": lengths, "out/hidden": out}
  tensors |= {f"param/{k}": p.detach() for k, p in model.named_parameters()}
  safetensors_torch.save_file(
    {k: x.contiguous() for k, x in tensors.items()},
    _folder() / f"umt5_{size}.safetensors",
    metadata={"config": json.dumps(_SIZES[size]), "seed": str(seed)},
  )


def test_transformers_published_shapes() -> None:
  published = dict(
    vocab_size=256384,
    d_model=4096,
    num_heads=64,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
  )
  with torch.device("meta"):
    model = _model(published)
  shapes = {k: list(p.shape) for k, p in model.named_parameters()}
  (_folder() / "umt5_xxl.json").write_text(json.dumps(shapes))


def test_transformers_tokenizer() -> None:
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*TEXTS[:4]] * 4),
    model_writer=written,
    vocab_size=120,
    hard_vocab_limit=False,
    model_type="unigram",
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    pad_piece="<pad>",
    eos_piece="</s>",
    unk_piece="<unk>",
  )
  folder = _folder() / "tokenizer"
  folder.mkdir(exist_ok=True)
  (folder / "spiece.model").write_bytes(written.getvalue())
  (folder / "tokenizer_config.json").write_text(
    json.dumps(dict(tokenizer_class="T5Tokenizer"))
  )
  theirs = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
  cleaned = [
    " ".join(html.unescape(html.unescape(ftfy.fix_text(t))).split())
    for t in TEXTS
  ]
  ids = theirs(
    cleaned, padding="max_length", truncation=True, max_length=512
  ).input_ids
  text = json.dumps(dict(texts=TEXTS, cleaned=cleaned, ids=ids))
  (_folder() / "tokenizer.json").write_text(text)
