"""What features depend on, so that those of one model are never taken for another's."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import torch

from crosspair.corpora import Manifest
from crosspair.corpora.fingerprint import fingerprint
from crosspair.models import CPD
from crosspair.precision import dtype_for


@dataclass(frozen=True)
class Protocol:
    """All that features depend on."""

    model: str
    """Hash of the weights, see `crosspair.models.CPD.hash`."""
    videos: str
    """See `crosspair.corpora.fingerprint`. Titles, labels and splits may change, as features do not
    depend on them."""
    clips: int
    """Uniformly spread clips a video."""
    frames: int
    """Frames a clip."""
    stride: int
    """Distance between frames in 30ths of a second."""
    size: int
    """Side of the square crop, in pixels."""
    short_side: int
    """What the frames' short side is scaled to, in pixels."""
    precision: str
    """What the network computed in: "bf16" or "fp32"."""

    @property
    def folder(self) -> str:
        """A name for a folder of such features, that other models and manifests do not claim."""
        return f"features-{self.model}-{self.videos}-{self.clips}-{self.precision}"

    def difference(self, wanted: Protocol) -> str:
        """What is not as wanted, for people; empty where all is."""
        fields = [field.name for field in dataclasses.fields(Protocol)]
        differing = [name for name in fields if getattr(self, name) != getattr(wanted, name)]
        if not differing:
            return ""
        kinds = {"model": "another model", "videos": "other videos"}
        each = [f"{name} {getattr(self, name)}, not {getattr(wanted, name)}" for name in differing]
        return f"{kinds.get(differing[0], 'another protocol')} ({'; '.join(each)})"

    def json(self) -> str:
        """As text."""
        return json.dumps(dataclasses.asdict(self))


def protocol_of(
    model: CPD, manifest: Manifest, *, clips: int, precision: str, device: torch.device
) -> Protocol:
    """What the features of a manifest's videos by a model depend on.

    Args:
        model: whose weights, and whose form of clips.
        manifest: the videos.
        clips: a video.
        precision: see `crosspair.config.TrainingConfig`.
        device: where they are computed, which decides what precision "auto" is.
    """
    clip = model.clip
    return Protocol(
        model=model.hash,
        videos=fingerprint(manifest),
        clips=clips,
        frames=clip.frames,
        stride=clip.stride,
        size=clip.size,
        short_side=round(clip.test_scale * clip.size),
        precision="bf16" if dtype_for(device, precision) == torch.bfloat16 else "fp32",
    )
