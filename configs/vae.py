"""Training of a video VAE, Wan's architecture at a width of choice.

  python -m videomla_jax.train_vae --config=configs/vae.py:world \
    --workdir=runs/vae

`world`: 1.18 million parameters, strides 4 x 8 x 8, 64 x 64 pixels of the
colour world. `films`: clips of a folder of videos, `films=DIR`. Half of the
steps of a new VAE see single frames (`images`).

Arguments: `world` or `films`, `films=DIR`, `start=DIR` (a VAE to go on with,
such as models/wan_1p3b/vae), `steps=N`, `minutes=N` after which the run ends as
if it were done, `seed=N`, `dispatch=N` (steps of one call of the program; on a
CPU 1 is faster), `runlocal` (seconds, for tests).
"""

import ml_collections

import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config of one variant.

  Args:
    arg: Variant and other arguments, separated by commas; see above.

  Raises:
    ValueError: If one of them is unknown.
  """
  arg = common.parse_arg(
    arg,
    variant="world",
    films="",
    start="",
    steps=20_000,
    minutes=0.0,
    seed=0,
    dispatch=10,
    runlocal=False,
  )
  if arg["variant"] not in ("world", "films"):
    raise ValueError(
      f"config argument variant={arg['variant']!r} is unknown; use world or "
      "films."
    )
  films = arg["variant"] == "films"
  config = ml_collections.ConfigDict()
  config.seed = arg["seed"]
  config.network = dict(
    start="",  # folder of a VAE to go on with
    width=8,
    channels=16,
    multipliers=(1, 2, 4, 6),
    num_blocks=1,
    temporal=(False, True, True),
    dtype="",  # bfloat16 on a GPU, float32 elsewhere
    decoder_only=False,  # True keeps the encoder, and so all latents
  )
  config.data = dict(
    kind="films" if films else "colour_world",
    films=(arg["films"] or "videos") if films else "",
    num_frames=9,  # pixel frames: three latent frames
    height=64,
    width=64,
    fps=16.0,
    batch_size=8,
  )
  # The first steps see single frames, which show more of the world.
  dispatch = arg["dispatch"]
  images = 0 if arg["start"] else arg["steps"] // 2 // dispatch * dispatch
  config.images = dict(steps=images, batch_size=16)
  # An absolute error asks little for digits, which cover a twentieth.
  config.loss = dict(squared=20.0, kl=1e-4, temporal=0.5)
  config.optim = dict(
    steps=arg["steps"],
    accumulate=1,
    schedule="cosine",
    learning_rate=2e-3,
    matrix_rate=0.05,  # of Muon, for the kernels
    warmup_steps=min(100, arg["steps"] // 4),
    final_fraction=0.02,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
    ema_decay=0.999,
    ema_warmup=True,
    max_skipped=50,
  )
  # Steps. Several of them in a call keep a GPU busy; on a CPU 1 is faster.
  config.every = dict(log=50, measure=1000, save=1000, dispatch=dispatch)
  config.held_out = 32  # clips
  config.keep = 2  # states
  config.minutes = arg["minutes"]
  if arg["runlocal"]:
    config.network.update(width=4, channels=4, multipliers=(1, 1, 1, 1))
    config.data.update(num_frames=5, batch_size=2)
    config.optim.update(steps=4, warmup_steps=1)
    config.images.update(steps=0 if arg["start"] else 2, batch_size=2)
    config.every = dict(log=2, measure=4, save=2, dispatch=2)
    config.held_out = 2
    if films:
      config.data.update(height=16, width=16)
  if arg["start"]:
    config.network.start = arg["start"]
    # It has sizes of its own.
    config.network.update(width=0, channels=0, num_blocks=0)
    config.network.update(multipliers=(), temporal=())
  return config
