"""Fine-tuning: the video encoder learns to classify (Sections 4.2 and 4.4)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest
from crosspair.devices import sent
from crosspair.distributed import World
from crosspair.errors import ManifestError, RecipeError
from crosspair.evaluation.features import name_failures
from crosspair.models import Classifier, Start
from crosspair.models.inference import inference
from crosspair.precision import autocast, check_frames
from crosspair.training.labelled import labelled_videos
from crosspair.training.loop import train
from crosspair.training.optimizer import optimizer_of, rate_factor
from crosspair.training.parallel import (
    check_batch,
    compiled,
    placed,
    uncompiled,
    wrapped,
)
from crosspair.training.plateau import Plateau
from crosspair.training.profile import part
from crosspair.training.run import MODEL
from crosspair.training.step import Told, backward, move
from crosspair.video import Batch, centre_loader

logger = logging.getLogger(__name__)


def finetune(
    recipe: FinetuneRecipe,
    manifest: Manifest,
    run_folder: str | os.PathLike[str],
    *,
    start: Start,
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
        start: Start,
        world: World,
        tested: str = "test",
    ) -> None:
        self.recipe, self.world = recipe, world
        self.origin = {"start": start.name, "tested": tested}
        self.data = labelled_videos(manifest, recipe.labels, recipe.training.seed, tested)
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
        start.begin(model)
        # The network is whole, its new layer too, before it is wrapped: or that layer's gradients
        # would be each process's own.
        self.model = placed(model, world).train()
        if recipe.training.compile:
            compiled(self.model.video_encoder, world.device)
        self.network = wrapped(self.model, world)
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

        def loss_of(rows: torch.Tensor, pixels: torch.Tensor) -> Told:
            with part("forward"), autocast(device, recipe.training.precision):
                logits = self.network(pixels)
            with part("objective"):
                targets = sent(self.targets[rows], device)
                smoothing = recipe.classifier.label_smoothing
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            return loss, {"top-1": (logits.argmax(dim=1) == targets).float().mean()}

        logged = backward(batch, self.network, loss_of, recipe, self.world, share)
        with part("optimiser"):
            logged |= move(self.optimizer, recipe.optimizer.clip_norm)
        return {**logged, "lr": torch.tensor(lr)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy and top-1 accuracy of the centre clip of each video of validation."""
        validation, world, training = self.validation, self.world, self.recipe.training
        targets = torch.tensor(self.data.targets(validation))
        loader = centre_loader(
            validation.clips(), range(world.rank, len(validation), world.size), [0.5],
            self.recipe.clip, batch_size=training.batch_size // training.accumulate,
            workers=training.workers,
        )  # fmt: skip
        sums, failures = torch.zeros(3, dtype=torch.float64), dict[int, str]()
        self.model.eval()
        with inference(self.model.video_encoder, world.device, training.precision):
            for batch in loader:
                failures.update(batch.failures)
                if len(batch.rows):
                    with uncompiled(training), autocast(world.device, training.precision):
                        logits = self.model(batch.clips.to(world.device, non_blocking=True)).cpu()
                    truth = targets[batch.rows]
                    hits = (logits.argmax(dim=1) == truth).sum()
                    loss = F.cross_entropy(logits.double(), truth, reduction="sum")
                    sums += torch.stack([loss, hits.double(), torch.tensor(float(len(truth)))])
        self.model.train()
        name_failures(validation, failures, world)
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

    def _check(self, manifest: Manifest, start: Start) -> None:
        recipe, world = self.recipe, self.world
        check_frames(recipe.clip.frames, world.device, recipe.training.precision)
        check_batch(recipe.training, world)
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
