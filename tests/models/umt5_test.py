"""Tests of the UMT5 encoder: padding, order, buckets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import tokenizer
from videomla_jax.models import umt5

_LENGTH = 24


@functools.cache
def _abstract(**kwargs) -> umt5.Umt5Encoder:
  return umt5.abstract(umt5.tiny_umt5(**kwargs))


def _model(rng: np.random.Generator, **kwargs) -> umt5.Umt5Encoder:
  return tiny_model.fill(_abstract(**kwargs), rng)


@jax.jit
def _embed(model, ids, lengths):
  return model.embed(ids, lengths)


def _ids(rng: np.random.Generator, lengths: list[int]) -> jax.Array:
  ids = rng.integers(2, 512, (len(lengths), _LENGTH))
  ids[np.arange(_LENGTH) >= np.asarray(lengths)[:, None]] = 0
  return jnp.asarray(ids)


def test_padding_has_no_influence(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model, lengths = _model(rng), [5, _LENGTH, 1]
  ids = _ids(rng, lengths)
  out = _embed(model, ids, jnp.asarray(lengths))
  other = jnp.where(ids == 0, 7, ids)
  np.testing.assert_array_equal(_embed(model, other, jnp.asarray(lengths)), out)
  for row, length in zip(out, lengths, strict=True):
    assert not np.asarray(row[length:]).any()
    assert np.abs(row[:length]).max() > 0


def test_unpadded_text_embeds_the_same(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model = _model(rng)
  ids = _ids(rng, [9])
  padded = _embed(model, ids, jnp.asarray([9]))[:, :9]
  bare = _embed(model, ids[:, :9], jnp.asarray([9]))
  tolerances.assert_close(bare, padded)


def test_texts_of_a_batch_are_independent(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model, lengths = _model(rng), [3, 17]
  ids = _ids(rng, lengths)
  both = _embed(model, ids, jnp.asarray(lengths))
  for i, length in enumerate(lengths):
    one = _embed(model, ids[i : i + 1], jnp.asarray([length]))
    tolerances.assert_close(one[0], both[i])


def test_order_of_tokens_matters(seed: int) -> None:
  rng = np.random.default_rng(seed)
  model, ids = _model(rng), _ids(rng, [8])
  swapped = ids.at[:, :2].set(ids[:, 1::-1][:, -2:])
  a, b = (_embed(model, x, jnp.asarray([8])) for x in (ids, swapped))
  assert np.abs(a - b)[:, 2:8].max() > 1e-3


def test_buckets_of_the_published_encoder() -> None:
  rows = {  # docs/method.md, section 5.3
    **{0: 0, -1: 1, 1: 17, -7: 7, -8: 8, -12: 9, -16: 10, -32: 12, -64: 14},
    **{-127: 15, -500: 15, 8: 24, 16: 26, 100: 31},
  }
  found = umt5.relative_buckets(
    np.asarray([*rows]), num_buckets=32, max_distance=128
  )
  assert found.tolist() == [*rows.values()]


def test_bfloat16_weights_are_kept_and_give_close_embeddings(seed) -> None:
  rng = np.random.default_rng(seed)
  half = _model(rng, dtype="bfloat16", param_dtype="bfloat16")
  leaves = jax.tree.leaves(half)
  assert all(x.dtype == jnp.bfloat16 for x in leaves)
  exact = jax.tree.map(
    lambda x, own: x.astype(own.dtype), leaves, jax.tree.leaves(_abstract())
  )
  exact = jax.tree.unflatten(jax.tree.structure(_abstract()), exact)
  ids, lengths = _ids(rng, [12]), jnp.asarray([12])
  a, b = (_embed(m, ids, lengths) for m in (half, exact))
  assert a.dtype == jnp.float32
  tolerances.assert_close(a, b, "bfloat16_deep")


def test_texts_become_rows_of_512(seed: int) -> None:
  texts = ["a red fox", "a dog"]
  tokens = tokenizer.train_tokenizer(texts)
  model = _model(np.random.default_rng(seed))
  rows = umt5.embed_texts(model, tokens, texts)
  assert rows.shape == (2, 512, 32)
  _, lengths = tokens(texts)
  used = np.abs(rows).max(axis=-1) > 0
  assert used.sum(axis=1).tolist() == lengths.tolist()


def test_larger_vocabularies_are_refused(seed: int) -> None:
  tokens = tokenizer.train_tokenizer(["a red fox"])
  model = _abstract(vocabulary=4)
  with pytest.raises(ValueError, match="ids but the encoder 4"):
    umt5.embed_texts(model, tokens, ["a fox"])


def test_config_survives_json() -> None:
  config = umt5.umt5_xxl()
  assert umt5.Umt5Config.from_dict(config.to_dict()) == config
  with pytest.raises(ValueError, match="convert it again"):
    umt5.Umt5Config.from_dict({"depth": 3})
