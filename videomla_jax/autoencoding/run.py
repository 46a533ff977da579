"""A run of VAE training: resumes, measures, saves, and hands on a folder."""

from collections.abc import Iterator
import dataclasses
import itertools
import json
import pathlib
import time
from typing import Any

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float32, Shaped, UInt8
import ml_collections
import numpy as np

from videomla_jax.autoencoding import clips as clips_lib
from videomla_jax.autoencoding import programs
from videomla_jax.autoencoding import quality
from videomla_jax.autoencoding import settings as settings_lib
from videomla_jax.generation import contact_sheet
from videomla_jax.models import released
from videomla_jax.models import vae as vae_lib
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_layers as layers
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import metrics
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import model_folder
from videomla_jax.storage import output_folder
from videomla_jax.storage import train_states
from videomla_jax.training import finite_watch
from videomla_jax.training import interrupts
from videomla_jax.training import optim
from videomla_jax.training import resumption

# Keys that may be others when a run goes on.
_MAY_CHANGE = (
  *resumption.MAY_CHANGE,
  *("every", "held_out", "keep", "minutes", "data.films", "optim.matrix_rate"),
)
_SHOWN = 6  # held-out clips of a sheet
_FIRST_LOG_VARIANCE = -6.0  # of a new VAE's latents: a deviation of 0.05


def new_vae(settings: settings_lib.Settings) -> vae_lib.WanVAE:
  """Returns the network before its first step.

  Args:
    settings: Settings of the run.

  Raises:
    ValueError: If the folder to start from is damaged or of another kind, or
      sizes do not fit each other or the clips.
  """
  network, data = settings.network, settings.data
  on_gpu = jax.default_backend() == "gpu"
  dtype = network.dtype or ("bfloat16" if on_gpu else "float32")
  if network.start:
    vae = released.load(network.start, "wan_vae", dtype=dtype)
  else:
    config = dataclasses.replace(network.config(), dtype=dtype)
    vae = jax.jit(lambda: _fresh(config, settings.seed))()
  # Frames and sizes that do not fit are refused before anything is compiled.
  abstract = jax.ShapeDtypeStruct(
    (1, data.num_frames, data.height, data.width, 3), np.uint8
  )
  jax.eval_shape(lambda v, x: v.encode(x), vae, abstract)
  return vae


def _fresh(config: vae_coders.VaeConfig, seed: int) -> vae_lib.WanVAE:
  """Makes a VAE with random weights that lets pixels through at once."""
  vae = vae_lib.WanVAE(config, rngs=nnx.Rngs(seed))
  for _, layer in nnx.iter_modules(vae):
    if isinstance(layer, layers.Conv):
      # PyTorch's weights have a third of the variance that keeps a signal's
      # size, and biases. Behind some fourteen layers without a shortcut nothing
      # of a picture would be left beside what the biases add up to.
      layer.kernel.set_value(3**0.5 * layer.kernel[...])
      if layer.bias is not None:
        layer.bias.set_value(jnp.zeros_like(layer.bias[...]))
    if isinstance(layer, layers.CausalConv):
      layer.kernel.set_value(_of_this_frame(layer.kernel[...]))
  assert vae.quant.bias is not None
  # Means are small at first. With a variance of 1 the decoder would see nothing
  # but noise, and learn for hundreds of steps to ignore it.
  bias = vae.quant.bias[...].at[config.channels :].set(_FIRST_LOG_VARIANCE)
  vae.quant.bias.set_value(bias)
  return vae


