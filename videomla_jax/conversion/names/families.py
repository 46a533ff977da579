"""Networks of other families, told by their names and refused by name.

A checkpoint of another family has most of the names of Wan2.1's, so that a list
of what does not fit would be long and say nothing. One row tells each family by
something that only it has.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import NamedTuple

type Shapes = Mapping[str, tuple[int, ...]]


class Family(NamedTuple):
  """A kind of checkpoint that cannot be converted.

  Attributes:
    pattern: Expression that matches a whole name which only this kind has.
    title: What it is called.
    way_out: What to do instead.
  """

  pattern: str
  title: str
  way_out: str = "give a text-to-video network of Wan2.1"


_LORA = "give the network that it changes, and the LoRA as --lora=FILE"
_VAE = "give Wan2.1_VAE.pth"
_UMT5 = "give models_t5_umt5-xxl-enc-bf16.pth"

# The first row that matches counts, so what has the parts of another family and
# one of its own comes before it.
_BY_NAME = (
  Family(
    r".*[._](lora_(A|B|a|b|up|down|E)|lora[12])(\..*)?"
    r"|.*\.(lokr_w[12].*|hada_w[12].*|lora_mid\..*|dora_scale|oft_.*)"
    r"|lora_(unet|transformer|te).*|.*\.(diff|diff_b)",
    "a LoRA",
    _LORA,
  ),
  Family(r"(vace_.*|.*\.vace_.*|.*vace_patch.*)", "Wan VACE"),
  Family(
    r"(casual_audio_encoder|audio_injector|trainable_cond_mask)\..*",
    "Wan2.2-S2V (speech to video)",
  ),
  Family(
    r"(face_adapter|face_encoder|motion_encoder|pose_patch_embedding)\..*",
    "Wan2.2-Animate",
  ),
  Family(
    r"(audio_proj|audio_model|proj_model|audio_cross_attn)\..*|.*\.audio_.*",
    "a Wan that is driven by sound",
  ),
  Family(r"(control_adapter|add_conv_in|ref_conv)\..*", "Wan Fun-Control"),
  Family(r".*\.(cam_encoder|projector)\..*", "a Wan with camera control"),
  Family(r"(fps_embedding|fps_projection)\..*|fps_embedding", "SkyReels-V2-DF"),
  Family(
    r"img_emb\.emb_pos|.*image_embedder\.pos_embed",
    "Wan2.1-FLF2V (first and last frame to video)",
  ),
  Family(
    r"img_emb\..*|.*\.image_embedder\..*|.*\.cross_attn\.k_img\..*"
    r"|.*\.attn2\.add_k_proj\..*",
    "Wan2.1-I2V (image to video)",
  ),
  Family(r"(double|single)_blocks\.\d+\..*", "HunyuanVideo or FLUX"),
  Family(r"joint_blocks\..*|.*joint_transformer_blocks\..*", "an SD3 network"),
  Family(r"(net\.)?x_embedder\..*", "a Cosmos or PixArt network"),
  Family(r"(transformer_blocks|single_transformer_blocks)\..*", "another DiT"),
  Family(r"(.*\.)?input_blocks\..*|mid_block\.attentions\..*", "an SD UNet"),
  Family(r"(visual|textual)\..*|vision_model\..*", "a CLIP encoder", _UMT5),
  Family(
    r"encoder\.(down|down_blocks)\.\d+\.(block|resnets)\.\d+\.conv1\.conv\..*",
    "the VAE of another family",
    _VAE,
  ),
  Family(
    r"(encoder|decoder)\.(down|up)samples\.\d+\.(down|up)samples\..*",
    "the VAE of Wan2.2-TI2V-5B",
    _VAE,
  ),
  Family(
    r"decoder\.\d+\.conv\.3\.weight",
    "a tiny decoder of the larger kind (super)",
    "give taew2_1.safetensors",
  ),
  Family(r"encoder\.layer\.\d+\..*", "a BERT encoder", _UMT5),
  Family(r"layers\.\d+\..*|lm_head\..*", "a language model", _UMT5),
)


def refuse(names: Iterable[str], shapes: Shapes) -> None:
  """Refuses a checkpoint of a family that is known not to fit.

  Args:
    names: Names of its tensors as they are.
    shapes: PyTorch shapes under names without wrappers.

  Raises:
    ValueError: If it is of such a family.
  """
  # What is a wrapper in Wan's networks may be the mark of another.
  both = {*names, *shapes}
  for family in (*_BY_NAME, *_by_shape(shapes)):
    if any(re.fullmatch(family.pattern, name) for name in both):
      raise ValueError(
        f"source is {family.title}, which is not supported; {family.way_out}."
      )


def _by_shape(shapes: Shapes) -> list[Family]:
  """Returns the families that only a shape tells."""
  patch = shapes.get("patch_embedding.weight", ())
  head = shapes.get("head.head.weight", shapes.get("proj_out.weight", ()))
  found = []
  if len(patch) == 5 and len(head) == 2:
    outputs = head[0] // max(patch[-1] * patch[-2], 1)
    if (patch[0], patch[1]) == (3072, 48):
      found.append(Family("patch_embedding.weight", "Wan2.2-TI2V-5B"))
    elif patch[1] > outputs:
      title = (
        f"a Wan that is given {patch[1] - outputs} channels beside its noise "
        "(Wan2.2-I2V-A14B, Fun-Control, Fun-InP and others)"
      )
      found.append(Family("patch_embedding.weight", title))
  stem = shapes.get("encoder.conv1.weight", ()) or shapes.get(
    "encoder.conv_in.weight", ()
  )
  if len(stem) == 5 and stem[1] == 12:
    name = "encoder.conv(1|_in).weight"
    found.append(Family(name, "the VAE of Wan2.2-TI2V-5B", _VAE))
  elif len(stem) == 4:
    name = "encoder.conv(1|_in).weight"
    found.append(Family(name, "a VAE of images", _VAE))
  return found
