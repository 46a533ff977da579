"""The page of measurements, and the README's table, are those of the records."""

import importlib.util
import pathlib
import types

import pytest

from tests import pass_errors
from tests import tolerances
from videomla_jax.measuring import record

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program() -> types.ModuleType:
  path = _ROOT / "docs" / "make_benchmarks.py"
  spec = importlib.util.spec_from_file_location("make_benchmarks", path)
  module = importlib.util.module_from_spec(spec)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(path.parent))  # as for a script
    spec.loader.exec_module(module)
  return module


def test_documents_hold_what_the_records_say(program) -> None:
  for path, text in program.documents().items():
    message = f"{path.name} is old: run python docs/make_benchmarks.py"
    assert path.read_text("utf-8") == text, message


def _line(**fields: object) -> dict[str, object]:
  about = dict(device="A GPU", date="2026-01-01", commit="a", versions={})
  return about | dict(unit="us", direction="forward", holes=True) | fields


def test_the_fastest_of_a_call_is_bold_and_newer_numbers_replace(
  program,
) -> None:
  call = dict(name="latent_attention", shape="480p", form="expanded")
  lines = [
    _line(**call, implementation="x", value=10.0),
    _line(**call, implementation="y", value=30.0),
    _line(**call, implementation="y", value=20.0),
  ]
  text = program.page([lines])
  assert "| 480p | some | forward | **10** | 20 |" in text
  assert "30" not in text
  # Another commit has tables of its own, the newest first.
  lines.append(_line(**call, implementation="x", value=5.0) | {"commit": "b"})
  text = program.page([lines])
  assert text.index("commit b") < text.index("commit a")


def test_errors_are_shown_and_tables_without_rows_are_not(program) -> None:
  line = _line(name="latent_attention", implementation="x", error="no GPU")
  text = program.page([[line]])
  assert "| latent_attention, x, forward, holes | `no GPU` |" in text
  assert "Dense attention" not in text


def test_measures_of_many_videos_are_a_column_and_few_have_one_each(
  program,
) -> None:
  video = dict(frames=9, fps=8.0, measures=dict(chunk_jump=1.0))
  summary = dict(chunk_jump=dict(mean=0.5, std=0.25, n=12))
  lines = [
    dict(checkpoint="old", num_videos=12, summary={}),
    dict(checkpoint="a", num_videos=12, summary=summary),
    dict(checkpoint="old", num_videos=12, summary=summary),
    dict(folder="b", num_videos=1, summary=summary, videos={"x.mp4": video}),
  ]
  text = program.measures_section(lines)
  assert "| mean ± deviation | old, n = 12 | a, n = 12 |" in text
  assert "| chunk_jump | 0.5000 ± 0.2500 | 0.5000 ± 0.2500 |" in text
  assert "| b | x.mp4 (9 frames, 8 a second) |" in text
  assert "| chunk_jump | 1.0000 |" in text


def test_what_is_beyond_two_errors_is_listed_and_replaced(program) -> None:
  def line(name: str, **means: float) -> dict[str, object]:
    spread = {k: dict(mean=v, std=0.4, n=16) for k, v in means.items()}
    return dict(checkpoint=name, summary=spread)

  text = program.spreads.beyond(
    [
      line("a", drift_contrast=9.0),
      line("a", drift_contrast=-0.3, drift_sharpness=1.1, chunk_jump=0.1),
      line("b", chunk_ratio=1.0, frame_difference=9.0),
      dict(folder="c", summary={}),
    ]
  )
  assert text == (
    "- a: `drift_contrast` -0.3000 ± 0.1000 (3.0 errors)\n- b: none\n"
  )


def _error(**fields: object) -> dict[str, object]:
  about = dict(network="N", shape="2x2 latents", passes=4, run="interpreted")
  return about | dict(velocity=1.0, latents=1.0, form="expanded") | fields


def test_newer_errors_of_a_pass_replace_older_ones(program) -> None:
  lines = [
    _error(implementation="x"),
    _error(implementation="y", run="XLA"),
    _error(implementation="x", velocity=0.00123, latents=0.02),
  ]
  rows = program.kernels.errors_table(lines).splitlines()[2:]
  call = "| N, 2x2 latents, 4 passes | x | expanded |"
  assert rows[0] == f"{call} interpreted on a CPU | 1.2e-03 | 2.0e-02 |"
  assert len(rows) == 2


def test_errors_of_a_pass_with_every_attention_are_small(program) -> None:
  lines = record.read(_ROOT / "docs" / "pass_errors.jsonl")
  bound = tolerances.TOLERANCES["bfloat16_step"].bound
  assert {x["network"] for x in lines} == {"Wan-1.3B"}
  right = [x for x in lines if x["run"] != pass_errors.WRONG]
  for line in right:
    assert 0 < line["velocity"] <= bound
    assert 0 < line["latents"] <= bound
  expected = {
    (backend.title, form)
    for backend in pass_errors.BACKENDS.values()
    if backend.run != pass_errors.WRONG
    for form in backend.forms
  }
  found = {(x["implementation"], x["form"]) for x in right}
  assert found == expected
  # Random weights attend nearly alike to all keys, so of what is wrong on purpose
  # only values stand out, as docs/kernels.md says.
  worst = max(x["velocity"] for x in right)
  wrong = {
    x["implementation"]: x["velocity"]
    for x in lines
    if x["run"] == pass_errors.WRONG
  }
  assert len(wrong) == 3
  assert wrong["zeros in place of values"] > 3 * worst


def test_markers_are_needed(program) -> None:
  text = f"a {program.START} old {program.END} b"
  assert program.between(text, "new") == (
    f"a {program.START}\nnew{program.END} b"
  )
  with pytest.raises(ValueError, match="lacks"):
    program.between("a", "new")
