"""Where the pixels of one pair are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Clip:
    """A video, or a part of it.

    Attributes:
        path: of the file, or any fsspec URL.
        start: where the part begins, in s; from the beginning where it is None.
        end: where the part ends, in s; at the end where it is None.
    """

    path: str
    start: float | None = None
    end: float | None = None


Depth: TypeAlias = Literal[10, 18, 34, 50, 101]


@dataclass(frozen=True)
class ClipConfig:
    """How a video becomes the network's input (Sections 3.3 and 4.2)."""

    size: int = 112
    """Side of the square crop in pixels: 112 with ResNet-34, 224 with ResNet-50."""
    frames: int = 8
    """Frames a clip: 8 for pre-training, 16 for fine-tuning."""
    stride: int = 4
    """Distance between frames in 30ths of a second, whatever the file's frame rate."""
    scale: tuple[float, float] = (8 / 7, 1.52)
    """Range of the training views' short side, in units of ``size``: [128, 170] for 112."""
    test_scale: float = 8 / 7
    """Short side of the frames in tests, in units of ``size``: 128 for 112, 256 for 224."""
    flip: bool = True
    """Mirror half of the training views; turn off where left and right have a meaning."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; 0 is the paper's."""


@dataclass(frozen=True)
class VideoConfig:
    """The slow-only 3D ResNet (Section 3.3)."""

    depth: Depth = 34
    """Layers: 34 and 50 in the paper; 10 and 18 for laptops and tests."""
    width: int = 64
    """Channels of the first stage; 64 is standard."""
    shortcut: Literal["A", "B"] = "B"
    """B: 1×1×1 projection where shapes change. A: no parameters (the authors' checkpoints)."""


@dataclass(frozen=True)
class TextConfig:
    """The language model and the titles it reads (Sections 3.3 and 4.1)."""

    encoder: Literal["words", "transformer"] = "words"
    """words: mean of word vectors. transformer: mean of a Hugging Face encoder's tokens."""
    source: str = "titles"
    """Word vectors: a word2vec, GloVe or fastText file, or "titles" to learn them from the
    corpus's own titles. Transformer: a folder, or a name on the hub."""
    column: Literal["title", "title_clean", "title_tree"] = "title"
    """The manifest's column to read: raw, cleaned, or verbs and nouns only (Table 1c)."""
    dimensions: int = 300
    """Length of word vectors learnt from titles; a file brings its own."""
    max_words: int = 400_000
    """Words to read of a word-vector file, which begins with the most frequent."""
    max_tokens: int = 64
    """Tokens after which a title is cut (transformer)."""
    empty_titles: Literal["error", "drop"] = "error"
    """Pairs whose title holds no known word: refuse to start, or leave them out by name."""


@dataclass(frozen=True)
class HeadConfig:
    """The common space of both towers (Section 3.3)."""

    embedding: int = 256
    """Dimensions of f_v and f_t."""
    hidden: int = 512
    """Width of the text head's hidden layer."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the pairs are trained to (Sections 3.1 and 3.2; docs/objectives.md compares them)."""

    name: Literal["cross_pair", "self_instance", "ranking", "in_batch"] = "cross_pair"
    """cross_pair: the paper's, Equation 3. self_instance: Equations 1 and 2. ranking: Equation 4.
    in_batch: Equation 3 over the batch instead of all pairs, as CLIP."""
    estimate: Literal["nce", "softmax"] = "nce"
    """Of cross_pair and self_instance. nce: from noise samples, Equation 5. softmax: exactly, over
    all pairs."""
    instances: Literal["bank", "weights"] = "bank"
    """What stands for a pair in self_instance. bank: its entries, Equation 2. weights: two learned
    vectors, Equation 1."""
    temperature: float = 0.07
    """τ of Equations 2 and 3, and of in_batch; Equations 1 and 4 have none."""
    noise_samples: int = 4096
    """m of Equation 5: bank entries that each pair is told from."""
    noise: Literal["batch", "pair"] = "batch"
    """batch: the m draws are shared by the batch. pair: m draws for each pair (the paper's text);
    the expected loss is the same, at batch-size times the cost."""
    normalizer: Literal["ema", "first"] = "ema"
    """Of nce, estimate of Equation 3's denominator: a moving average, or the first batch's for
    good."""
    bank_momentum: float = 0.5
    """Share of the old entry that the memory bank keeps at each update."""
    bank_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the bank's entries. bf16: half the memory and traffic; similarities, which lie between -1
    and 1, are off by 0.002 at most, and mostly by less than 0.0001."""
    margin: float = 0.2
    """δ of ranking: by how much a pair is to be more similar than the pairs it is told from."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move (Section 4.2)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: the paper's, with momentum. adamw: better behaved in short trainings."""
    lr: float = 0.2
    """Learning rate; in pre-training that of stage I, for all but the language model."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay; in the paper 1e-4, and 5e-4 in fine-tuning."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Over the whole training: constant (the paper: stages only), cosine to zero, or ÷10 steps."""
    step_epochs: tuple[int, ...] = ()
    """Epochs at which schedule "step" divides the rates by 10."""
    warmup_epochs: float = 0.0
    """Epochs over which the rates rise linearly from zero."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none in the paper."""