def _of_this_frame(
  kernel: Float32[jax.Array, "3 p q C c"],
) -> Float32[jax.Array, "3 p q C c"]:
  """Returns weights of which those of earlier frames are zero.

  A network of them treats every frame as the first one, which is what it learns
  from single frames. Where frames are halved or doubled in time, it begins with
  the last frame of each group, and repeats it.
  """
  _, rows, _, inputs, outputs = kernel.shape
  now = kernel[2]
  if rows == 1:
    now = jnp.tile(jnp.eye(inputs), outputs // inputs)[None, None]
  return jnp.zeros_like(kernel).at[2].set(now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run; call it to train to the end.

  Attributes:
    settings: Settings of the run.
    source: Where clips come from.
    record: The config as plain JSON values, saved with every state.
    root: Folder of the run.
  """

  settings: settings_lib.Settings
  source: clips_lib.Source
  record: dict[str, Any]
  root: pathlib.Path

  def __call__(self) -> quality.Quality:
    """Trains to the last step or minute, and writes the folder `model`.

    Returns:
      The quality of what was handed on.

    Raises:
      ValueError: If the folder holds another run, or too many updates in a row
        are not finite.
      SystemExit: After a signal, when the state is on disk.
    """
    with (
      interrupts.exclusive(self.root),
      train_states.TrainCheckpoints(
        self.root / "checkpoints", keep=self.settings.keep
      ) as checkpoints,
    ):
      resumption.check(
        checkpoints,
        self.record,
        workdir=str(self.root),
        may_change=_MAY_CHANGE,
      )
      vae = new_vae(self.settings)
      state = programs.start(vae, settings=self.settings)
      restored = checkpoints.restore_latest(
        state, agrees=resumption.disagreement
      )
      if restored is not None:
        state = restored.state
        logging.info("continuing after step %d", restored.step)
      state = self._train(state, checkpoints)
      checkpoints.wait()
      return self._hand_on(state)

  def _train(
    self, state: optim.TrainState, checkpoints: train_states.TrainCheckpoints
  ) -> optim.TrainState:
    """Makes the steps that are left."""
    first, total = int(state.step), self.settings.optim.steps
    every = self.settings.every
    watch = finite_watch.FiniteWatch(
      self.root / "skipped", limit=self.settings.optim.max_skipped
    )
    watch.start(state.skipped)
    started = lap = time.monotonic()
    done, logged, owed = first, first, False
    with (
      interrupts.StopRequest().listening() as stop,
      metrics.MetricWriter(self.root, resumed_step=first) as writer,
      progress_bar.Progress(total, "VAE", initial=first) as progress,
    ):
      for program, given in self._work(first):
        state, scalars = program(state, given)
        count = len(given)
        done += count
        watch.see(done, scalars["train/skipped"], {"given": given})
        # Fetching the loss waits for the steps. A call takes so long that
        # nothing would be gained by looking ahead.
        progress.update(count, loss=float(scalars["vae/loss"]))
        now = time.monotonic()
        over = 0 < self.settings.minutes * 60 <= now - started
        last, stopped = done == total or over, stop.pending(done)
        due = lambda n, done=done, last=last: done % n == 0 or last
        if due(every.log) or stopped:
          seconds = (now - lap) / (done - logged)
          writer.scalars(done, self._scalars(scalars, seconds, done))
          lap, logged = now, done
        owed |= due(every.save) or stopped
        # States of skipped steps would push out those before them.
        if owed and watch.finish():
          checkpoints.save(done, state, None, self.record, force=True)
          owed = False
        if due(every.measure):
          writer.scalars(done, self._measure(state.ema, done))
          lap = time.monotonic()  # This time belongs to no step.
        if last:
          break
        if stopped:
          self._stop(stop, checkpoints, done)
    return state

  def _stop(
    self,
    stop: interrupts.StopRequest,
    checkpoints: train_states.TrainCheckpoints,
    done: int,
  ) -> None:
    """Ends the process; the same command goes on later."""
    checkpoints.wait()
    logging.warning(
      "%s after step %d of %d: step %d is saved; the same command continues "
      "there",
      stop.reason, done, self.settings.optim.steps,
      max(checkpoints.steps(), default=0),
    )  # fmt: skip
    raise stop.obey()

  def _work(
    self, first: int
  ) -> Iterator[tuple[programs.Program, Shaped[np.ndarray, "n ..."]]]:
    """Yields the program of each call that is left, and what it is given."""
    settings, counts = self.settings, self._calls(first)
    images, total = settings.images, first
    ends = [total := total + count for count in counts]
    split = sum(end <= images.steps for end in ends)
    for source, part in (
      (self.source.of_images(images.batch_size), counts[:split]),
      (self.source, counts[split:]),
    ):
      program = programs.Program(settings, source)
      for given in source.steps(first, part):
        yield program, given
      first += sum(part)

  def _calls(self, first: int) -> list[int]:
    """Returns the steps of each call that is left."""
    dispatch, total = self.settings.every.dispatch, self.settings.optim.steps
    # A run that was stopped between two lines first comes back into step.
    ends = range(first - first % dispatch + dispatch, total, dispatch)
    bounds = [first, *ends, total] if first < total else [total]
    return [b - a for a, b in itertools.pairwise(bounds)]

  def _scalars(
    self, scalars: programs.Scalars, seconds: float, done: int
  ) -> dict[str, float]:
    """Fetches scalars and adds how fast steps were."""
    settings = self.settings
    shown = settings.images if done <= settings.images.steps else settings.data
    speed = {
      "perf/step_seconds": seconds,
      "perf/clips_per_second": shown.batch_size / seconds,
    }
    return {name: float(x) for name, x in scalars.items()} | speed

  def _measure(self, vae: vae_lib.WanVAE, done: int) -> dict[str, float]:
    """Measures the average on held-out clips, and shows some of them."""
    batches = [*self.source.held_out(self.settings.held_out)]
    found = quality.measure(vae, batches)
    self._write_sheet(vae, np.asarray(batches[0])[:_SHOWN], done)
    return {"eval/psnr": found.psnr, "eval/seam": found.seam}

  def _write_sheet(
    self, vae: vae_lib.WanVAE, video: UInt8[np.ndarray, "B t h w 3"], done: int
  ) -> None:
    """Writes clips above what the VAE makes of them."""
    found = np.asarray(_again(vae, jnp.asarray(video)))
    rows = np.stack([video, found], 1).reshape(-1, *video.shape[1:])
    labels = [
      f"{what} {n + 1}"
      for n in range(len(video))
      for what in ("held-out clip", "decoded clip")
    ]
    sheet = contact_sheet.draw(
      rows, labels, fps=self.settings.data.fps, columns=12
    )
    (self.root / "samples").mkdir(exist_ok=True)
    contact_sheet.write_png(
      self.root / "samples" / f"step-{done:07d}.png", sheet
    )

  def _hand_on(self, state: optim.TrainState) -> quality.Quality:
    """Writes the averaged VAE with the statistics of its latents."""
    vae = state.ema
    if self.settings.network.decoder_only:
      # An average of equal numbers may be off by the last bit.
      vae.encoder, vae.quant = state.model.encoder, state.model.quant
    else:
      vae = quality.with_statistics(vae, self._shown())
    batches = [*self.source.held_out(self.settings.held_out)]
    found = quality.measure(vae, batches)
    report = dataclasses.asdict(found) | {"steps": int(state.step)}
    released.save(
      self.root / "model",
      vae,
      training=self.record | {"stage": "autoencoding"},
      quality=report,
    )
    text = json.dumps(report, indent=1) + "\n"
    atomic.write_text(self.root / "quality.json", text)
    return found

  def _shown(self) -> Iterator[clips_lib.Clips]:
    """Yields clips of the first steps, as many as held-out ones."""
    count = -(-self.settings.held_out // self.settings.data.batch_size)
    clips = jax.jit(self.source.clips)
    for given in self.source.steps(0, [1] * count):
      yield clips(given[0])


def open_run(config: ml_collections.ConfigDict, workdir: str) -> Run:
  """Checks a config and a folder, and returns their run.

  Args:
    config: Values of the keys in `configs/vae.py`.
    workdir: Folder of checkpoints, metrics and the finished model.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  settings = config_reader.read(settings_lib.Settings, config)
  if not settings.network.start:
    settings.network.config()  # refuses sizes that do not fit each other
  root = pathlib.Path(workdir)
  source = clips_lib.open_source(settings.data, settings.seed)
  output_folder.check(root)
  model_folder.check_replaceable(root / "model")
  return Run(
    settings=settings,
    source=source,
    record=json.loads(config.to_json()),
    root=root,
  )


@jax.jit
def _again(
  vae: vae_lib.WanVAE, video: UInt8[jax.Array, "B t h w 3"]
) -> UInt8[jax.Array, "B t h w 3"]:
  """Encodes and decodes clips."""
  found = vae.decode(vae.encode(video))
  return (found * 255 + 0.5).astype("uint8")
