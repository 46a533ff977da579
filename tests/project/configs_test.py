"""Tests of configs: every variant builds, and arguments are typed."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
import ml_collections
import pytest

from tests import tiny_project
from videomla_jax.diffusion import sampling
from videomla_jax.generation import request as request_lib
from videomla_jax.training import optimiser
from videomla_jax.training import unused
from videomla_jax.training.stages import table

tiny_project.config("sample")  # imports the module that configs share
import common  # noqa: E402

_VARIANTS = {
  "sample": [
    "",
    "latent",
    "dense",
    "demo",
    "demo,steps=4",
    "world",
    *(f"wan_1p3b{mode}" for mode in ("", "_dense", "_bidirectional")),
    *(f"wan_tiny{mode}" for mode in ("", "_dense", "_bidirectional")),
    *(f"stage{n}" for n in (1, 2, 3)),
    *(f"stage3_la6_sink1{n}" for n in ("", ",frames=120", ",frames=240")),
    "stage3_la12_sink3",
    "stage3,embeddings=prompts.safetensors",
  ],
  "pretraining": [
    *("", "small", "world", "world,images", "wan_1p3b", "seed=3"),
  ],
  "teacher_forcing": [
    "",
    "small",
    "world,vae=somewhere,dispatch=10",
    "wan_1p3b",
    "small,kind=dense,init=",
    "small,seed=3,local=9",
    "wan_1p3b,data=8",
  ],
  "consistency": ["", "small", "world", "wan_1p3b", "small,init=somewhere"],
  "dmd": [
    *("", "small", "world", "wan_1p3b"),
    *("wan_1p3b,frames=63", "small,steps=60"),
  ],
  "evaluate": [
    *("", "models=latent", "latent+dense", "steps=20"),
    *("vbench", "vbench,model=student", "vbench,model=wan_1p3b,length=60s"),
    *("videos", "videos,length=30s"),
    *("colour", "colour,model=somewhere,windows", "colour,steps=4"),
  ],
  "benchmark": ["", "rollout", "minutes=1"],
  "vae": ["", "world,minutes=20.0", "films,films=videos", "seed=3,steps=100"],
  "ablate": ["", "steps=60,batch=4", "seeds=5,minutes=1.5"],
}
_ALL = [(n, v) for n, variants in _VARIANTS.items() for v in variants]


def test_every_config_file_is_listed() -> None:
  files = {p.stem for p in tiny_project.CONFIGS.glob("*.py")}
  assert set(_VARIANTS) <= files
  for name in files - set(_VARIANTS) - {"common"}:
    assert tiny_project.config(name).is_locked


@pytest.mark.parametrize("runlocal", [False, True])
@pytest.mark.parametrize(("name", "variant"), _ALL)
def test_every_variant_builds_and_is_plain(
  name: str, variant: str, runlocal: bool
) -> None:
  parts = [variant] * bool(variant) + ["runlocal"] * runlocal
  config = tiny_project.config(name, ",".join(parts) or None)
  assert isinstance(config, ml_collections.ConfigDict)
  assert config.to_json()
  with pytest.raises(AttributeError):
    config.no_such_field = 1
  if "stage" in config:
    stage, settings = table.read(config)
    stage.check(settings)
    unused.check(stage, settings)
    optimiser.check(settings.optim)


def test_arguments_reach_the_fields() -> None:
  config = tiny_project.config(
    "teacher_forcing", "small,kind=dense,seed=3,steps=60"
  )
  assert (config.model.kind, config.seed, config.optim.steps) == (
    "dense",
    3,
    60,
  )
  config = tiny_project.config("sample", "demo,steps=4")
  assert (config.output.name, config.sampler.num_steps) == ("demo", 4)
  assert len(config.prompts.split(";")) >= 3 and config.seconds == 60


@pytest.mark.parametrize("frames", [21, 120, 240])
def test_presets_of_the_release_count_the_sink_apart(frames: int) -> None:
  config = tiny_project.config("sample", f"stage3_la6_sink1,frames={frames}")
  values = request_lib.Request.from_config(config)
  window = values.window
  # One frame of sink, two of history and a chunk of three.
  assert (window.sink_frames, window.history(frames)) == (1, 2)
  assert window.chunk_frames == 3
  seen = [f for f in range(30) if window.visible(f, next_frame=30)]
  assert seen == [0, 28, 29]
  pixels = request_lib.count_frames(values.seconds, 16)
  assert pixels == 4 * (frames - 1) + 1
  sampler = values.sampler.resolve(shift=5.0, distilled=False)
  assert sampler == sampling.few_step(shift=5.0)


@pytest.mark.parametrize(
  ("name", "arg", "words"),
  [
    ("sample", "sparse", "use one of .*latent"),
    ("sample", "steps=few", "of type int"),
    ("sample", "stage4", "is unknown; use one of .*stage3_la6_sink1"),
    ("sample", "stage3_la3_sink1", "leaves 2 frames beside the sink"),
    ("sample", "latent,frames=21", "of a variant of Wan"),
    ("sample", "stage3,frames=-1", "must be positive"),
    ("sample", "size=3", "use one of variant=latent"),
    ("sample", "runlocal=maybe", "true or false"),
    ("sample", "=3", "use one of"),
    ("dmd", "medium", "size='medium' is unknown"),
    ("benchmark", "suite=cpu", "use one of"),
    ("evaluate", "latent,windows", "windows is that of the variant colour"),
    ("evaluate", "colour,length=30s", "length is that of vbench and videos"),
  ],
)
def test_bad_arguments_are_errors_with_the_way_out(
  name: str, arg: str, words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    tiny_project.config(name, arg)


_WORD = st.text("abcxyz_", min_size=1, max_size=6)
_VALUE = st.one_of(st.booleans(), st.integers(-99, 99), st.floats(-9, 9), _WORD)


@given(
  st.dictionaries(_WORD, st.tuples(_VALUE, st.booleans()), max_size=5),
  st.randoms(use_true_random=False),
)
def test_values_come_back_typed_in_any_order(fields, random) -> None:
  defaults = {name: value for name, (value, _) in fields.items()}
  other = {bool: True, int: 7, float: 0.5, str: "given"}
  wanted = {
    name: other[type(value)] if changed else value
    for name, (value, changed) in fields.items()
  }
  parts = [f"{n}={wanted[n]}" for n, (_, changed) in fields.items() if changed]
  random.shuffle(parts)
  values = common.parse_arg(",".join(parts), **defaults)
  assert values == wanted and [*values] == [*defaults]
  assert [type(v) for v in values.values()] == [
    type(v) for v in defaults.values()
  ]


def test_bare_names_are_switches_or_the_variant() -> None:
  defaults = dict(kind="latent", fast=False)
  for parts in itertools.permutations(["dense", "fast"]):
    values = common.parse_arg(",".join(parts), **defaults)
    assert values == dict(kind="dense", fast=True)
  assert common.parse_arg(None, **defaults) == defaults
  with pytest.raises(ValueError, match="is unknown"):
    common.parse_arg("dense", steps=3)
