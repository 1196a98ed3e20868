"""Windows: they cover the video, overlapping ones use the same clips, and timelines merge them by class."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip, ClipConfig
from crosspair.errors import CrosspairError
from crosspair.evaluation.windows import SPACING, Windows, whole_video_plan
from crosspair.inference import timeline
from crosspair.video.decode import clip_span
from crosspair.video.views import decode_job

CONFIG = ClipConfig(size=32, frames=8, stride=4)
CLASSES = ["dog", "cat"]

lengths = st.floats(0.05, 500)
windows = st.builds(lambda stride, strides: Windows(stride * strides, stride), st.floats(0.25, 20), st.integers(1, 5))


@given(windows, lengths)
def test_windows_cover_the_video(cut: Windows, length: float) -> None:
    spans = cut.spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    for (start, end), (following, _) in pairwise(spans):
        assert following - start == pytest.approx(cut.stride)
        assert following <= end or end == pytest.approx(following)
    for start, end in spans[:-1]:
        assert end - start == pytest.approx(cut.length)
    assert spans[-1][1] - spans[-1][0] <= cut.length + cut.stride / 2 + 1e-6


@given(windows, lengths)
def test_a_window_is_the_mean_over_clips_within_it(cut: Windows, length: float) -> None:
    plan = cut.plan(3, Clip("a.mp4", 7.0, None), length, CONFIG)
    assert plan.row == 3
    np.testing.assert_allclose(np.array(plan.spans) - 7, cut.spans(length), atol=1e-9)
    assert plan.times.shape[1] == CONFIG.frames
    assert (np.diff(plan.times) >= 0).all()
    assert 0 <= plan.times.min() <= plan.times.max() <= length
    assert {clip for clips in plan.groups for clip in clips} == set(range(len(plan.times)))
    span = clip_span(CONFIG.frames, CONFIG.stride)
    middles = plan.times.mean(axis=1)
    for (start, end), clips in zip(cut.spans(length), plan.groups, strict=True):
        assert (end - start) / len(clips) <= 1.5 * SPACING + 1e-6
        if end - start > 2 * span:
            assert all(start <= middles[clip] <= end for clip in clips)


def test_overlapping_windows_share_their_clips() -> None:
    plan = Windows(4, 2).plan(0, Clip("a.mp4"), 10.0, CONFIG)
    assert [list(clips) for clips in plan.groups] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert plan.times.mean(axis=1) == pytest.approx([1, 3, 5, 7, 9])
    plan = Windows(10, 5).plan(0, Clip("a.mp4"), 10.0, CONFIG)  # a clip every two seconds
    assert [list(clips) for clips in plan.groups] == [[0, 1, 2, 3, 4, 5]]


def test_frames_in_memory_are_thirty_a_second() -> None:
    frames = np.arange(61, dtype=np.uint8)[:, None, None, None].repeat(48, 1).repeat(48, 2)
    plan = whole_video_plan(0, frames.repeat(3, 3), 3)
    assert plan.spans == [(None, None)]
    (job,) = plan.jobs(CONFIG, crops=1, thumbnails=False)
    clips = decode_job(job).clips[0, :, :, 0, 0, 0]  # (3, T), the number of each frame
    assert clips[0].tolist() == list(range(0, 32, 4))
    assert clips[-1, -1] == 60


def test_invalid_windows() -> None:
    for length, stride, value in ((4, 5, "5"), (4, 0, "0"), (float("inf"), 2, "inf"), (4, 3, "3"), (1, 1e-9, "1e-09")):
        with pytest.raises(CrosspairError, match=value):
            Windows(length, stride)


def test_gaps_of_a_timeline_have_no_class() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
    segments = timeline([(0, 4), (2, 6), (10, 14), (20, 24)], scores, CLASSES)
    assert [(each.start, each.end, each.label, each.score) for each in segments] == [
        (0, 6, "dog", 0.8), (10, 14, "dog", 0.8), (20, 24, "cat", 0.8),
    ]  # fmt: skip
    assert timeline([], torch.zeros(0, 2), CLASSES) == []


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_segments_of_a_timeline_are_contiguous(cats: list[bool]) -> None:
    spans = [(2.0 * i, 2.0 * i + 4) for i in range(len(cats))]
    segments = timeline(spans, torch.tensor([[not cat, cat] for cat in cats]).float(), CLASSES)
    assert (segments[0].start, segments[-1].end) == (0, spans[-1][1])
    for one, following in pairwise(segments):
        assert one.end == following.start
        assert one.label != following.label
    labels = {each.start: each.label for each in segments}
    label = ""
    for (start, _), cat in zip(spans, cats, strict=True):
        label = labels.get(start, label)
        assert label == CLASSES[cat]
