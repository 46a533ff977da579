import dataclasses
import json

import pytest

from videomla_jax.models import attention
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.storage import plain_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inner:
  size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outer(plain_config.PlainConfig):
  title = "outer config"

  inner: _Inner
  maybe: _Inner | None = None
  pair: tuple[int, int] | None = None
  name: str = "a"
  share: float = 0.5
  flag: bool = False


@pytest.mark.parametrize(
  "config",
  [
    _Outer(inner=_Inner(size=1)),
    _Outer(inner=_Inner(size=1), maybe=_Inner(size=2), pair=(3, 4)),
    _Outer(inner=_Inner(size=1), name="b", share=1.0, flag=True),
    umt5.umt5_xxl(),
    vae_coders.wan_vae(),
    wan_config.small(kind="latent"),
    wan_config.tiny(kind="dense"),
  ],
  ids=lambda config: type(config).__name__,
)
def test_config_survives_json(config: plain_config.PlainConfig) -> None:
  values = config.to_dict()
  text = json.dumps(values)
  assert json.loads(text) == values
  assert type(config).from_dict(json.loads(text)) == config


@pytest.mark.parametrize(
  "values",
  [
    {},
    {"inner": {"size": 1}, "depth": 3},
    {"inner": {"depth": 3}},
    {"inner": {"size": 1}, "maybe": {"depth": 3}},
  ],
  ids=["missing", "unknown", "unknown inside", "unknown inside an option"],
)
def test_config_of_another_version_is_refused(values: dict) -> None:
  with pytest.raises(ValueError, match=r"outer config .* convert it again"):
    _Outer.from_dict(values)


def test_nested_config_is_built_as_its_own_type() -> None:
  config = wan_config.WanConfig.from_dict(
    wan_config.tiny(kind="latent").to_dict()
  )
  assert isinstance(config.attention, attention.AttentionConfig)
