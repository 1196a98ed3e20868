"""A file becomes a tensor: sampling by time, decoding, views, batches."""

from crosspair.video.decode import VideoInfo, probe, read_frames
from crosspair.video.loader import (
    Batch,
    TrainingOrder,
    centre_loader,
    decoding,
    training_loader,
    video_loader,
)
from crosspair.video.pixels import jitter_colors, normalize
from crosspair.video.sampling import clip_span, clip_times, uniform_positions
from crosspair.video.views import View, centre_view, crops_along, load_view, training_view

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
    "decoding",
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
