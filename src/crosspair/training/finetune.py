"""Fine-tuning: the video encoder learns to classify (Sections 4.2 and 4.4)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from crosspair.config import FinetuneRecipe, LabelsConfig
from crosspair.corpora.build import split_validation
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, check_frames, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError, RecipeError, RunError
from crosspair.evaluation.encode import encode_plans
from crosspair.evaluation.features import gather_failures
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import (
    Result,
    check_manifest_name,
    fill_split,
    read_results,
    write_results,
    write_split_means,
)
from crosspair.evaluation.tasks import check_labels, label_subset
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.classifier import Classifier
from crosspair.models.inference import inference
from crosspair.models.init import InitWeights, load_init_weights
from crosspair.provenance import Provenance, provenance
from crosspair.recipes import recipe_hash
from crosspair.training.loop import (
    LossAndMetrics,
    accumulate_gradients,
    check_batch_size,
    compile_model,
    force_eager,
    optimizer_step,
    prepare_model,
    train,
    wrap_ddp,
)
from crosspair.training.profile import record_section
from crosspair.training.run import MODEL
from crosspair.training.schedule import Plateau, optimizer_of, rate_factor
from crosspair.video.loader import Batch

logger = logging.getLogger(__name__)


def finetune(
    recipe: FinetuneRecipe,
    manifest: Manifest,
    run_folder: str | os.PathLike[str],
    *,
    start: InitWeights,
    tested: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> Classifier | None:
    """Train a classifier and write it to ``run_folder/model``.

    Args:
        recipe: everything that decides the training.
        manifest: videos with labels, of split ``train``, and of ``val`` or else held out of train.
        run_folder: gets ``recipe.yaml``, ``metrics.jsonl``, checkpoints and the model.
        start: the weights to begin with.
        tested: the split that will be tested, of which nothing is read here.
        resume: go on with the run in that folder.
        profile: time the parts of some steps, see `crosspair.training.profile`.
        world: the processes that train together; each of them calls this.

    Returns:
        The classifier, or None where it was asked to stop (SIGTERM, Ctrl-C) before its end.

    Raises:
        CrosspairError: labels, recipe, weights, folder or videos do not do; the message says which
            and why.
    """
    world = world or World()
    task, folder = Finetuning(recipe, manifest, start, world, tested), Path(run_folder)
    if not train(task, manifest, folder, resume=resume, profile=profile):
        return None
    return Classifier.from_pretrained(folder / MODEL).to(world.device)


class Finetuning:
    """What fine-tuning does with a batch, and at the end of an epoch: a `Task` of the loop.

    With a share s of the labels, the labelled videos are gone through 1/s times an epoch: so that
    steps, schedule and validations are as many as with all of them.

    Args:
        recipe: everything that decides the training.
        manifest: the videos.
        start: the weights to begin with.
        world: the processes that train together.
        tested: the split that is not to be read.
    """

    name = "fine-tuning"

    def __init__(
        self,
        recipe: FinetuneRecipe,
        manifest: Manifest,
        start: InitWeights,
        world: World,
        tested: str = "test",
    ) -> None:
        self.recipe, self.world = recipe, world
        self.origin = {"start": start.name, "tested": tested}
        self.data = select_labelled_videos(manifest, recipe.labels, recipe.training.seed, tested)
        train, self.validation = self.data.train, self.data.validation
        self.counts: dict[str, int] = {}
        logger.info(
            "%d classes, %d videos to learn from, %d to validate on",
            len(self.data.classes), len(train), len(self.validation),
        )  # fmt: skip
        batch_size = recipe.training.batch_size
        repeats = max(round(1 / recipe.labels.share), math.ceil(batch_size / len(train)))
        self.clips = train.clips() * repeats
        self.targets = torch.tensor(self.data.targets(train) * repeats)
        self.ids = train.column("pair_id")
        self.steps_per_epoch = len(self.clips) // batch_size
        self._check(manifest, start)
        torch.manual_seed(recipe.training.seed)
        model = Classifier(self.data.classes, recipe.clip, recipe.video, recipe.classifier)
        start.load_into(model)
        # The network is whole, its new layer too, before it is wrapped: or that layer's gradients
        # would be each process's own.
        self.model = prepare_model(model, world).train()
        if recipe.training.compile:
            compile_model(self.model.video_encoder, world.device)
        self.network = wrap_ddp(self.model, world)
        moving = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of({"all": moving}, recipe.optimizer)
        self.plateau = Plateau(recipe.plateau)
        torch.manual_seed(recipe.training.seed + world.rank)  # dropout: each process its own

    def train_step(self, batch: Batch, epoch: float, share: float) -> dict[str, torch.Tensor]:
        """One step of cross-entropy; see `crosspair.training.loop.Task`."""
        recipe, device = self.recipe, self.world.device
        lr = recipe.optimizer.lr * rate_factor(epoch, recipe.training.epochs, recipe.optimizer)
        lr *= self.plateau.factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        def loss_of(rows: torch.Tensor, pixels: torch.Tensor) -> LossAndMetrics:
            with record_section("forward"), autocast(device, recipe.training.precision):
                logits = self.network(pixels)
            with record_section("objective"):
                targets = to_device(self.targets[rows], device)
                smoothing = recipe.classifier.label_smoothing
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            return loss, {"top-1": (logits.argmax(dim=1) == targets).float().mean()}

        logged = accumulate_gradients(batch, self.network, loss_of, recipe, self.world, share)
        with record_section("optimiser"):
            logged |= optimizer_step(self.optimizer, recipe.optimizer.clip_norm)
        return {**logged, "lr": torch.tensor(lr)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy and top-1 accuracy of the centre clip of each video of validation."""
        validation, world, training = self.validation, self.world, self.recipe.training
        targets = torch.tensor(self.data.targets(validation))
        batch_size = training.batch_size // training.accumulate

        def network(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with force_eager(training), autocast(world.device, training.precision):
                return (self.model(to_device(clips, world.device)).cpu(),)

        sources = validation.clips()
        plans = [
            whole_video_plan(row, sources[row], 1)
            for row in range(world.rank, len(validation), world.size)
        ]
        rows, logits, failures = list[int](), list[torch.Tensor](), dict[int, str]()
        self.model.eval()
        with inference(self.model.video_encoder, world.device, training.precision):
            for video in encode_plans(
                plans, network, self.recipe.clip,
                batch_size=batch_size, workers=training.workers,
            ):  # fmt: skip
                if video.groups:
                    rows.append(video.plan.row)
                    logits.append(video.sums[0][0])
                else:
                    failures[video.plan.row] = video.failure
        sums = torch.zeros(3, dtype=torch.float64)
        for first in range(0, len(rows), batch_size):
            scores = torch.stack(logits[first : first + batch_size]).double()
            truth = targets[rows[first : first + batch_size]]
            hits = (scores.argmax(dim=1) == truth).sum()
            loss = F.cross_entropy(scores, truth, reduction="sum")
            sums += torch.stack([loss, hits.double(), torch.tensor(float(len(truth)))])
        self.model.train()
        gather_failures(validation, failures, world)
        loss, hits, videos = world.sum(sums.to(world.device)).tolist()
        return {"videos": int(videos), "loss": loss / videos, "top-1": hits / videos}

    def observe(self, scores: dict[str, float]) -> bool:
        """What counts is the loss; see `Task`."""
        return self.plateau.observe(scores["loss"])

    def advance(self, epochs_done: int) -> str:
        """Lower the rate, or end, if validation is saturated; see `Task`."""
        del epochs_done
        if not self.plateau.advance():
            return ""
        return "the training ends" if self.ended else "learning rate ÷ 10"

    @property
    def ended(self) -> bool:
        """Whether validation says that there is nothing more to be gained; see `Task`."""
        return self.plateau.ended

    def state_dict(self) -> dict[str, Any]:
        """What every process has the same; see `Task`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
        }

    def own_state_dict(self) -> dict[str, Any]:
        """Nothing; see `Task`."""
        return {}

    def load_state_dict(self, shared: dict[str, Any], owns: Sequence[dict[str, Any]]) -> None:
        """Put back what the other two gave; see `Task`."""
        del owns
        self.model.load_state_dict(shared["model"])
        self.optimizer.load_state_dict(shared["optimizer"])
        self.plateau.load_state_dict(shared["plateau"])

    def pair_id(self, row: int) -> str:
        """The name of a training video; see `Task`."""
        return str(self.ids[row % len(self.ids)])

    def _check(self, manifest: Manifest, start: InitWeights) -> None:
        recipe, world = self.recipe, self.world
        check_frames(recipe.clip.frames, world.device, recipe.training.precision)
        check_batch_size(recipe.training, world)
        if recipe.classifier.frozen_norm and start.video is None:
            raise RecipeError(
                "classifier.frozen_norm keeps the statistics of a pre-trained network, and random "
                "weights have none; turn it off"
            )
        if not len(self.validation):
            if recipe.plateau.drops:
                raise ManifestError(
                    f"{manifest.path}: no video to validate on, which tells when the learning rate "
                    "drops; raise labels.hold_out, or give plateau.drops=0"
                )
            logger.warning("%s: no video to validate on", manifest.path)


_OF_RECORDING = re.compile(r"(.+)_c\d+")  # UCF101: clips of one recording differ in this alone


@dataclass(frozen=True)
class LabelledSplits:
    """Videos with labels.

    Attributes:
        classes: the names of the train split's classes, sorted.
        train: to learn from.
        validation: to tell saturation and the best weights by; may be empty.
    """

    classes: list[str]
    train: Manifest
    validation: Manifest

    def targets(self, split: Manifest) -> list[int]:
        """The classes of a split's videos, as positions in ``classes``."""
        position = {name: index for index, name in enumerate(self.classes)}
        return [position[label] for label in split.column("label")]


def select_labelled_videos(
    manifest: Manifest, config: LabelsConfig, seed: int, tested: str = "test"
) -> LabelledSplits:
    """Choose the videos that fine-tuning may see.

    Validation is the manifest's split ``val``. Where there is none, or it is what will be tested,
    a part of ``train`` is held out for it, clips of one recording together. Of both, a share of
    each class's labels is used: in low-shot, validation knows no more labels than training.

    Args:
        manifest: whose splits ``train`` and ``val`` are read, and no other.
        config: the share of labels, and what to hold out.
        seed: of both choices.
        tested: the split that will be tested; it is not read.

    Raises:
        ManifestError: there are no labels, or those of one class only.
    """
    train = manifest.split("train")
    # Without any label, one line is told rather than one for each video.
    train = drop_unusable_rows(train, "label") if any(train.column("label")) else manifest.take([])
    classes = sorted(set(train.column("label")))
    if len(classes) < 2:
        found = f"one class only, {classes[0]!r}" if classes else "no readable video with a label"
        raise ManifestError(
            f"{manifest.path}: split train has {found}; a classifier needs two classes at least"
        )
    validation = manifest.take([])
    if tested != "val":
        validation = _of_classes(drop_unusable_rows(manifest.split("val"), "label"), classes)
    if not len(validation):
        train, validation = _held_out(train, config.hold_out, seed)
    if config.share < 1:
        train, validation = (
            each.take(label_subset(each.column("label"), config.share, seed))
            for each in (train, validation)
        )
    return LabelledSplits(classes, train, validation)


def drop_unusable_rows(split: Manifest, column: str) -> Manifest:
    """Rows with a value in the column, and without an error; the others are named."""
    ids, values, errors = (split.column(name) for name in ("pair_id", column, "error"))
    keep = []
    for row, (pair_id, value, error) in enumerate(zip(ids, values, errors, strict=True)):
        if error or not value:
            logger.warning("left out %s: %s", pair_id, error or f"no {column}")
        else:
            keep.append(row)
    return split.take(keep)


def _of_classes(validation: Manifest, classes: list[str]) -> Manifest:
    labels, known = validation.column("label"), set(classes)
    unknown = sorted(set(labels) - known)
    if unknown:
        logger.warning(
            "validation does without %d classes that split train lacks: %s",
            len(unknown), ", ".join(unknown),
        )  # fmt: skip
    return validation.take([row for row, label in enumerate(labels) if label in known])


def _held_out(train: Manifest, share: float, seed: int) -> tuple[Manifest, Manifest]:
    rows: list[dict[str, Any]] = [
        {"pair_id": pair_id, "label": label, "split": "train"}
        for pair_id, label in zip(train.column("pair_id"), train.column("label"), strict=True)
    ]
    split_validation(rows, share, seed, _recording)
    left = {row["label"] for row in rows if row["split"] == "train"}
    # A class of a single recording stays with training as a whole.
    held = [i for i, row in enumerate(rows) if row["split"] == "val" and row["label"] in left]
    kept = sorted(set(range(len(rows))) - set(held))
    return train.take(kept), train.take(held)


def _recording(row: Mapping[str, Any]) -> str:
    found = _OF_RECORDING.fullmatch(row["pair_id"])
    return found[1] if found else str(row["pair_id"])


RESULTS_FILE = "results.json"


def finetune_and_test(
    recipe: FinetuneRecipe,
    manifest: str,
    init: str,
    run: Path,
    *,
    test: bool = True,
    tested: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> list[Result] | None:
    """Fine-tune, then test with 30 views; results go to ``run/results.json``.

    Args:
        recipe: of the fine-tuning.
        manifest: file of the videos.
        init: the weights to begin with, see `crosspair.models.read_start`.
        run: the run's folder.
        test: whether to test at all.
        tested: on which split.
        resume: go on with what the folder holds; a test that is there is not made again.
        profile: time the parts of some steps of the training.
        world: the processes that work together.

    Returns:
        The results, none without a test; or None where the training was asked to stop.

    Raises:
        CrosspairError: as `finetune` and `multiview_results` do.
    """
    world = world or World()
    videos, start = _inputs(manifest, init, tested if test else None)
    model = finetune(
        recipe, videos, run,
        start=start, tested=tested, resume=resume, profile=profile, world=world,
    )  # fmt: skip
    if model is None:
        return None
    if not test:
        return []
    origin = _provenance(recipe, model, videos)
    found = _results_there(run / RESULTS_FILE, origin)
    if found is not None:
        return found
    results = multiview_results(
        model, videos,
        split=tested, workers=recipe.training.workers, world=world,
        precision=recipe.training.precision,
        settings={"init": start.name, "labels": recipe.labels.share},
    )  # fmt: skip
    if world.is_main:
        write_results(run / RESULTS_FILE, results, origin)
    world.barrier()
    return results


def finetune_over_splits(
    recipe: FinetuneRecipe,
    manifest: str,
    init: str,
    run: Path,
    splits: Sequence[int],
    *,
    tested: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> list[Result] | None:
    """`transfer` on each official split, in ``run/split1`` and so on, and the mean of the results.

    Args:
        recipe: of each fine-tuning.
        manifest: with ``{}`` for a split's number.
        init: likewise, where each split has weights of its own.
        run: gets a folder for each split, and ``results.json`` with the means, then those of each.
        splits: their numbers.
        tested, resume, profile, world: see `transfer`.

    Returns:
        The means (on the main process alone); or None where it was asked to stop.

    Raises:
        RunError: the manifest's name has no place for a number.
        CrosspairError: as `transfer` does.
    """
    world = world or World()
    check_manifest_name(manifest)
    inputs = {split: (fill_split(manifest, split), fill_split(init, split)) for split in splits}
    for videos, weights in inputs.values():  # the last's fault is told before the first's training
        _inputs(videos, weights, tested)
    found = {}
    for split, (videos, weights) in inputs.items():
        folder = run / f"split{split}"
        logger.info("split %d", split)
        results = finetune_and_test(
            recipe, videos, weights, folder,
            tested=tested, resume=resume, profile=profile, world=world,
        )  # fmt: skip
        if results is None:
            return None
        found[split] = results, read_results(folder / RESULTS_FILE)[1]
    return write_split_means(run / RESULTS_FILE, found) if world.is_main else []


def _inputs(manifest: str, init: str, tested: str | None) -> tuple[Manifest, InitWeights]:
    """What to train on and to begin with; whatever stops the test is told before the training."""
    videos, start = Manifest.read(manifest), load_init_weights(init)
    if tested is None:
        return videos, start
    split = videos.split(tested)
    if not len(split):
        raise ManifestError(
            f"{videos.path}: no video of split {tested} to test on; give another by --test-split, "
            "or --no-test"
        )
    check_labels(split, tested)
    return videos, start


def _provenance(recipe: FinetuneRecipe, model: Classifier, manifest: Manifest) -> Provenance:
    return provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=manifest.hash,
        seed=recipe.training.seed, manifest_file=manifest.path.name,
    )  # fmt: skip


def _results_there(path: Path, origin: Provenance) -> list[Result] | None:
    """Results of an earlier test of the same classifier on the same videos."""
    try:
        results, found = read_results(path)
    except RunError:
        return None
    same = (found.recipe, found.model, found.manifest) == (
        origin.recipe, origin.model, origin.manifest,
    )  # fmt: skip
    return results if same else None
