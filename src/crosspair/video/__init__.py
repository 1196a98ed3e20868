"""A file becomes a tensor: sampling by time, decoding, views, batches."""

from crosspair.video.container import VideoInfo, probe
from crosspair.video.decode import clip_span, clip_times, read_frames, uniform_positions
from crosspair.video.loader import (
    Batch,
    TrainingOrder,
    centre_loader,
    explain_dead_workers,
    training_loader,
    video_loader,
)
from crosspair.video.views import (
    View,
    centre_view,
    crops_along,
    jitter_colors,
    load_view,
    normalize,
    training_view,
)

__all__ = [
    "Batch",
    "TrainingOrder",
    "VideoInfo",
    "View",
    "centre_loader",
    "centre_view",
    "clip_span",
    "clip_times",
    "crops_along",
    "explain_dead_workers",
    "jitter_colors",
    "load_view",
    "normalize",
    "probe",
    "read_frames",
    "training_loader",
    "training_view",
    "uniform_positions",
    "video_loader",
]
