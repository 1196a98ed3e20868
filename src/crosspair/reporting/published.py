"""Published accuracies, to stand beside one's own: the only numbers of a report that are typed."""

from __future__ import annotations

from dataclasses import dataclass

_NOT_TOLD = "not told"
_TWO_SETS = "Instagram-300k or Kinetics-210k"  # the text gives both numbers, not which is whose


@dataclass(frozen=True)
class Published:
    """One accuracy, and all that its source tells of how it came to be."""

    value: float
    """Top-1 accuracy, 0 to 1."""
    table: str
    """Table of this package's report that it belongs to, numbered as the paper's: "2" to "5"."""
    source: str
    """As "paper, Table 3"."""
    method: str
    network: str
    pretrained: str
    """What it was pre-trained on, and by what supervision where that is not CPD's."""
    protocol: str
    """As in `crosspair.evaluation.Result`."""
    data: str
    """What it was tested on."""
    classes: int
    """Of the test."""
    labels: float = 1.0
    """Share of the labels that were seen."""

    @property
    def is_cpd(self) -> bool:
        """Whether this is the paper's method rather than one it is compared with."""
        return self.method.startswith("CPD")


def _fraction(percent: float) -> float:
    return round(percent / 100, 3)


def _frozen(percent: float, method: str, network: str, pretrained: str) -> Published:
    return Published(
        _fraction(percent), "2", "paper, Section 4.4 (Table 2)", method, network, pretrained,
        "linear", "Kinetics-400 validation", 400,
    )  # fmt: skip


def _finetuned(
    ucf101: float,
    hmdb51: float | None,
    method: str,
    network: str,
    pretrained: str,
    source: str = "paper, Table 3",
) -> tuple[Published, ...]:
    tests = (("UCF101", 101, ucf101), ("HMDB51", 51, hmdb51))
    return tuple(
        Published(
            _fraction(percent), "3", source, method, network, pretrained, "30 views", data, classes
        )
        for data, classes, percent in tests
        if percent is not None
    )


def _low_shot(percent: float, method: str) -> Published:
    return Published(
        _fraction(percent), "4", "paper, Appendix B (Table 4)", method, _NOT_TOLD, _TWO_SETS,
        "30 views", "Kinetics-400 validation", 400, labels=0.01,
    )  # fmt: skip


def _zero_shot(percent: float, protocol: str, classes: int) -> Published:
    return Published(
        _fraction(percent), "5", "paper, Appendix C (Table 5)", "CPD", _NOT_TOLD, _NOT_TOLD,
        protocol, "Kinetics-400 validation", classes,
    )  # fmt: skip


_RELEASED = "authors' released model, 3 splits"
_SAME_NETWORK = "mmaction2"

PUBLISHED: tuple[Published, ...] = (
    _frozen(63.8, "CPD, feature not told", _NOT_TOLD, _NOT_TOLD),
    _frozen(73.2, "Supervised end to end, no probe", _NOT_TOLD, "Kinetics-400 labels"),
    *_finetuned(92.8, 63.6, "CPD", "3D ResNet-50", "Instagram-300k", _RELEASED),
    *_finetuned(71.4, 37.5, "ImageNet", "3D ResNet-50", "ImageNet labels", _SAME_NETWORK),
    *_finetuned(92.8, 66.0, "Supervised", "3D ResNet-50", "Kinetics labels", _SAME_NETWORK),
    *_finetuned(42.4, 17.1, "Random init.", "3D ResNet-18", "nothing"),
    *_finetuned(89.3, 61.0, "Kinetics pre-trained", "3D ResNet-50", "Kinetics, action labels"),
    *_finetuned(96.8, 75.9, "Supervised SOTA", "S3D", "Kinetics, action labels"),
    *_finetuned(50.2, 18.1, "Shuffle & Learn", "CaffeNet", "UCF101/HMDB51, order"),
    *_finetuned(59.8, 23.8, "OPN", "VGGNet", "UCF101/HMDB51, order"),
    *_finetuned(55.3, None, "CMC", "CaffeNet", "UCF101, optical flow"),
    *_finetuned(60.3, 32.5, "O3N", "AlexNet", "UCF101, odd one out"),
    *_finetuned(61.2, 33.4, "MASN", "C3D", "Kinetics-400, motion"),
    *_finetuned(64.9, 29.5, "COP", "3D ResNet-10", "UCF101, clip order"),
    *_finetuned(75.7, 35.7, "DPC", "3D ResNet-34", "Kinetics-400, prediction"),
    *_finetuned(79.5, 44.6, "CBT", "S3D", "Kinetics-600, audio (text) and context"),
    *_finetuned(83.7, 53.0, "AVTS", "I3D", "Kinetics-600, audio"),
    *_finetuned(89.0, 61.6, "AVTS", "MC3", "Audioset-1.8M, audio"),
    *_finetuned(84.2, 47.1, "XDC", "R(2+1)D", "Kinetics-400, audio"),
    *_finetuned(91.5, 63.1, "XDC", "R(2+1)D", "IG-65M, audio"),
    *_finetuned(91.3, 61.0, "MIL-NCE", "S3D", "HT-100M, audio (text)"),
    _low_shot(18.7, "CPD, the weaker of two pre-training sets"),
    _low_shot(25.9, "CPD, the better of two pre-training sets"),
    _zero_shot(43.7, "zero-shot", 400),
    _zero_shot(74.4, "zero-shot, 20 random classes", 20),
)
