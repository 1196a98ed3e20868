"""Training and inference rates of networks for `benchmarks.cuda`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cuda_device import Scale, Values, allocated_memory, matmul_precision, peak_memory, time_step, to_rates
from crosspair.config import Depth
from crosspair.distributed import World
from crosspair.models import ResNet3d
from crosspair.models.resnet3d import as_clips, as_images
from crosspair.training.loop import prepare_model


@dataclass(frozen=True)
class Way:
    """One of several implementations of the same network."""

    name: str
    dtype: str = "bf16"  # or fp32, tf32
    channels_last: bool = True  # memory format channels_last_3d
    images: bool = False  # compute 1×k×k convolutions as 2D convolutions over B·T images
    fused: bool = True
    mode: str = "eager"  # or compile, graph


TRAINING = (
    Way("fp32", "fp32", channels_last=False, fused=False),
    Way("TF32", "tf32", channels_last=False, fused=False),
    Way("bf16", channels_last=False, fused=False),
    Way("bf16, channels_last_3d", fused=False),
    Way("bf16, channels_last_3d, fused SGD"),
    Way("… and 2D convolutions for 1×k×k kernels", images=True),
    Way("… and torch.compile", mode="compile"),
    Way("… and a CUDA graph", mode="graph"),
)
INFERENCE = (*TRAINING[:4], *TRAINING[5:])
SIZES: dict[Depth, tuple[int, int]] = {18: (112, 128), 34: (112, 128), 50: (224, 32)}


def training_rate(depth: Depth, way: Way, device: torch.device, scale: Scale) -> Values:
    """Measure clips/s of forward pass, backward pass and SGD."""
    encoder, clips = _network(depth, way, device, scale)
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-4, momentum=0.9, fused=way.fused or None)

    def step() -> None:
        with _autocast(way, device):
            features = encoder(clips)
        features.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return _clips_per_second(step, depth, way, len(clips), device, scale, passes=3)


def inference_rate(depth: Depth, way: Way, device: torch.device, scale: Scale) -> Values:
    """Measure clips/s of a forward pass in eval mode."""
    encoder, clips = _network(depth, way, device, scale)
    encoder.eval()

    @torch.no_grad()
    def step() -> None:
        with _autocast(way, device):
            encoder(clips)

    return _clips_per_second(step, depth, way, len(clips), device, scale, passes=1)


def sizes(depth: Depth, scale: Scale) -> tuple[int, int]:
    """Return the side of the clips in pixels and the batch size."""
    size, batch = SIZES[depth]
    return (size, batch) if scale.shrink == 1 else (32, 4)


def _clips_per_second(
    step: Callable[[], None], depth: Depth, way: Way, clips: int,
    device: torch.device, scale: Scale, passes: int,
) -> Values:  # fmt: skip
    with matmul_precision(way.dtype):
        if way.mode == "graph" and device.type == "cuda":
            step = _capture_graph(step, device)
        allocated_memory(device, reset=True)
        seconds = time_step(step, device, scale)
    result = to_rates(clips, seconds, "clips_per_second")
    tflops = passes * _flops(depth, scale) / 1e12 * statistics.median(result["clips_per_second"])
    return {**result, "network_tflops": tflops, "peak_gib": peak_memory(device) / 2**30}


def _network(depth: Depth, way: Way, device: torch.device, scale: Scale) -> tuple[nn.Module, torch.Tensor]:
    size, batch = sizes(depth, scale)
    layout = torch.channels_last_3d if way.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    encoder = prepare_model(ResNet3d(depth, scale.width), World(device=device))
    if not way.channels_last:
        for parameter in encoder.parameters():
            parameter.data = parameter.contiguous()
    if way.images:
        _use_2d_convolutions(encoder)
    if way.mode == "compile":
        encoder.compile()
    clips = torch.randn(batch, 3, 8, size, size, device=device).contiguous(memory_format=layout)
    return encoder, clips


class _ConvolutionOverImages(nn.Module):
    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach().squeeze(2).contiguous(memory_format=torch.channels_last))
        self.stride, self.padding = convolution.stride[1:], convolution.padding[1:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(as_images(x), self.weight, None, self.stride, self.padding)  # type: ignore[arg-type]
        return as_clips(y, x.shape[2])


def _use_2d_convolutions(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.Conv3d) and child.kernel_size[0] == 1:
            setattr(network, name, _ConvolutionOverImages(child))
        else:
            _use_2d_convolutions(child)


def _flops(depth: Depth, scale: Scale) -> float:
    """Count the floating-point operations of a forward pass of one clip."""
    size, _ = sizes(depth, scale)
    with torch.device("meta"):
        encoder, clip = ResNet3d(depth, scale.width), torch.empty(1, 3, 8, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(clip)
    return float(counter.get_total_flops())


def _capture_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _autocast(way: Way, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=way.dtype == "bf16")
