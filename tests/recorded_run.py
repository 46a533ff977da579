"""Training runs of which everything is real but the costly ends.

`Recorder.run(config)` calls `train.train`. Files, devices, the optimiser's
arithmetic and the insides of attention are replaced by what writes down how it
was called, so that a run takes milliseconds. Its `events` are what the run asks
for in order; its programs can be traced (`Run.traces`), with a network that
reads everything it is given.
"""

import contextlib
import dataclasses
import functools
import pathlib
import types
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reading_network
from tests import tiny_colour
from tests import tiny_project
from videomla_jax import sharding
from videomla_jax import train
from videomla_jax.data import dataset
from videomla_jax.data import example_shape
from videomla_jax.data import reader
from videomla_jax.generation import contact_sheet
from videomla_jax.generation import mp4
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.small_world import codecs
from videomla_jax.small_world import loader
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts
from videomla_jax.small_world.colour import latents
from videomla_jax.small_world.colour import words
from videomla_jax.storage import model_folder
from videomla_jax.storage import train_states
from videomla_jax.training import evaluation
from videomla_jax.training import finite_watch
from videomla_jax.training import inputs
from videomla_jax.training import loop
from videomla_jax.training import networks
from videomla_jax.training import programs
from videomla_jax.training import resumption

TEXT = (5, 8)  # tokens and channels of prepared embeddings
FRAME = (4, 4, 4)  # a prepared latent frame
_DEVICES = 8
# What made a folder -> attention of the model in it.
_KINDS = {"pretraining": "dense", "release": "dense"}


def _zeros(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


@functools.cache
def _network(kind: str, changes: tuple[tuple[str, Any], ...]) -> Any:
  config = wan_config.tiny(
    kind=kind, num_layers=1, text_tokens=TEXT[0], text_dim=TEXT[1]
  )
  config = dataclasses.replace(config, **dict(changes))
  return nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))


@functools.cache
def _video(kind: str) -> Any:
  config = tiny_project.video_config(kind)
  return nnx.eval_shape(lambda: model_lib.VideoModel(config, rngs=nnx.Rngs(0)))


def _open_vae(folder: Any) -> codecs.StoredVae:
  """A VAE that lies nowhere; all of them are alike."""
  return codecs.StoredVae(
    folder=pathlib.Path(folder), digest="0" * 64, config=vae_coders.wan_vae()
  )


@functools.cache
def _colour_video(kind: str, changes: tuple[tuple[str, Any], ...]) -> Any:
  config = tiny_colour.video_config(kind)
  return nnx.eval_shape(
    lambda: model_lib.VideoModel(
      config, rngs=nnx.Rngs(0), codec=_open_vae("vae"), **dict(changes)
    )
  )


class _Data:
  """Batches that are all alike."""

  def __init__(self, **example: np.ndarray) -> None:
    self.example = example

  def map(self, change: Any) -> "_Data":
    return _Data(**change(self.example))

  def __iter__(self) -> "_Data":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return self.example

  def get_state(self) -> dict[str, int]:
    return {}

  def set_state(self, state: Any) -> None:
    raise AssertionError("nothing was saved")


@dataclasses.dataclass
class Run:
  """What a run asked for.

  Attributes:
    events: Calls, as plain values, in their order.
    compiled: Function and arguments of each compiled program.
  """

  events: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
  compiled: list[tuple[Any, tuple[Any, ...]]] = dataclasses.field(
    default_factory=list
  )

  @functools.cached_property
  def trace(self) -> tuple[Any, ...]:
    """The first program as text, and the arrays in it."""
    function, args = self.compiled[0]
    found = jax.make_jaxpr(function)(*args)
    return str(found), [np.asarray(x).tobytes() for x in found.consts]