@dataclass(frozen=True)
class TowersOptimizerConfig(OptimizerConfig):
    """How the weights of both towers move."""

    text_head_factor: float = 1.0
    """Share of the learning rate that the text head has; 0 keeps it as it was drawn."""


@dataclass(frozen=True)
class CurriculumConfig:
    """When the language model is trained too (Section 3.2, Table 1b)."""

    strategy: Literal["curriculum", "frozen", "joint"] = "curriculum"
    """curriculum: frozen, then joint. frozen: stage I only. joint: stage II from the start."""
    stage2_epoch: int | None = None
    """Epoch at which stage II begins; none: when validation saturates."""
    patience: int = 10
    """Validations without a gain after which validation is called saturated."""
    stage2_lr: float = 0.02
    """Learning rate of stage II for all but the language model."""
    text_lr: float = 3e-5
    """Learning rate of the language model in stage II."""


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    epochs: int = 300
    """Passes over the train split, at most."""
    batch_size: int = 256
    """Pairs, or videos with a label, a step, over all processes."""
    accumulate: int = 1
    """Parts in which a batch goes through the network, to save memory."""
    seed: int = 0
    """Of everything random."""
    workers: int = 2
    """Decoding processes for each training process."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bfloat16 where the processor computes in it, else float32."""
    compile: bool = False
    """Have torch.compile make the video encoder's training passes, which takes minutes at first: on
    GPUs where that measures faster (docs/cuda.md); on CPUs it does not."""
    validate_every: int = 1
    """Epochs between validations: retrieval, or classification in fine-tuning."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_steps: int = 0
    """Steps between checkpoints besides those at the ends of epochs; 0: none."""
    export: Literal["last", "best"] = "last"
    """Which weights become the run's ``model/``: the last, or the best on validation."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pre-training but the data."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    """Videos."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Video encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text encoder."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Common space."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""
    optimizer: TowersOptimizerConfig = field(default_factory=TowersOptimizerConfig)
    """Optimiser."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Stages."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Loop."""


@dataclass(frozen=True)
class ClassifierConfig:
    """What stands in the place of the mapping layer (Section 4.2)."""

    dropout: float = 0.0
    """Share of the visual feature's values that are dropped in training; none in the paper."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike; none in the paper."""
    frozen_norm: bool = False
    """Keep batch normalisation's statistics and weights as they came with the pre-trained network:
    for batches of a few clips, and for few labels."""


@dataclass(frozen=True)
class LabelsConfig:
    """Which labels are learnt from (Sections 4.2 and 4.4)."""

    share: float = 1.0
    """Share of each class's labels that may be seen; 0.01, 0.1 and 0.2 in the paper's low-shot."""
    hold_out: float = 0.1
    """Share of the train split that validation is made on, where the manifest has no split val
    (or that is what is tested)."""


@dataclass(frozen=True)
class PlateauConfig:
    """The learning rate when validation saturates (Section 4.2)."""

    drops: int = 2
    """How often the rate is divided by 10; saturation after the last ends the training. 0 leaves
    rate and end to the optimiser's schedule and to ``epochs``."""
    patience: int = 3
    """Validations without a lower loss after which validation is called saturated."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """Everything that decides a fine-tuning but the data and the weights it begins with."""

    clip: ClipConfig = field(default_factory=lambda: ClipConfig(frames=16))
    """Videos."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Video encoder; that of the weights to begin with."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Classifier."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Labels."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-2, weight_decay=5e-4)
    )
    """Optimiser."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    """Saturation."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=100, batch_size=32, export="best")
    )
    """Loop."""
