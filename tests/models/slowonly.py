"""Reference ResNets in plain functions, and files of other projects."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from crosspair.models.resnet3d import BLOCKS

Weights = dict[str, torch.Tensor]


class Code:
    """Create a file when unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.made}'",))


def saved(weights: Weights, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
    else:
        torch.save(weights, file)
    return file


def norm_of(name: str, channels: int, generator: torch.Generator) -> Weights:
    def some(low: float, high: float) -> torch.Tensor:
        return torch.rand(channels, generator=generator) * (high - low) + low

    return {
        f"{name}.weight": some(0.5, 1.5),
        f"{name}.bias": some(-0.5, 0.5),
        f"{name}.running_mean": some(-0.5, 0.5),
        f"{name}.running_var": some(0.5, 1.5),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def resnet2d(depth: int, width: int = 4) -> Weights:
    """A state dict with the names of torchvision and timm."""
    weights = {n: v[:, :, 0] if v.dim() == 5 else v for n, v in slow_only(depth, width).items()}
    channels = width * 8 * (4 if depth >= 50 else 1)
    return {**weights, "fc.weight": torch.randn(10, channels), "fc.bias": torch.randn(10)}


def features2d(weights: Weights, depth: int, images: torch.Tensor, *, grey_border: bool = False) -> torch.Tensor:
    """Features of the 2D network for images (B, 3, H, W) in 0 to 1."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    # Zero padding of the inflated network is a grey of 0.45.
    pixels = (bordered(images, 0.45) - mean) / std if grey_border else bordered((images - mean) / std)
    frames = {name: value.unsqueeze(2) if value.dim() == 4 else value for name, value in weights.items()}
    return features(frames, depth, pixels.unsqueeze(2)).float()


def slow_only(depth: int, width: int = 8, projection: bool = True) -> Weights:
    """Seeded weights with the names of 2D ResNets; without projections for shortcut A."""
    generator = torch.Generator().manual_seed(depth)

    def kernel(outer: int, inner: int, *size: int) -> torch.Tensor:
        scale = (2 / (inner * size[0] * size[1] * size[2])) ** 0.5
        return torch.randn(outer, inner, *size, generator=generator) * scale

    weights = {"conv1.weight": kernel(width, 3, 1, 7, 7), **norm_of("bn1", width, generator)}
    channels, expansion = width, 4 if depth >= 50 else 1
    for layer, blocks in enumerate(BLOCKS[depth]):
        inner, time = width * 2**layer, (1, 1, 3, 3)[layer]
        outer = inner * expansion
        for block in range(blocks):
            name = f"layer{layer + 1}.{block}"
            shapes = [(inner, channels, time, 3, 3), (inner, inner, 1, 3, 3)]
            if expansion == 4:
                shapes = [
                    (inner, channels, time, 1, 1), (inner, inner, 1, 3, 3), (outer, inner, 1, 1, 1),
                ]  # fmt: skip
            for index, shape in enumerate(shapes, start=1):
                weights[f"{name}.conv{index}.weight"] = kernel(*shape)
                weights |= norm_of(f"{name}.bn{index}", shape[0], generator)
            if projection and (channels != outer or (layer > 0 and block == 0)):
                weights[f"{name}.downsample.0.weight"] = kernel(outer, channels, 1, 1, 1)
                weights |= norm_of(f"{name}.downsample.1", outer, generator)
            channels = outer
    return weights


def features(weights: Weights, depth: int, clips: torch.Tensor) -> torch.Tensor:
    """Features of the network for padded clips (B, 3, T, H + 6, W + 6)."""
    weights = {name: value.double() for name, value in weights.items()}

    def normalized(x: torch.Tensor, name: str) -> torch.Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))

    x = F.conv3d(clips.double(), weights["conv1.weight"], stride=(1, 2, 2))
    x = F.max_pool3d(normalized(x, "bn1").relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for layer, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            name, stride = f"layer{layer + 1}.{block}", 2 if layer and not block else 1
            count, strided = (3, 2) if depth >= 50 else (2, 1)
            y = x
            for index in range(1, count + 1):
                kernel = weights[f"{name}.conv{index}.weight"]
                steps = (1, stride, stride) if index == strided else 1
                padding = tuple(size // 2 for size in kernel.shape[2:])
                y = normalized(F.conv3d(y, kernel, stride=steps, padding=padding), f"{name}.bn{index}")
                y = y.relu() if index < count else y
            if f"{name}.downsample.0.weight" in weights:
                kernel = weights[f"{name}.downsample.0.weight"]
                x = normalized(F.conv3d(x, kernel, stride=(1, stride, stride)), f"{name}.downsample.1")
            elif x.shape != y.shape:
                x = F.avg_pool3d(x, 1, (1, stride, stride))
                new = y.shape[1] - x.shape[1]
                x = torch.cat([x, x.new_zeros(len(x), new, *x.shape[2:])], dim=1)
            x = (x + y).relu()
    return x.mean(dim=(2, 3, 4))


def bordered(clips: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Pad clips for the first convolution."""
    return F.pad(clips, (3, 3, 3, 3), value=value)


def renamed(weights: Weights, *rules: tuple[str, str]) -> Weights:
    """Rename weights with regular expressions, applied in turn."""
    found = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def pyslowfast(weights: Weights) -> Weights:
    """Rename to PySlowFast's names."""
    return renamed(
        weights,
        *((rf"^layer{layer}\.(\d+)", rf"s{layer + 1}.pathway0_res\1") for layer in range(1, 5)),
        *((rf"(res\d+)\.conv{i}\.", rf"\1.branch2.{letter}.") for i, letter in enumerate("abc", start=1)),
        *((rf"(res\d+)\.bn{i}\.", rf"\1.branch2.{letter}_bn.") for i, letter in enumerate("abc", start=1)),
        (r"downsample\.0", "branch1"), (r"downsample\.1", "branch1_bn"),
        (r"^conv1", "s1.pathway0_stem.conv"), (r"^bn1", "s1.pathway0_stem.bn"),
    )  # fmt: skip


def pytorchvideo(weights: Weights) -> Weights:
    """Rename to pytorchvideo's names."""
    return renamed(
        weights,
        (r"^layer(\d)\.(\d+)", r"blocks.\1.res_blocks.\2"),
        *((rf"(blocks\.\d+)\.conv{i}\.", rf"\1.branch2.conv_{letter}.") for i, letter in enumerate("abc", start=1)),
        *((rf"(blocks\.\d+)\.bn{i}\.", rf"\1.branch2.norm_{letter}.") for i, letter in enumerate("abc", start=1)),
        (r"downsample\.0", "branch1_conv"), (r"downsample\.1", "branch1_norm"),
        (r"^conv1", "blocks.0.conv"), (r"^bn1", "blocks.0.norm"),
    )  # fmt: skip


def mmaction2(weights: Weights) -> Weights:
    """Rename to mmaction2's names."""
    return renamed(
        weights,
        (r"(^|\.)conv(\d)\.", r"\1conv\2.conv."), (r"(^|\.)bn(\d)\.", r"\1conv\2.bn."),
        (r"downsample\.0", "downsample.conv"), (r"downsample\.1", "downsample.bn"),
        (r"^", "backbone."),
    )  # fmt: skip


def authors(depth: int, width: int, language_model: Path, hidden: int = 12, pairs: int = 5) -> dict:
    """A checkpoint of the authors' training code with the language model of a folder."""
    from transformers import AutoModel

    generator = torch.Generator().manual_seed(depth)
    language = AutoModel.from_pretrained(str(language_model))
    outer = width * 8 * (4 if depth >= 50 else 1)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    dimensions = language.config.dim
    parts = {
        **{f"visual_encoder.{n}": v for n, v in slow_only(depth, width, projection=False).items()},
        **{f"textual_encoder.{n}": v for n, v in language.state_dict().items()},
        "vis_emb.weight": some(6, outer), "vis_emb.bias": some(6),
        "text_emb.0.weight": some(hidden, dimensions), "text_emb.0.bias": some(hidden),
        **norm_of("text_emb.1", hidden, generator),
        "text_emb.3.weight": some(6, hidden), "text_emb.3.bias": some(6),
        "Z_v": some(1), "Z_t": some(1),
        "vis_memory": some(pairs, 6), "text_memory": some(pairs, 6),
    }  # fmt: skip
    state = {f"module.{name}": value for name, value in parts.items()}
    return {"epoch": 301, "arch": "resnet-50", "state_dict": state, "optimizer": {"state": {}}}