class Recorder:
  """Replaces the ends of training, for as long as a test runs."""

  def __init__(self, folder: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
    self.folder, self.now = folder, Run()
    tiny_project.shrink(patch)
    tiny_colour.shrink(patch)
    patch.setitem(wan_config.SIZES, "wan_1p3b", _tiny)
    more = functools.partial(wan_config.small, num_layers=2)
    patch.setitem(wan_config.SIZES, "another", more)
    patch.setattr(wan, "WanDiT", reading_network.Network)
    self._patch_files(patch)
    self._patch_devices(patch)
    self._patch_data(patch)
    self._patch_samples(patch)

  def run(self, config: Any) -> Run:
    """Runs the training that a config describes."""
    self.now = Run()
    train.train(config, str(self.folder / "run"))
    return self.now

  def say(self, *event: Any) -> None:
    """Adds an event to the present run."""
    self.now.events.append(event)

  def _note(self, name: str, result: Any = None) -> Any:
    """A function that says its plain arguments and returns `result`."""

    def noted(*args: Any, **named: Any) -> Any:
      plain = [x for x in args if isinstance(x, (str, int, float, tuple))]
      self.say(name, plain, sorted((k, repr(x)) for k, x in named.items()))
      return result

    return noted

  def _patch_files(self, patch: pytest.MonkeyPatch) -> None:
    recorder = self

    class States(train_states.TrainCheckpoints):
      def __init__(self, folder: Any, **named: Any) -> None:
        recorder.say("states", named)

      def __enter__(self) -> "States":
        return self

      def __exit__(self, *unused: object) -> None:
        pass

      def newest_config(self) -> None:
        return None

      def restore_latest(self, state: Any, **unused: Any) -> None:
        shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state)]
        recorder.say("state", shapes)

      def save(self, done: int, *unused: Any, **named: Any) -> None:
        recorder.say("save", done)

    def origin(path: Any) -> dict[str, Any]:
      about = dict(training=dict(stage=pathlib.Path(path).name))
      return about | ({} if "wan" in str(path) else {"model": {}})

    patch.setattr(train_states, "TrainCheckpoints", States)
    patch.setattr(model_folder, "read_config", origin)
    patch.setattr(model_lib, "load", self._load_small)
    patch.setattr(codecs, "open_vae", _open_vae)
    pixels = lambda vae: codecs.PixelCodec()
    patch.setattr(codecs.StoredVae, "load", pixels)
    patch.setattr(released, "load", self._load_released)
    patch.setattr(networks, "save", self._hand_on)
    patch.setattr(resumption, "identity", lambda *unused: {})
    jit = lambda make: lambda: _zeros(nnx.eval_shape(make))
    patch.setattr(networks, "jax", types.SimpleNamespace(jit=jit))

  def _hand_on(self, path: Any, model: Any, **about: Any) -> None:
    # The config that lies beside a model is no effect of an option.
    self.say("handed on", about["distilled"], about["steps"])

  def _load_small(self, path: Any, **changes: Any) -> Any:
    self.say("load", str(path), sorted(changes.items()))
    kind = _KINDS.get(pathlib.Path(path).name, "latent")
    if "world" in str(path):
      return _zeros(_colour_video(kind, tuple(sorted(changes.items()))))
    return _zeros(_video(kind))

  def _load_released(self, path: Any, kind: str, **named: Any) -> Any:
    self.say("load", str(path), sorted(named.items()))
    if kind == "wan_vae":
      return codecs.PixelCodec()
    named.pop("half_weights")
    attention_kind = _KINDS.get(pathlib.Path(path).name, "latent")
    return _zeros(_network(attention_kind, tuple(sorted(named.items()))))

  def _patch_devices(self, patch: pytest.MonkeyPatch) -> None:
    make_mesh = sharding.make_mesh
    (one,), here = jax.devices()[:1], make_mesh(devices=jax.devices()[:1])

    zero = jnp.zeros((), jnp.int32)

    def arranged(sizes: Any, *unused: Any, **named: Any) -> Any:
      self.say("mesh", sizes)
      return here

    def mesh(**named: Any) -> Any:
      if "devices" not in named:
        with pytest.MonkeyPatch.context() as inner:
          inner.setattr(jax, "make_mesh", arranged)
          make_mesh(**named, devices=[one] * _DEVICES)
      return here

    def compiled(function: Any, **unused: Any) -> Any:
      def lower(*args: Any) -> Any:
        self.now.compiled.append((function, args))
        number = len(self.now.compiled)

        def step(state: Any, batch: Any, key: Any, *rest: Any) -> Any:
          shapes = {name: x.shape for name, x in batch.items()}
          seed = jax.random.key_data(key).tolist()
          self.say("step", number, shapes, seed)
          return state, {"train/loss": zero, "train/skipped": zero}

        return types.SimpleNamespace(compile=lambda: step)

      return types.SimpleNamespace(lower=lower)

    def held_out(function: Any) -> Any:
      def loss(model: Any, batch: Any, key: Any, *, frozen: Any) -> float:
        self.say("held-out loss", {name: x.shape for name, x in batch.items()})
        return 0.0

      return loss

    def random_only(jit: Any) -> Any:
      return types.SimpleNamespace(jit=jit, random=jax.random)

    patch.setattr(sharding, "make_mesh", mesh)
    patch.setattr(sharding, "put_batch", lambda batch, mesh, **how: batch)

    def create(make: Any, placed: Any, *, mesh: Any) -> Any:
      for role, model in placed.items():
        self.say("network", role, inputs.dit(model).config)
      return _zeros(jax.eval_shape(make, placed))

    patch.setattr(sharding, "create", create)
    patch.setattr(programs, "jax", random_only(compiled))
    patch.setattr(programs.flops, "of", self._note("flops", 1.0))
    patch.setattr(evaluation, "jax", random_only(held_out))
    self._patch_loop(patch)

  def _patch_loop(self, patch: pytest.MonkeyPatch) -> None:
    def watch(folder: Any, *, limit: int) -> Any:
      self.say("most skipped", limit)
      return types.SimpleNamespace(
        start=lambda x: None, see=lambda *x: None, finish=lambda: True
      )

    def writer(*unused: Any, **named: Any) -> Any:
      scalars = lambda done, values: self.say("metrics", done, sorted(values))
      return contextlib.nullcontext(types.SimpleNamespace(scalars=scalars))

    def progress(total: int, *unused: Any, **named: Any) -> Any:
      self.say("steps", total)
      update = lambda *x, **y: None
      return contextlib.nullcontext(types.SimpleNamespace(update=update))

    patch.setattr(finite_watch, "FiniteWatch", watch)
    patch.setattr(loop.metrics, "MetricWriter", writer)
    patch.setattr(loop.progress_bar, "Progress", progress)
    patch.setattr(loop, "to_host", lambda state: state)
    patch.setattr(loop.rank_metrics, "weights", lambda model: {})
    patch.setattr(loop.rank_metrics, "scalars", self._note("ranks", {}))

  def _patch_data(self, patch: pytest.MonkeyPatch) -> None:
    def digits(root: Any, *, batch_size: int, num_frames: int, **named: Any):
      self.say("clips", root, batch_size, num_frames, repr(named))
      if isinstance(named["config"], latents.LatentsConfig):
        clips = np.zeros((batch_size, num_frames, 8, 8, 16), np.float16)
        tokens = np.zeros((batch_size, words.NUM_TOKENS), np.int32)
        return _Data(latents=clips, tokens=tokens)
      video = np.zeros((batch_size, num_frames, 24, 24, 1), np.uint8)
      tokens = np.zeros((batch_size, prompts.NUM_TOKENS), np.int32)
      return _Data(video=video, tokens=tokens)

    def prepared(root: Any, *, batch_size: int, shapes: Any, **named: Any):
      self.say("prepared", root, batch_size, shapes, repr(named))
      example = dict(
        text=np.zeros((batch_size, *shapes.text), jnp.bfloat16),
        negative=np.zeros(shapes.text, jnp.bfloat16),
      )
      if shapes.latents is not None:
        example["latents"] = np.zeros((batch_size, *shapes.latents), np.float16)
      return _Data(**example)

    def captions(root: Any, shapes: Any, count: int) -> Any:
      text = np.zeros((count, *shapes.text), np.float32)
      return ["a"] * count, text, text[0]

    patch.setattr(loader, "make_loader", digits)
    patch.setattr(reader, "make_loader", prepared)
    patch.setattr(reader, "read_captions", captions)
    patch.setattr(example_shape, "check", self._note("check data"))
    patch.setattr(dataset, "verify", self._note("verify data"))

  def _patch_samples(self, patch: pytest.MonkeyPatch) -> None:
    def videos(pipeline: Any, text: Any, key: Any, **named: Any) -> Any:
      seed = jax.random.key_data(key).tolist()
      self.say("videos", text.shape, pipeline.fps, seed, repr(named))
      return [jnp.zeros((1, 1, 24, 24, 1))]

    def embed(source: Any, words: list[str], *, negative: Any) -> Any:
      rows = len(words) * (1 if negative is None else 2)
      return np.zeros((rows, *TEXT), np.float32)

    patch.setattr(sources.SmallSource, "embed", embed)
    patch.setattr(pixel_stream, "PixelStream", videos)
    patch.setattr(pixel_stream, "whole_clip", videos)
    patch.setattr(contact_sheet, "draw", self._note("sheet"))
    patch.setattr(contact_sheet, "write_png", self._note("png"))
    patch.setattr(mp4, "write_mp4", self._note("film"))


def _tiny(*, kind: str = "latent", **changes: Any) -> wan_config.WanConfig:
  return wan_config.tiny(kind=kind, num_layers=1, **changes)
