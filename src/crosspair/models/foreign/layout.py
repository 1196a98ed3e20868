"""What other projects call the weights of a slow-only 3D ResNet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crosspair.config import ClipConfig
from crosspair.models.tensorfile import TensorFile

_CPD_CLIP = ClipConfig(size=224, frames=8, stride=4)
_SLOW_CLIP = ClipConfig(size=224, frames=8, stride=8)


@dataclass(frozen=True)
class Layout:
    """The names of one project.

    Attributes:
        project: what it is called in messages.
        prefix: before all names of the video encoder.
        stem: names of the first convolution and its normalisation.
        block: of a residual block, by ``stage`` (2 to 5, as in res2), ``layer`` (1 to 4) and
            ``index`` (from 0).
        parts: of a block, from our names to theirs; those that are the same are left out.
        beside: how the names begin that may stand beside the encoder's.
        clip: the form of clips, where the file itself does not tell.
        imagenet_pixels: whether it was trained on pixels normalised as ImageNet's usually are.
        flat: whether it is a network of images, whose kernels get an extent in time.
    """

    project: str
    prefix: str
    stem: tuple[str, str]
    block: str
    parts: dict[str, str]
    beside: tuple[str, ...]
    clip: ClipConfig = _SLOW_CLIP
    imagenet_pixels: bool = False
    flat: bool = False

    def theirs(self, ours: str) -> str:
        """Their name of a weight of our `ResNet3d`.

        >>> PYSLOWFAST.theirs("res4.0.shortcut.1.bias"), PYTORCHVIDEO.theirs("stem.0.weight")
        ('s4.pathway0_res0.branch1_bn.bias', 'blocks.0.conv.weight')
        """
        module, _, key = ours.rpartition(".")
        if found := re.fullmatch(r"res(\d)\.(\d+)\.(.+)", module):
            part = self.parts.get(found[3], found[3])
            return f"{self.prefix}{self._block(int(found[1]), int(found[2]))}.{part}.{key}"
        return f"{self.prefix}{self.stem[int(module.removeprefix('stem.'))]}.{key}"

    def blocks(self, names: set[str]) -> tuple[int, ...]:
        """How many blocks each of res2 to res5 has."""
        counts = []
        for stage in range(2, 6):
            count = 0
            while self.theirs(f"res{stage}.{count}.conv1.weight") in names:
                count += 1
            counts.append(count)
        return tuple(counts)

    def _block(self, stage: int, index: int) -> str:
        return self.block.format(stage=stage, layer=stage - 1, index=index)


AUTHORS = Layout(
    "the authors' code", "visual_encoder.", ("conv1", "bn1"), "layer{layer}.{index}", {},
    ("vis_emb.", "text_emb.", "textual_encoder.", "vis_memory", "text_memory", "Z_v", "Z_t"),
    _CPD_CLIP,
)  # fmt: skip
AUTHORS_CLASSIFIER = Layout(  # fine-tuned by their code
    "the authors' code, fine-tuned", "", ("conv1", "bn1"), "layer{layer}.{index}", {}, ("fc.",),
    ClipConfig(size=224, frames=16, stride=4),
)  # fmt: skip
PYSLOWFAST = Layout(
    "PySlowFast", "", ("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"),
    "s{stage}.pathway0_res{index}",
    {
        **{f"conv{i}": f"branch2.{letter}" for i, letter in enumerate("abc", start=1)},
        **{f"bn{i}": f"branch2.{letter}_bn" for i, letter in enumerate("abc", start=1)},
        "shortcut.0": "branch1", "shortcut.1": "branch1_bn",
    },
    ("head.",),
)  # fmt: skip
PYTORCHVIDEO = Layout(
    "pytorchvideo", "", ("blocks.0.conv", "blocks.0.norm"), "blocks.{layer}.res_blocks.{index}",
    {
        **{f"conv{i}": f"branch2.conv_{letter}" for i, letter in enumerate("abc", start=1)},
        **{f"bn{i}": f"branch2.norm_{letter}" for i, letter in enumerate("abc", start=1)},
        "shortcut.0": "branch1_conv", "shortcut.1": "branch1_norm",
    },
    ("blocks.5.",),
)  # fmt: skip
MMACTION2 = Layout(
    "mmaction2", "backbone.", ("conv1.conv", "conv1.bn"), "layer{layer}.{index}",
    {
        **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
        **{f"bn{i}": f"conv{i}.bn" for i in (1, 2, 3)},
        "shortcut.0": "downsample.conv", "shortcut.1": "downsample.bn",
    },
    ("cls_head.",), imagenet_pixels=True,
)  # fmt: skip
IMAGES = Layout(  # torchvision's and timm's names
    "a 2D ResNet", "", ("conv1", "bn1"), "layer{layer}.{index}",
    {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"}, ("fc.",),
    ClipConfig(size=224), imagenet_pixels=True, flat=True,
)  # fmt: skip
LAYOUTS = (AUTHORS, AUTHORS_CLASSIFIER, PYSLOWFAST, PYTORCHVIDEO, MMACTION2, IMAGES)


def layout_of(file: TensorFile) -> Layout | None:
    """Whose names the weights have; none where nobody's."""
    for layout in LAYOUTS:
        stem = file.weights.get(layout.theirs("stem.0.weight"))
        if stem is not None and stem.dim() == (4 if layout.flat else 5):
            return layout
    return None
