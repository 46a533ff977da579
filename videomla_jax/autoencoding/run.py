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
from jaxtyping import UInt8
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
from videomla_jax.runtime import metrics
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import train_states
from videomla_jax.training import interrupts
from videomla_jax.training import optim
from videomla_jax.training import resumption

# Keys that may be others when a run goes on.
_MAY_CHANGE = (
  *("every.log", "every.measure", "every.save", "every.dispatch"),
  *("held_out", "keep", "minutes", "data.films"),
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
  assert vae.quant.bias is not None
  # Means are small at first. With a variance of 1 the decoder would see nothing
  # but noise, and learn for hundreds of steps to ignore it.
  bias = vae.quant.bias[...].at[config.channels :].set(_FIRST_LOG_VARIANCE)
  vae.quant.bias.set_value(bias)
  return vae


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
        checkpoints, self.record, workdir=str(self.root), unread=_MAY_CHANGE
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
    counts = self._calls(first)
    program = programs.Program(self.settings, self.source)
    started = lap = time.monotonic()
    with (
      interrupts.StopRequest().listening() as stop,
      metrics.MetricWriter(self.root, resumed_step=first) as writer,
      progress_bar.Progress(total, "VAE", initial=first) as progress,
    ):
      done, logged = first, first
      given = self.source.groups(first, counts)
      for count, clips in zip(counts, given, strict=True):
        state, scalars = program(state, clips, count=count)
        done += count
        # Fetching the counter waits for the steps, which takes long enough on
        # its own that nothing is gained by looking ahead.
        self._check_finite(state, scalars, done)
        now = time.monotonic()
        over = 0 < self.settings.minutes * 60 <= now - started
        last, stopped = done == total or over, stop.pending(done)
        due = lambda every, done=done, last=last: done % every == 0 or last
        progress.update(count, loss=float(scalars["vae/loss"]))
        if due(self.settings.every.log) or stopped:
          seconds = (now - lap) / (done - logged)
          writer.scalars(done, self._scalars(scalars, seconds))
          lap, logged = now, done
        if due(self.settings.every.save) or stopped:
          checkpoints.save(done, state, None, self.record, force=True)
        if due(self.settings.every.measure):
          writer.scalars(done, self._measure(state.ema, done))
          lap = time.monotonic()  # This time belongs to no step.
        if stopped and not last:
          checkpoints.wait()
          logging.warning(
            "%s: saved step %d of %d; the same command continues there",
            stop.reason, done, total,
          )  # fmt: skip
          raise stop.obey()
        if last:
          break
    return state

  def _calls(self, first: int) -> list[int]:
    """Returns the steps of each call that is left."""
    dispatch, total = self.settings.every.dispatch, self.settings.optim.steps
    # A run that was stopped between two lines first comes back into step.
    ends = range(first - first % dispatch + dispatch, total, dispatch)
    bounds = [first, *ends, total] if first < total else [total]
    return [b - a for a, b in itertools.pairwise(bounds)]

  def _check_finite(
    self, state: optim.TrainState, scalars: programs.Scalars, done: int
  ) -> None:
    """Ends a run whose updates are no numbers any more."""
    if np.isfinite(float(scalars["vae/loss"])):
      return
    skipped, most = int(state.skipped), self.settings.optim.max_skipped
    logging.warning("%d updates up to step %d were not finite", skipped, done)
    if skipped >= most:
      raise ValueError(
        f"{skipped} updates up to step {done} were not finite; lower "
        "optim.learning_rate, or continue from an older state."
      )

  def _scalars(
    self, scalars: programs.Scalars, seconds: float
  ) -> dict[str, float]:
    """Fetches scalars and adds how fast steps were."""
    speed = {
      "perf/step_seconds": seconds,
      "perf/clips_per_second": self.settings.data.batch_size / seconds,
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
      vae = quality.with_statistics(vae, self._statistics())
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

  def _statistics(self) -> Iterator[clips_lib.Clips]:
    """Yields clips that training shows, for means and deviations."""
    count = -(-self.settings.held_out // self.settings.data.batch_size)
    for group in self.source.groups(0, [1] * count):
      if group is not None:
        yield group[0]
    if isinstance(self.source, clips_lib.ColourWorld):
      draw = jax.jit(self.source.draw)
      key = jax.random.key(self.settings.seed)
      yield from (draw(jax.random.fold_in(key, n)) for n in range(count))


@jax.jit
def _again(
  vae: vae_lib.WanVAE, video: UInt8[jax.Array, "B t h w 3"]
) -> UInt8[jax.Array, "B t h w 3"]:
  """Encodes and decodes clips."""
  found = vae.decode(vae.encode(video))
  return (found * 255 + 0.5).astype("uint8")
