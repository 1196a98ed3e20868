"""Fine-tuning of the video encoder for classification (Sections 4.2 and 4.5)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from crosspair.config import FinetuneRecipe, LabelsConfig
from crosspair.corpora.build import split_validation
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.ucf_hmdb import recording_ids
from crosspair.device import autocast, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError, RecipeError, RunError
from crosspair.evaluation.encode import encode_plans
from crosspair.evaluation.features import gather_failures
from crosspair.evaluation.linear import label_subset
from crosspair.evaluation.multiview import check_labels, multiview_results
from crosspair.evaluation.results import (
    Result,
    check_manifest_name,
    fill_split,
    read_results,
    write_results,
    write_split_means,
)
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.classifier import Classifier
from crosspair.models.init import InitWeights, load_init_weights
from crosspair.models.resnet3d import inference
from crosspair.models.video import load_pretrained_encoder
from crosspair.provenance import Provenance, provenance
from crosspair.recipes import recipe_hash
from crosspair.training.loop import LossAndMetrics, Trainer, compile_model, force_eager, prepare_model, wrap_ddp
from crosspair.training.profile import record_section
from crosspair.training.run import MODEL
from crosspair.training.schedule import Plateau, build_grouped_optimizer, compute_lr_factor
from crosspair.video.loader import Batch

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


def finetune_and_test(
    recipe: FinetuneRecipe,
    manifest: str,
    init: str,
    run: Path,
    *,
    splits: Sequence[int] = (),
    test: bool = True,
    test_split: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> list[Result] | None:
    """Fine-tune a classifier, test it with 30 views and write ``run/results.json``.

    With ``resume``, an existing test of the same weights is not repeated. For the other arguments see
    `finetune`.

    Args:
        manifest: the manifest's file name.
        init: initial weights, see `crosspair.models.load_init_weights`.
        splits: numbers of official splits, which replace ``{}`` in ``manifest`` and ``init``. Each is
            trained and tested in ``run/split1``, …, and ``run/results.json`` has the means, followed
            by the results of each split.
        test: whether to test.

    Returns:
        The results, with ``splits`` the means on the main process; empty without a test; None if a
        signal stopped the training.

    Raises:
        CrosspairError: see `finetune` and `multiview_results`, or the manifest's name lacks ``{}``.
    """
    world = world or World()
    if splits:
        check_manifest_name(manifest)
    numbers: list[int | None] = [*splits] or [None]
    # Invalid inputs are reported before the first training.
    inputs = {
        number: _load_inputs(fill_split(manifest, number), fill_split(init, number), test_split if test else None)
        for number in numbers
    }
    by_split: dict[int, tuple[list[Result], Provenance]] = {}
    results: list[Result] = []
    for number, (videos, weights) in inputs.items():
        folder = run / f"split{number}" if number else run
        logger.info("fine-tuning in %s", folder)
        model = finetune(
            recipe, videos, folder, init=weights, test_split=test_split, resume=resume, profile=profile, world=world
        )
        if model is None:
            return None
        if test:
            results, origin = _test(model, recipe, videos, weights.name, folder, test_split, number, world)
            if number:
                by_split[number] = results, origin
    if not splits:
        return results
    return write_split_means(run / RESULTS_FILE, by_split) if world.is_main else []


def _load_inputs(manifest: str, init: str, test_split: str | None) -> tuple[Manifest, InitWeights]:
    """Read manifest and weights, and check the test split."""
    videos, weights = Manifest.read(manifest), load_init_weights(init)
    if test_split is not None:
        split = videos.split(test_split)
        if not len(split):
            raise ManifestError(
                f"{videos.path}: split {test_split} has no videos to test on; choose another split with --split, or "
                "use --no-test"
            )
        check_labels(split, test_split)
    return videos, weights


def _test(
    model: Classifier,
    recipe: FinetuneRecipe,
    videos: Manifest,
    init: str,
    folder: Path,
    split: str,
    number: int | None,
    world: World,
) -> tuple[list[Result], Provenance]:
    """Test a classifier and write ``results.json``; existing results of the same weights are returned."""
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=videos.hash,
        seed=recipe.training.seed, manifest_file=videos.path.name,
    )  # fmt: skip
    with suppress(RunError):  # no results yet, or of an interrupted test
        results, saved = read_results(folder / RESULTS_FILE)
        if (saved.recipe, saved.model, saved.manifest) == (origin.recipe, origin.model, origin.manifest):
            return results, saved
    results = multiview_results(
        model, videos, recipe.multiview,
        split=split, workers=recipe.training.workers, world=world,
        precision=recipe.training.precision,
        settings={"init": init, "labels": recipe.labels.share},
    )  # fmt: skip
    if world.is_main:
        write_results(folder / RESULTS_FILE, results, origin, by_recording=number is not None)
    world.barrier()
    return results, origin


def finetune(
    recipe: FinetuneRecipe,
    manifest: Manifest,
    run_folder: str | os.PathLike[str],
    *,
    init: InitWeights,
    test_split: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> Classifier | None:
    """Train a classifier and write it to ``run_folder/model``; returns and other arguments as in `pretrain`.

    Args:
        manifest: videos with labels of the splits ``train`` and, optionally, ``val``.
        init: initial weights.
        test_split: the split reserved for the test; nothing of it is read.

    Raises:
        CrosspairError: labels, recipe, weights, folder or videos are invalid.
    """
    training, folder = Finetuning(recipe, manifest, init, world or World(), test_split), Path(run_folder)
    if not training.train(folder, resume=resume, profile=profile):
        return None
    return Classifier.from_pretrained(folder / MODEL).to(training.world.device)


class Finetuning(Trainer):
    """Fine-tuning: classifier, labelled videos, optimizer and plateau detection.

    With a fraction s of the labels, an epoch repeats the labelled videos 1/s times, so that the
    numbers of steps and validations are those of a training with all labels. For the arguments see
    `finetune`.
    """

    name = "fine-tuning"
    saved = ("model", "optimizer", "plateau")
    recipe: FinetuneRecipe
    model: Classifier

    def __init__(
        self, recipe: FinetuneRecipe, manifest: Manifest, init: InitWeights, world: World, test_split: str = "test"
    ) -> None:
        super().__init__(recipe, manifest, world)
        self.origin = {"start": init.name, "tested": test_split}
        seed, batch_size = recipe.training.seed, recipe.training.batch_size
        self.data = select_labelled_videos(manifest, recipe.labels, seed, test_split)
        train, self.validation = self.data.train, self.data.validation
        sizes = len(self.data.classes), len(train), len(self.validation)
        logger.info("%d classes, %d training videos, %d validation videos", *sizes)
        repeats = max(round(1 / recipe.labels.share), math.ceil(batch_size / len(train)))
        self.clips = train.clips() * repeats
        self.targets = torch.tensor(self.data.targets(train) * repeats)
        self.ids = train.column("pair_id")
        self.steps_per_epoch = len(self.clips) // batch_size
        if recipe.classifier.frozen_norm and init.video is None:
            raise RecipeError(
                "classifier.frozen_norm requires a pre-trained network, since random weights have no statistics to "
                "keep; set classifier.frozen_norm=false"
            )
        if not len(self.validation):
            if recipe.plateau.drops:
                raise ManifestError(
                    f"{manifest.path}: no validation videos, but validation determines when the learning rate drops; "
                    "raise labels.hold_out, which holds out whole recordings, add a split val, or set plateau.drops=0"
                )
            logger.warning("%s: no validation videos", manifest.path)
        torch.manual_seed(seed)
        encoder, _ = load_pretrained_encoder(recipe.video)
        model = Classifier(self.data.classes, recipe.clip, recipe.video, recipe.classifier, encoder)
        init.load_into(model)
        self.model = prepare_model(model, world).train()
        if recipe.training.compile:
            compile_model(self.model.video_encoder, world.device)
        self.network = wrap_ddp(self.model, world)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_grouped_optimizer({"all": trainable}, recipe.optimizer, self.model.video_encoder)
        self.plateau = Plateau(recipe.plateau)
        torch.manual_seed(seed + world.rank)  # dropout differs between processes

    def train_step(self, batch: Batch, epoch: float, loss_scale: float) -> dict[str, torch.Tensor]:
        """Train on one batch with cross-entropy."""
        recipe, device = self.recipe, self.world.device
        lr = recipe.optimizer.lr * compute_lr_factor(epoch, recipe.training.epochs, recipe.optimizer)
        lr *= self.plateau.factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)  # old checkpoints have none

        def compute_loss(rows: torch.Tensor, pixels: torch.Tensor) -> LossAndMetrics:
            with record_section("forward"), autocast(device, recipe.training.precision):
                logits = self.network(pixels)  # (b, C)
            with record_section("objective"):
                targets = to_device(self.targets[rows], device)
                smoothing = recipe.classifier.label_smoothing
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            return loss, {"top-1": (logits.argmax(dim=1) == targets).float().mean()}

        metrics = self.accumulate_gradients(batch, compute_loss, loss_scale)
        with record_section("optimiser"):
            metrics |= self.step_optimizer()
        return {**metrics, "lr": torch.tensor(lr)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Compute cross-entropy and top-1 accuracy on the centre clip of each video."""
        validation, world, training = self.validation, self.world, self.recipe.training
        targets = torch.tensor(self.data.targets(validation))
        batch_size = training.batch_size // training.accumulate

        def network(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with force_eager(training), autocast(world.device, training.precision):
                return (self.model(to_device(clips, world.device)).cpu(),)

        sources = validation.clips()
        plans = [whole_video_plan(row, sources[row], 1) for row in range(world.rank, len(validation), world.size)]
        self.model.eval()
        with inference(self.model.video_encoder, world.device, training.precision):
            videos = list(
                encode_plans(plans, network, self.recipe.clip, batch_size=batch_size, workers=training.workers)
            )
        logits = {video.plan.row: video.sums[0][0] for video in videos if video.groups}
        failures = {video.plan.row: video.failure for video in videos if not video.groups}
        sums = torch.zeros(3, dtype=torch.float64)
        for first in range(0, len(logits), batch_size):
            rows = list(logits)[first : first + batch_size]
            scores = torch.stack([logits[row] for row in rows]).double()
            truth = targets[rows]
            hits = (scores.argmax(dim=1) == truth).sum()
            loss = F.cross_entropy(scores, truth, reduction="sum")
            sums += torch.stack([loss, hits.double(), torch.tensor(float(len(truth)))])
        self.model.train()
        gather_failures(validation, failures, world)
        loss, hits, count = world.sum(sums.to(world.device)).tolist()
        return {"videos": int(count), "loss": loss / count, "top-1": hits / count}

    def observe(self, scores: dict[str, float]) -> bool:
        """Pass ``scores["loss"]`` to the plateau detection; return whether it is the lowest so far."""
        return self.plateau.observe(scores["loss"])

    def advance(self, epochs_done: int) -> str:
        """Lower the rate or end if validation is saturated; return a description, or ""."""
        del epochs_done
        if not self.plateau.advance():
            return ""
        return "the training ends" if self.ended else "learning rate ÷ 10"

    @property
    def ended(self) -> bool:
        """Whether validation saturated after the last drop of the learning rate."""
        return self.plateau.ended


class LabelledSplits(NamedTuple):
    """Labelled videos of a fine-tuning."""

    classes: list[str]  # of the train split, sorted
    train: Manifest
    validation: Manifest  # may be empty

    def targets(self, split: Manifest) -> list[int]:
        """Return the class index of each video of a split."""
        position = {name: index for index, name in enumerate(self.classes)}
        return [position[label] for label in split.column("label")]


def select_labelled_videos(
    manifest: Manifest, config: LabelsConfig, seed: int, test_split: str = "test"
) -> LabelledSplits:
    """Select training and validation videos.

    Validation is split ``val``. If the manifest has none, or it is the test split, a fraction of
    ``train`` is held out, with all clips of a recording on the same side. The low-shot fraction of
    labels applies to both, so that validation has no more labels than training.

    Args:
        manifest: only its splits ``train`` and ``val`` are read.
        config: fraction of labels and fraction to hold out.
        seed: seed of both selections.
        test_split: the split that is not read.

    Raises:
        ManifestError: there are fewer than two classes.
    """
    train = manifest.split("train")
    # Without any label, raise one error instead of logging every video.
    train = train.drop_unusable("label") if any(train.column("label")) else manifest.take([])
    classes = sorted(set(train.column("label")))
    if len(classes) < 2:
        found = f"only class {classes[0]!r}" if classes else "no readable video with a label"
        raise ManifestError(f"{manifest.path}: split train has {found}; a classifier needs at least two classes")
    validation = manifest.take([])
    if test_split != "val":
        validation = manifest.split("val").drop_unusable("label")
        labels = validation.column("label")
        unknown = sorted(set(labels) - set(classes))
        if unknown:
            names = ", ".join(unknown)
            logger.warning("validation skips %d classes that are not in split train: %s", len(unknown), names)
        validation = validation.take([i for i, label in enumerate(labels) if label not in unknown])
    if not len(validation):
        train, validation = _hold_out_validation(train, config.hold_out, seed)
    if config.share < 1:
        train, validation = (
            each.take(label_subset(each.column("label"), config.share, seed)) for each in (train, validation)
        )
    return LabelledSplits(classes, train, validation)


def _hold_out_validation(train: Manifest, fraction: float, seed: int) -> tuple[Manifest, Manifest]:
    """Return train and validation, split by recording; recordings of a class that would be absent from train stay."""
    rows: list[dict[str, Any]] = [
        {"recording": recording, "label": label, "split": "train"}
        for recording, label in zip(recording_ids(train), train.column("label"), strict=True)
    ]
    split_validation(rows, fraction, seed, lambda row: str(row["recording"]))
    remaining = {row["label"] for row in rows if row["split"] == "train"}
    needed = {row["recording"] for row in rows if row["label"] not in remaining}
    held = [i for i, row in enumerate(rows) if row["split"] == "val" and row["recording"] not in needed]
    return train.take(sorted(set(range(len(rows))) - set(held))), train.take(held)
