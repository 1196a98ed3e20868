"""Configuration of clips, models, training and fine-tuning.

A recipe is a `Recipe` (pre-training) or a `FinetuneRecipe`; `crosspair.recipes` reads it from YAML.
Each class checks its own values and raises `RecipeError` with the dotted name of the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from crosspair.errors import RecipeError


@dataclass(frozen=True)
class Clip:
    """A video or a segment of it.

    Attributes:
        path: file or fsspec URL.
        start: start of the segment in seconds; None: start of the video.
        end: end of the segment in seconds; None: end of the video.
    """

    path: str
    start: float | None = None
    end: float | None = None


Depth: TypeAlias = Literal[10, 18, 34, 50, 101]
Rule: TypeAlias = tuple[str, Callable[[float], bool]]  # what is required, and whether a number meets it

POSITIVE: Rule = ("above 0", lambda value: value > 0)
NON_NEGATIVE: Rule = ("at least 0", lambda value: value >= 0)
POSITIVE_FRACTION: Rule = ("in (0, 1]", lambda value: 0 < value <= 1)
FRACTION: Rule = ("in [0, 1)", lambda value: 0 <= value < 1)
# If res5 sees one pixel, oneDNN's bfloat16 gradient of a strided 3×3×3 convolution hangs.
NETWORK_INPUT: Rule = ("at least 32", lambda size: size >= 32)


MAX_SIZE = 2**16  # of a dimension of a network
MIN_TEMPERATURE = 0.01  # if it is learned, as in CLIP
MAX_CLIP = 2**25  # pixels of the resized frames of a clip: 32 times the paper's largest


def up_to(limit: int) -> Rule:
    """Return the rule for sizes, which prevents that a foreign configuration fills the memory."""
    return f"from 1 to {limit}", lambda value: 1 <= value <= limit


def check_fields(section: str, config: object, rule: Rule, *names: str) -> None:
    """Raise RecipeError unless the fields are None, or finite numbers that meet a rule."""
    requirement, valid = rule
    for name in names:
        value: float | None = getattr(config, name)
        if value is not None and not (valid(value) and abs(value) < math.inf):
            requirement = requirement if abs(value) < math.inf else "finite"
            raise RecipeError(f"{section}.{name} is {value}; it must be {requirement}")


@dataclass(frozen=True)
class ClipConfig:
    """Sampling and cropping of the network's input (Sections 3.3 and 4.2)."""

    size: int = 112
    """Side of the square crop in pixels: 112 with ResNet-34, 224 with ResNet-50."""
    frames: int = 8
    """Frames per clip: 8 for pre-training, 16 for fine-tuning."""
    stride: int = 4
    """Distance between frames in units of 1/30 s, for any frame rate of the file."""
    scale: tuple[float, float] = (8 / 7, 1.52)
    """Range of the training views' short side, in units of ``size``: [128, 170] for 112."""
    test_scale: float = 8 / 7
    """Short side of test frames, in units of ``size``: 128 for 112, 256 for 224."""
    flip: bool = True
    """Mirror half of the training views; disable it if left and right differ in meaning."""
    color_jitter: float = 0.0
    """Maximum relative change of brightness, contrast and saturation; 0 in the paper."""
    hue: float = 0.0
    """Maximum rotation of the hue, as a fraction of the colour circle, up to 0.5; 0 in the paper."""
    grayscale: float = 0.0
    """Fraction of the training views without colour; 0 in the paper."""
    area: tuple[float, float] | None = None
    """Range of the fraction of the frame that a training view shows, stretched to a square (random-resized crop);
    [0.2, 1] is usual. None, as in the paper: square crops of frames of ``scale``."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """With ``area``, range of width / height of the region that is shown."""

    def __post_init__(self) -> None:
        check_fields("clip", self, up_to(1024), "size", "frames", "stride", "test_scale")
        check_fields("clip", self, NON_NEGATIVE, "color_jitter")
        check_fields("clip", self, ("in [0, 0.5]", lambda turn: 0 <= turn <= 0.5), "hue")
        check_fields("clip", self, ("in [0, 1]", lambda fraction: 0 <= fraction <= 1), "grayscale")
        low, high = self.scale
        if not 1 <= low <= high < math.inf:
            raise RecipeError(f"clip.scale is {self.scale}; it must be ascending, from 1 or above")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise RecipeError(f"clip.area is {self.area}; it must be ascending, above 0 and at most 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise RecipeError(f"clip.aspect is {self.aspect}; it must be ascending, above 0")
        if self.area is None and tuple(self.aspect) != ClipConfig.aspect:
            raise RecipeError(f"clip.aspect is {self.aspect}, which has no effect without clip.area")
        high = max(high, self.test_scale, self.area[0] ** -0.5 if self.area else 1)
        if (pixels := self.frames * (self.size * high) ** 2) > MAX_CLIP:
            raise RecipeError(
                f"clip.frames={self.frames} of clip.size={self.size}, enlarged {high:g} times by clip.scale, "
                f"clip.test_scale or clip.area, are {pixels:.2g} pixels per clip; the maximum is {MAX_CLIP:.2g}"
            )


@dataclass(frozen=True)
class VideoConfig:
    """The video encoder: the slow-only 3D ResNet (Section 3.3), or a pretrained one."""

    depth: Depth = 34
    """Number of layers: 34 and 50 in the paper; 10 and 18 for laptops and tests."""
    width: int = 64
    """Channels of the first stage; 64 is standard."""
    shortcut: Literal["A", "B"] = "B"
    """B: 1×1×1 projection where shapes change. A: no parameters (the authors' checkpoints)."""
    encoder: Literal["resnet3d", "pretrained"] = "resnet3d"
    """resnet3d: the paper's, with the three settings above. pretrained: a Hugging Face model."""
    source: str = ""
    """Pretrained encoder: a folder, a name on the Hub, or package.module:function (docs/weights.md)."""
    train: str = "all"
    """all; last:N, the last N blocks of the encoder and what follows them; head, only what follows
    the encoder; none, not the video head either. The rest keeps its weights and stays in eval mode."""
    views: int = 8
    """In pre-training, views of each video if the encoder is not trained; epochs use them in turn.
    0: a new view in every epoch. Trained encoders, and fine-tuning, always get new views."""
    cache: bool = True
    """Encode these views once, before the pre-training, and train from the stored features."""

    def __post_init__(self) -> None:
        check_fields("video", self, up_to(512), "width")
        check_fields("video", self, NON_NEGATIVE, "views")
        if bool(self.source) != (self.encoder == "pretrained"):
            raise RecipeError(f"video.source is {self.source!r}; video.encoder=pretrained requires it, and only this")
        if not re.fullmatch("all|head|none|last:[1-9][0-9]*", self.train):
            raise RecipeError(f"video.train is {self.train!r}; it must be none, head, last:N (N from 1) or all")

    @property
    def trained_blocks(self) -> int | None:
        """Number of blocks at the end of the encoder that are trained with what follows them; None: all layers."""
        if self.train == "all":
            return None
        return int(self.train.removeprefix("last:")) if ":" in self.train else 0


@dataclass(frozen=True)
class TextConfig:
    """The text encoder and the titles it reads (Sections 3.3 and 4.1)."""

    encoder: Literal["words", "transformer", "same"] = "words"
    """words: mean of word vectors. transformer: mean of a Hugging Face encoder's tokens.
    same: the text tower of the pretrained video encoder."""
    source: str = "titles"
    """Word vectors: a word2vec, GloVe or fastText file, or "titles" to learn them from the
    titles of the corpus. Transformer: a folder, or a name on the Hub."""
    column: Literal["title", "title_clean", "title_tree"] = "title"
    """Manifest column to read: raw, cleaned, or verbs and nouns only (Table 1c)."""
    dimensions: int = 300
    """Length of word vectors learned from titles; a file has its own."""
    max_words: int = 400_000
    """Maximum number of words to read from a word-vector file, most frequent first."""
    max_tokens: int = 64
    """Maximum number of tokens per title (transformer)."""
    empty_titles: Literal["error", "drop"] = "error"
    """Pairs whose title has no known word: raise an error, or skip and list them."""

    def __post_init__(self) -> None:
        check_fields("text", self, POSITIVE, "max_words")
        check_fields("text", self, up_to(MAX_SIZE), "dimensions", "max_tokens")


@dataclass(frozen=True)
class HeadConfig:
    """The joint embedding space (Section 3.3)."""

    embedding: int = 256
    """Dimensions of f_v and f_t; without learned heads, those of the pretrained encoder's features."""
    hidden: int = 512
    """Width of the text head's hidden layer; 0: none, the head is linear."""
    projection: Literal["learned", "none", "identity"] = "learned"
    """learned: heads with random initial weights. none: no heads, the space of a pretrained encoder and
    its text tower. identity: linear heads that start as this space."""
    video_hidden: int = 0
    """Width of the video head's hidden layer; 0: none, the head is linear as in the paper."""
    dropout: float = 0.0
    """Dropout rate of the visual feature in front of the learned video head; none in the paper."""
    interpolation: float = 1.0
    """With projection identity, weight of the trained heads in the exported model: 0 is the original
    model, 1 the trained one."""

    def __post_init__(self) -> None:
        check_fields("head", self, up_to(MAX_SIZE), "embedding")
        check_fields(
            "head", self, (f"from 0 to {MAX_SIZE}", lambda size: 0 <= size <= MAX_SIZE), "hidden", "video_hidden"
        )
        check_fields("head", self, FRACTION, "dropout")
        check_fields("head", self, ("in [0, 1]", lambda weight: 0 <= weight <= 1), "interpolation")
        for name, projection in (("interpolation", "identity"), ("dropout", "learned"), ("video_hidden", "learned")):
            value = getattr(self, name)
            if value != getattr(HeadConfig, name) and self.projection != projection:
                raise RecipeError(
                    f"head.{name} is {value}, which head.projection={self.projection} does not use; remove it, or set "
                    f"head.projection={projection}"
                )


OBJECTIVES_WITH = {  # objectives that use a field; the others require its default
    "estimate": ("cross_pair", "self_instance"),
    "instances": ("self_instance",),
    "margin": ("ranking",),
    "soft_targets": ("in_batch",),
    "merge_titles": ("cross_pair", "ranking", "in_batch"),
}


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss (Sections 3.1 and 3.2; docs/objectives.md compares the objectives)."""

    name: Literal["cross_pair", "self_instance", "ranking", "in_batch", "siglip"] = "cross_pair"
    """cross_pair: the paper's, Equation 3. self_instance: Equations 1 and 2. ranking: Equation 4.
    in_batch: Equation 3 over the batch instead of all pairs, as in CLIP. siglip: a sigmoid for each
    combination of a video and a text of the batch, with a learned temperature and bias."""
    estimate: Literal["nce", "softmax"] = "nce"
    """For cross_pair and self_instance. nce: from noise samples, Equation 5. softmax: exact, over all pairs."""
    instances: Literal["bank", "weights"] = "bank"
    """Class vectors of self_instance. bank: memory-bank entries, Equation 2. weights: two learned
    vectors per pair, Equation 1."""
    temperature: float = 0.07
    """τ of Equations 2 and 3, and of in_batch; Equations 1 and 4 have none. siglip starts at 0.1."""
    learnable_temperature: bool = False
    """Learn τ, as log(1/τ) without weight decay and with 1/τ up to 100; only for in_batch and
    estimate=softmax. NCE takes Z as a constant, and so has no valid gradient of τ."""
    noise_samples: int = 4096
    """m of Equation 5: bank entries that serve as negatives of each pair."""
    noise: Literal["batch", "pair"] = "batch"
    """batch: the m samples are shared by the batch. pair: m samples for each pair (the paper's
    text); the expected loss is the same, at batch-size times the cost."""
    normalizer: Literal["ema", "first"] = "ema"
    """For nce, estimate of Equation 3's denominator: a moving average, or the first batch's value."""
    normalizer_decay: float = 0.99
    """Weight of the old estimates in the moving average after many steps; early ones are averaged evenly."""
    bank_init: Literal["random", "text", "towers"] = "random"
    """Entries of the memory bank before the first step. random: unit vectors. text: text entries from
    the titles, by the initial text tower. towers: video entries, too, one clip per video. With text
    and towers, the first visit of a pair replaces its entries."""
    bank_momentum: float = 0.5
    """Weight of the old entry in an update of the memory bank."""
    bank_precision: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the memory bank. bf16: half the memory and traffic; similarities, between -1 and 1,
    have an error below 0.002, mostly below 0.0001."""
    margin: float = 0.2
    """δ of ranking: minimum difference between the similarity of a pair and of its negatives."""
    soft_targets: float = 0.0
    """For in_batch, temperature of targets by the similarity of titles; 0: each pair is its only target."""
    merge_titles: bool = False
    """Pairs with the same title are not negatives of each other."""
    video_weight: float = 0.0
    """Weight of InfoNCE between the embeddings of two views of each video, with ``temperature`` and the other videos
    of the batch as negatives (as in SLIP); the objective reads the first view. 0, as in the paper: one view."""

    @property
    def compares_batch(self) -> bool:
        """Whether the loss compares a pair with the other pairs of the batch."""
        return self.name in {"ranking", "in_batch", "siglip"} or self.video_weight > 0

    @property
    def uses_bank(self) -> bool:
        """Whether the loss reads the memory bank."""
        return self.name in {"cross_pair", "self_instance"} and self.instances == "bank"

    def __post_init__(self) -> None:
        check_fields("objective", self, POSITIVE, "temperature", "noise_samples", "margin")
        check_fields("objective", self, FRACTION, "bank_momentum", "normalizer_decay")
        check_fields("objective", self, NON_NEGATIVE, "soft_targets", "video_weight")
        if self.merge_titles and self.soft_targets:
            raise RecipeError("objective.merge_titles is true, but soft_targets already merges titles; set one of them")
        if self.learnable_temperature and not (
            self.name == "in_batch" or (self.uses_bank and self.estimate == "softmax")
        ):
            raise RecipeError(
                f"objective.learnable_temperature is true, which objective.name={self.name} with "
                f"objective.estimate={self.estimate} and objective.instances={self.instances} does not support; use "
                "objective.name=in_batch or siglip, or objective.estimate=softmax with objective.instances=bank"
            )
        if self.learnable_temperature and self.temperature < MIN_TEMPERATURE:
            raise RecipeError(
                f"objective.temperature is {self.temperature}; with objective.learnable_temperature it must be at "
                f"least {MIN_TEMPERATURE}"
            )
        for name, objectives in OBJECTIVES_WITH.items():
            value = getattr(self, name)
            if value != getattr(ObjectiveConfig, name) and self.name not in objectives:
                raise RecipeError(
                    f"objective.{name} is {value!r}, which objective.name={self.name} does not use; remove it, "
                    f"or set objective.name to {' or '.join(objectives)}"
                )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule (Section 4.2)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: the paper's, with momentum. adamw: more robust in short trainings."""
    lr: float = 0.2
    """Learning rate; in pre-training that of stage I, of all weights but the language model's."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay; in the paper 1e-4, and 5e-4 in fine-tuning."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Over the whole training: constant (the paper: stages only), cosine to zero, or ÷10 steps."""
    step_epochs: tuple[int, ...] = ()
    """Epochs at which schedule "step" divides the learning rates by 10: 100, 201 and 250 in the authors' code."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""
    clip_norm: float | None = None
    """Maximum norm of the gradient; no clipping in the paper, 20 in the authors' code."""
    encoder_factor: float = 1.0
    """Learning rate of the video encoder relative to ``lr``."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of the video encoder to the block before it; 0.65
    to 0.9 is usual for pretrained transformers."""

    def __post_init__(self) -> None:
        check_fields("optimizer", self, POSITIVE, "lr")
        check_fields("optimizer", self, POSITIVE_FRACTION, "layer_decay")
        check_fields(
            "optimizer", self, NON_NEGATIVE, "momentum", "weight_decay", "warmup_epochs", "clip_norm", "encoder_factor"
        )


@dataclass(frozen=True)
class TowersOptimizerConfig(OptimizerConfig):
    """The optimizer of the video and the text tower."""

    text_head_factor: float = 1.0
    """Learning rate of the text head relative to ``lr``; 0 keeps its initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("optimizer", self, NON_NEGATIVE, "text_head_factor")


@dataclass(frozen=True)
class CurriculumConfig:
    """Stages of training the language model (Section 3.2, Table 1b)."""

    strategy: Literal["curriculum", "frozen", "joint"] = "curriculum"
    """curriculum: frozen, then joint. frozen: stage I only. joint: stage II from the start."""
    stage2_epoch: int | None = None
    """First epoch of stage II; none: when the validation metric saturates."""
    patience: int = 10
    """Validations without improvement after which the metric counts as saturated."""
    stage2_lr: float = 0.02
    """Learning rate of stage II, of all weights but the language model's."""
    text_lr: float = 3e-5
    """Learning rate of the language model in stage II."""

    def __post_init__(self) -> None:
        check_fields("curriculum", self, POSITIVE, "patience")
        check_fields("curriculum", self, NON_NEGATIVE, "stage2_epoch", "stage2_lr", "text_lr")


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    epochs: int = 300
    """Maximum number of passes over the train split."""
    batch_size: int = 256
    """Clips per step, over all processes."""
    accumulate: int = 1
    """Number of micro-batches per step (gradient accumulation), to save memory. ranking, in_batch and
    siglip encode each micro-batch twice, since they compare all pairs of the batch (gradient caching)."""
    seed: int = 0
    """Seed of all random numbers."""
    workers: int = 2
    """Decoding processes per training process."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bfloat16 if the processor has instructions for it, else float32."""
    compile: bool = False
    """Compile the video encoder's training passes with torch.compile, which takes minutes at the
    start. It is faster on some GPUs (docs/cuda.md), and not on CPUs."""
    validate_every: int = 1
    """Epochs between validations: retrieval, or classification in fine-tuning."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, in addition to those at the ends of epochs; 0: none."""
    export: Literal["last", "best"] = "last"
    """Weights to export to the run's ``model/``: the last, or the best on validation."""
    ema: float = 0.0
    """Decay of the moving average of the weights that validation and the exported model use, per step;
    .99 to .9999 is usual; a learned temperature is not averaged. 0: the weights themselves, as in the paper."""

    def __post_init__(self) -> None:
        check_fields("training", self, POSITIVE, "epochs", "batch_size", "accumulate", "validate_every", "log_every")
        check_fields("training", self, NON_NEGATIVE, "workers", "checkpoint_steps")
        check_fields("training", self, FRACTION, "ema")
        check_fields("training", self, ("in [0, 2**32)", lambda seed: 0 <= seed < 2**32), "seed")
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise RecipeError(
                f"training.batch_size is {self.batch_size} with training.accumulate={self.accumulate}; it must be a "
                "multiple of it, with at least 2 clips per micro-batch, which batch normalisation needs"
            )


@dataclass(frozen=True)
class Recipe:
    """All settings of a pre-training but the data."""

    clip: ClipConfig = ClipConfig()
    video: VideoConfig = VideoConfig()
    text: TextConfig = TextConfig()
    head: HeadConfig = HeadConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: TowersOptimizerConfig = TowersOptimizerConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        check_fields("clip", self.clip, NETWORK_INPUT, "size")
        if self.text.encoder == "same" and self.video.encoder != "pretrained":
            raise RecipeError("text.encoder=same is the text tower of the video encoder; set video.encoder=pretrained")
        frozen = self.video.trained_blocks == 0 and self.head.projection == "none"
        if frozen and self.curriculum.strategy != "joint":
            raise RecipeError(
                f"video.train={self.video.train} with head.projection=none trains nothing; "
                "set curriculum.strategy=joint"
            )
        if self.head.interpolation != 1 and (self.video.trained_blocks != 0 or self.curriculum.strategy != "frozen"):
            raise RecipeError(
                f"head.interpolation is {self.head.interpolation}, but encoders are trained; set video.train=head and "
                "curriculum.strategy=frozen, or head.interpolation=1"
            )
        if self.objective.video_weight and self.video.trained_blocks == 0 and self.video.views == 1:
            raise RecipeError("video.views is 1; objective.video_weight compares two views of each video")


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier that replaces the projection head (Section 4.2)."""

    dropout: float = 0.0
    """Dropout rate of the visual feature in training; none in the paper."""
    label_smoothing: float = 0.0
    """Fraction of the target distributed uniformly over the classes; none in the paper."""
    frozen_norm: bool = False
    """Keep the pre-trained statistics and weights of batch normalisation: for batches of a few
    clips, and for few labels."""

    def __post_init__(self) -> None:
        check_fields("classifier", self, FRACTION, "dropout", "label_smoothing")


@dataclass(frozen=True)
class LabelsConfig:
    """Subset of labels (Appendix B, Table 4) and validation split (Section 4.2)."""

    share: float = 1.0
    """Fraction of each class's labels to use; 0.01, 0.1 and 0.2 in the paper's low-shot."""
    hold_out: float = 0.1
    """Fraction of the train split to validate on, if the manifest has no val split, or if the val
    split is tested on."""

    def __post_init__(self) -> None:
        check_fields("labels", self, POSITIVE_FRACTION, "share")
        check_fields("labels", self, FRACTION, "hold_out")


@dataclass(frozen=True)
class PlateauConfig:
    """Learning-rate drops when the validation loss saturates (Section 4.2)."""

    drops: int = 2
    """Number of divisions by 10; saturation after the last one ends the training. 0: follow the
    optimizer's schedule and ``epochs`` instead."""
    patience: int = 3
    """Validations without a lower loss after which the loss counts as saturated."""

    def __post_init__(self) -> None:
        check_fields("plateau", self, NON_NEGATIVE, "drops")
        check_fields("plateau", self, POSITIVE, "patience")


@dataclass(frozen=True)
class MultiviewConfig:
    """Views of each video in the test of a classifier."""

    clips: int = 10
    """Number of evenly spaced clips (Section 4.2)."""
    crops: Literal[1, 3] = 3
    """Crops per clip: left, center and right (Section 4.2), or only the center."""
    crop_scale: float = 1.0
    """Side of the crops, in units of ``clip.size``. 8/7: 256 pixels for 224, the whole short side, as in SlowFast
    and the authors' code. 1: as in training, for networks with small feature maps (2×2 would become 3×3)."""

    def __post_init__(self) -> None:
        check_fields("multiview", self, POSITIVE, "clips")
        check_fields("multiview", self, ("at least 1", lambda scale: scale >= 1), "crop_scale")

    def test_clip(self, clip: ClipConfig) -> ClipConfig:
        """Return the clip format of the test: with the test's crop size and the same short side.

        Raises:
            RecipeError: the crops are larger than the frames.
        """
        size, side = round(self.crop_scale * clip.size), round(clip.test_scale * clip.size)
        if size > side:
            raise RecipeError(
                f"multiview.crop_scale={self.crop_scale:g} gives crops of {size} pixels from frames with a short side "
                f"of {side}; it must be at most clip.test_scale={clip.test_scale:g}"
            )
        return clip if size == clip.size else replace(clip, size=size, test_scale=side / size)


@dataclass(frozen=True)
class FinetuneRecipe:
    """All settings of a fine-tuning but the data and the initial weights."""

    clip: ClipConfig = ClipConfig(frames=16)
    video: VideoConfig = VideoConfig()  # must match the initial weights
    classifier: ClassifierConfig = ClassifierConfig()
    labels: LabelsConfig = LabelsConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-2, weight_decay=5e-4)
    plateau: PlateauConfig = PlateauConfig()
    training: TrainingConfig = TrainingConfig(epochs=100, batch_size=32, export="best")
    multiview: MultiviewConfig = MultiviewConfig()

    def __post_init__(self) -> None:
        check_fields("clip", self.clip, NETWORK_INPUT, "size")
        self.multiview.test_clip(self.clip)
        if self.video.encoder == "pretrained" and self.multiview.crop_scale != 1:
            raise RecipeError(
                f"multiview.crop_scale is {self.multiview.crop_scale:g}, but pretrained encoders take crops of their "
                "own size; set multiview.crop_scale=1"
            )
