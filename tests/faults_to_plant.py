"""The faults that `planted_faults` plants, and the tests that must see them.

Whoever changes a line that is quoted here changes the quotation, too: a text
that does not occur exactly once is an error.
"""

from typing import NamedTuple


class Fault(NamedTuple):
  """One change of the package that tests must notice.

  Attributes:
    title: What is wrong afterwards.
    file: Path below the package.
    old: Text that occurs exactly once in the file.
    new: What stands there instead.
    tests: Files (or tests in them) below `tests/` of which one must fail.
  """

  title: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


FAULTS = (
  Fault(
    "the ring is one slot shorter than the window",
    "models/window.py",
    "ring = sink + (frame - sink) % max(history, 1)",
    "ring = sink + (frame - sink) % max(history - 1, 1)",
    ("models/cache_test.py",),
  ),
  Fault(
    "one frame too many is kept as sink",
    "models/window.py",
    "sink = min(window.sink_frames, slots)",
    "sink = min(window.sink_frames + 1, slots)",
    ("models/cache_test.py",),
  ),
  Fault(
    "positions of keys count the frame itself as older",
    "models/window.py",
    "older = held[:, None, :] < held[:, :, None]",
    "older = held[:, None, :] <= held[:, :, None]",
    ("models/cache_test.py",),
  ),
  Fault(
    "a window sees one frame of history too few",
    "models/window.py",
    "(frame < window.sink_frames) | (frame >= next_frame - history)",
    "(frame < window.sink_frames) | (frame > next_frame - history)",
    ("diffusion/teacher_forcing_test.py",),
  ),
  Fault(
    "keys are rotated at absolute positions",
    "models/window.py",
    'if scheme == "absolute":',
    'if scheme == "window":',
    ("models/cache_test.py", "parity/causal_rollout_test.py"),
  ),
  Fault(
    "a finished chunk is stored at the timestep of noise",
    "diffusion/chunk_pass.py",
    "  zero = jnp.zeros((), jnp.float32)\n  _, entries = ",
    "  zero = jnp.full((), 1000, jnp.float32)\n  _, entries = ",
    ("diffusion/teacher_forcing_test.py",),
  ),
  Fault(
    "guidance pushes towards the unconditional answer",
    "diffusion/flow.py",
    "return unconditional + weight * (conditional - unconditional)",
    "return conditional + weight * (unconditional - conditional)",
    ("diffusion/flow_test.py",),
  ),
  Fault(
    "the shift of noise levels is wrong",
    "diffusion/flow.py",
    "return s * u / (1 + (s - 1) * u)",
    "return s * u / (1 + s * u)",
    ("diffusion/flow_test.py",),
  ),
  Fault(
    "content latents are cached without RMSNorm",
    "models/attention.py",
    "LatentEntry(self.content_norm(self.w_dkv(x)), self.w_kr(x))",
    "LatentEntry(self.w_dkv(x), self.w_kr(x))",
    ("models/attention_test.py",),
  ),
  Fault(
    "dense attention lacks the factor 1/sqrt(D)",
    "models/attention.py",
    "scale=1 / math.sqrt(self.config.head_dim)",
    "scale=1.0",
    ("parity/wan_dit_test.py",),
  ),
  Fault(
    "cross-attention does not see the last text token",
    "models/wan_block.py",
    "          value,\n          None,\n",
    "          value,\n          jnp.ones(key.shape[:2], bool).at[:, -1].set(False),\n",
    ("parity/wan_dit_test.py",),
  ),
  Fault(
    "a ladder of its own has the denominators of Wan",
    "models/attention.py",
    "return rope.wan_bands(self.d_rope)",
    "return rope.wan_bands(self.head_dim, rope_dim=self.d_rope)",
    ("conversion/names/early_layout_test.py", "models/attention_test.py"),
  ),
  Fault(
    "the bias of the early layout's values is dropped",
    "conversion/names/early_layer.py",
    "np.asarray(out + matrix @ bias, np.float32)",
    "np.asarray(out, np.float32)",
    ("conversion/names/early_layout_test.py",),
  ),
  Fault(
    "a LoRA is merged without its alpha",
    "conversion/lora_scaling.py",
    "return (rank if alpha is None else alpha) / divisor",
    "return 1.0",
    ("conversion/lora_test.py", "conversion/lora_scaling_test.py"),
  ),
  Fault(
    "rotations turn the other way",
    "ops/rope.py",
    "np.asarray([-1, 1], np.float32)",
    "np.asarray([1, -1], np.float32)",
    ("ops/rope_test.py",),
  ),
  Fault(
    "all tokens of an eight-bit entry share one scale",
    "ops/quantise.py",
    "largest_here = jnp.abs(x).max(axis, keepdims=True)",
    "largest_here = jnp.abs(x).max() * jnp.ones_like(x[..., :1])",
    ("ops/quantise_test.py",),
  ),
  Fault(
    "int8 entries are cut instead of rounded",
    "ops/quantise.py",
    "values = jnp.round(values)",
    "values = jnp.trunc(values)",
    ("ops/quantise_test.py",),
  ),
  Fault(
    "the average of weights decays by the wrong factor",
    "training/optim.py",
    "lambda a, b: rate * a + (1 - rate) * b, ema, model",
    "lambda a, b: (1 - rate) * a + rate * b, ema, model",
    ("training/optim_test.py",),
  ),
  Fault(
    "a skipped update still moves the average of weights",
    "training/optim.py",
    "(state.model, state.ema, state.optimiser),",
    "(state.model, ema, state.optimiser),",
    ("training/optim_test.py",),
  ),
  Fault(
    "parameters that are not finite are kept and saved",
    "training/optim.py",
    "finite &= jnp.isfinite(optax.global_norm(floats))",
    "del floats",
    ("training/optim_test.py",),
  ),
  Fault(
    "the gradient of distribution matching has the wrong sign",
    "diffusion/dmd.py",
    "return jnp.nan_to_num((fake - real) / p)",
    "return jnp.nan_to_num((real - fake) / p)",
    ("diffusion/dmd_test.py",),
  ),
  Fault(
    "the loss of the critic reaches the student",
    "diffusion/dmd.py",
    "  x = jax.lax.stop_gradient(x)\n  noisy",
    "  noisy",
    ("diffusion/dmd_test.py",),
  ),
  Fault(
    "gradients of later chunks do not see the earlier chunks",
    "diffusion/self_rollout.py",
    "cache = cache_lib.append(cache, trained.entries, window=window)",
    "cache = cache",
    ("diffusion/dmd_gradients_test.py",),
  ),
  Fault(
    "the VAE remembers frames that are one too old",
    "models/vae_layers.py",
    "return self.over(frames), frames[:, -2:]",
    "return self.over(frames), frames[:, -3:-1]",
    ("models/vae_test.py",),
  ),
  Fault(
    "latents are scaled by the inverse of their statistics",
    "models/vae.py",
    "return (latents - self._mean) / self._std",
    "return (latents - self._mean) * self._std",
    ("models/vae_test.py",),
  ),
  Fault(
    "prompts are unescaped once only",
    "models/tokenizer.py",
    "html.unescape(html.unescape(ftfy.fix_text(text)))",
    "html.unescape(ftfy.fix_text(text))",
    ("models/tokenizer_test.py",),
  ),
  Fault(
    "two processes that embed lose prompts of each other",
    "data/embeddings.py",
    "with locks.alone(path, wait=True):",
    "with contextlib.nullcontext():",
    ("data/embeddings_test.py",),
  ),
  Fault(
    "prompts of prepared clips are never dropped",
    "data/reader.py",
    "if rng.random() < self.prompt_dropout:",
    "if rng.random() < 0.0:",
    ("data/reader_test.py",),
  ),
  Fault(
    "a resumed run reads its data from the start",
    "storage/train_states.py",
    '"iterator": _encode_iterator(iterator_state),',
    '"iterator": _encode_iterator(None),',
    ("storage/model_folder_test.py",),
  ),
  Fault(
    "a pickle may call any function",
    "storage/torch_names.py",
    '    if known or module.split(".")[0] in _INERT_PACKAGES:\n'
    "      return _Name(module, name)",
    "    return _Name(module, name)",
    ("storage/torch_pickle_test.py",),
  ),
  Fault(
    "digests of a training state are not compared",
    "storage/state_digests.py",
    "if digest != listed[name]:",
    "if not digest:",
    ("storage/state_digests_test.py",),
  ),
  Fault(
    "a pickle may give a state to a name of PyTorch",
    "storage/pickle_machine.py",
    'raise PickleError("a state is given to what has none")',
    "pass",
    ("storage/torch_pickle_test.py",),
  ),
  Fault(
    "a tensor may reach beyond its storage",
    "storage/torch_pickle.py",
    "if (offset + span) * kind.itemsize > size:",
    "if offset * kind.itemsize > size:",
    ("storage/torch_pickle_test.py",),
  ),
  Fault(
    "a release without a VAE is converted without a word",
    "conversion/components.py",
    "missing = sorted((parts or COMPONENTS.keys() - EXTRA) - found.keys())",
    "missing = sorted(parts - found.keys())",
    ("conversion/components_test.py",),
  ),
  Fault(
    "digests of a model folder are not compared",
    "storage/model_folder.py",
    "if state_digests.sha256(path / name) != digest:",
    "if not state_digests.sha256(path / name):",
    ("storage/model_folder_test.py",),
  ),
  Fault(
    "output projections are not split over devices",
    "sharding.py",
    '(r"_attention/(out|w_o)/kernel\\b", P("tensor", "fsdp"))',
    '(r"_attention/(out|w_o)/kernel\\b", P())',
    ("sharding_test.py::test_every_large_parameter_of_wan_is_split",),
  ),
  Fault(
    "a second signal cuts the clean-up short",
    "runtime/signals.py",
    "    return  # The first one is being dealt with.",
    "    raise Interrupted(number)",
    ("runtime/signals_test.py",),
  ),
  Fault(
    "guidance of a distilled model is ignored",
    "generation/sampler_choice.py",
    "    if few and guidance:",
    "    if False and few and guidance:",
    ("project/options_test.py",),
  ),
  Fault(
    "noise depends on the place of a prompt in its batch",
    "generation/job.py",
    "jax.random.fold_in(jax.random.key(x), 0) for x in seeds",
    "jax.random.fold_in(jax.random.key(x), i) for i, x in enumerate(seeds)",
    ("sample_test.py",),
  ),
  Fault(
    "a clip that is as long as the video keeps its beginning",
    "generation/pipeline.py",
    "given = given[-most:]",
    "given = given[:most]",
    ("generation/job_test.py",),
  ),
  Fault(
    "a training state has its name before its list",
    "storage/state_commit.py",
    "  state_digests.write(staged, int(final.name))\n"
    "  atomic.sync_all(staged)\n"
    "  os.rename(staged, final)\n",
    "  os.rename(staged, final)\n"
    "  state_digests.write(final, int(final.name))\n",
    ("storage/state_commit_test.py",),
  ),
  Fault(
    "pictures are cut at one side instead of both",
    "media/fitting.py",
    "box = (left, top, picture.width - left, picture.height - top)",
    "box = (0, 0, picture.width - 2 * left, picture.height - 2 * top)",
    ("media/pictures_test.py",),
  ),
  Fault(
    "LoRAs of rank-stabilised training are scaled like others",
    "conversion/lora_scaling.py",
    "math.sqrt(rank) if self.rank_stabilised else rank",
    "rank",
    ("conversion/lora_scaling_test.py",),
  ),
  Fault(
    "a data set may lead TFDS to files elsewhere",
    "data/record_source.py",
    'about.get("filepathTemplate", _TEMPLATE) not in ("", _TEMPLATE)',
    'about.get("filepathTemplate", _TEMPLATE) == ""',
    ("data/record_source_test.py",),
  ),
  Fault(
    "heads of blocks stay between packed records",
    "data/record_files.py",
    "piece[i + _BLOCK_HEAD : i + _BLOCK]",
    "piece[i : i + _BLOCK]",
    ("data/record_files_test.py",),
  ),
  Fault(
    "a block of the tiny decoder sees a frame beside itself",
    "models/tiny_decoder.py",
    "before = jnp.concatenate([memory, x[:, :-1]], axis=1)",
    "before = x",
    ("models/tiny_decoder_test.py",),
  ),
  Fault(
    "the tiny decoder keeps the wrong frame of the first four",
    "models/tiny_decoder.py",
    "x = x[:, -1:]",
    "x = x[:, :1]",
    ("models/tiny_decoder_test.py",),
  ),
  Fault(
    "a chunk is dispatched after the pixels of the last one are there",
    "diffusion/stream.py",
    "self._ahead = self._dispatch()",
    "self._ahead = None",
    (
      "generation/pipeline_test.py::"
      "test_a_chunk_is_dispatched_before_the_host_waits_for_the_last_one",
    ),
  ),
  Fault(
    "a jump of chunks is looked for one frame early",
    "quality/measures.py",
    "begins[[x - 1 for x in chunks",
    "begins[[x - 2 for x in chunks",
    ("quality/measures_test.py",),
  ),
  Fault(
    "two processes make the same videos",
    "quality/plan.py",
    "videos[self.number - 1 :: self.count]",
    "videos[self.number - 1 :]",
    ("quality/plan_test.py",),
  ),
)
