"""A file becomes a tensor: sampling by time, decoding, views, batches."""

from crosspair.video.decode import VideoInfo, probe, read_frames
from crosspair.video.loader import Batch, ClipFormat, TrainingOrder, test_loader, training_loader
from crosspair.video.sampling import clip_span, clip_times, uniform_positions
from crosspair.video.views import View, centre_view, load_view, training_view

__all__ = [
    "Batch",
    "ClipFormat",
    "TrainingOrder",
    "VideoInfo",
    "View",
    "centre_view",
    "clip_span",
    "clip_times",
    "load_view",
    "probe",
    "read_frames",
    "test_loader",
    "training_loader",
    "training_view",
    "uniform_positions",
]
