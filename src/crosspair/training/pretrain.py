"""Pre-training by cross-modal pair discrimination (Section 3)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crosspair import models, objectives
from crosspair.config import Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, check_frames, dtype_for, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError, TextError
from crosspair.evaluation.features import embed_texts, extract_features
from crosspair.evaluation.retrieval import retrieval
from crosspair.models.cpd import CPD
from crosspair.objectives.bank import MemoryBank
from crosspair.training.finetune import drop_unusable_rows
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
from crosspair.training.schedule import Curriculum, build_optimizer, set_rates
from crosspair.video.loader import Batch

logger = logging.getLogger(__name__)


def pretrain(
    recipe: Recipe,
    manifest: Manifest,
    run_folder: str | os.PathLike[str],
    *,
    init: str = "random",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> CPD | None:
    """Pre-train a model and write it to ``run_folder/model``.

    Args:
        recipe: everything that decides the training.
        manifest: pairs of splits ``train`` (learnt from) and ``val`` (validated on).
        run_folder: gets ``recipe.yaml``, ``metrics.jsonl``, checkpoints and the model.
        init: weights to begin with, see `crosspair.models.load_pretrained_towers`.
        resume: go on with the run in that folder.
        profile: time the parts of some steps, see `crosspair.training.profile`.
        world: the processes that train together; each of them calls this.

    Returns:
        The model that was written, or None where it was asked to stop (SIGTERM, Ctrl-C) before its
        end.

    Raises:
        CrosspairError: pairs, recipe, folder or videos do not do; the message says which and why.
    """
    world = world or World()
    task, folder = Pretraining(recipe, manifest, world, init), Path(run_folder)
    if not train(task, manifest, folder, resume=resume, profile=profile):
        return None
    if recipe.training.export == "best":
        return CPD.from_pretrained(folder / MODEL).to(world.device)
    return task.model.eval()


class Pretraining:
    """What pre-training does with a batch, and at the end of an epoch: a `Task` of the loop.

    Args:
        recipe: everything that decides the training.
        manifest: the pairs.
        world: the processes that train together.
        init: weights to begin with.
    """

    name = "pre-training"
    ended = False  # it goes on to its last epoch

    def __init__(
        self, recipe: Recipe, manifest: Manifest, world: World, init: str = "random"
    ) -> None:
        self.recipe, self.world = recipe, world
        self.train, self.validation = manifest.split("train"), manifest.split("val")
        torch.manual_seed(recipe.training.seed)
        self.model = self._build_model(init)
        self.titles: list[str] = self.train.column(recipe.text.column)
        self.steps_per_epoch = self._check_sizes(manifest)
        self.clips = self.train.clips()
        self.counts: dict[str, int] = {}
        for split, used in (("train", self.train), ("val", self.validation)):
            given = len(manifest.split(split))
            self.counts |= {split: len(used), f"{split}_left_out": given - len(used)}
            logger.info("split %s: %d of %d pairs are used", split, len(used), given)
        bank_seed, noise_seed = recipe.training.seed, recipe.training.seed + 1
        self.objective = objectives.build_objective(
            recipe.objective, len(self.train), recipe.head.embedding, noise_seed, world
        )
        self.bank = MemoryBank(
            len(self.train), recipe.head.embedding, recipe.objective.bank_momentum, bank_seed,
            world, dtype_for(world.device, recipe.objective.bank_precision),
        )  # fmt: skip
        self.optimizer = build_optimizer(self.model, self.objective, recipe.optimizer)
        self.curriculum = Curriculum(recipe.curriculum)
        torch.manual_seed(recipe.training.seed + world.rank)  # dropout: each process its own
        self.enter_stage()

    def train_step(self, batch: Batch, epoch: float, share: float) -> dict[str, torch.Tensor]:
        """One step of the recipe's objective; see `crosspair.training.loop.Task`."""
        recipe, device = self.recipe, self.world.device
        lr = set_rates(
            self.optimizer, self.curriculum.stage, epoch, recipe.training.epochs,
            recipe.optimizer, recipe.curriculum,
        )  # fmt: skip
        embeddings = []

        def loss_of(rows: torch.Tensor, pixels: torch.Tensor) -> LossAndMetrics:
            titles = [self.titles[row] for row in rows.tolist()]
            with record_section("forward"), autocast(device, recipe.training.precision):
                video, text = self.towers(pixels, titles)
            embeddings.append((video.detach(), text.detach()))
            with record_section("objective"):
                told: LossAndMetrics = self.objective(
                    video, text, to_device(rows, device), self.bank
                )
            return told

        logged = accumulate_gradients(batch, self.towers, loss_of, recipe, self.world, share)
        with record_section("optimiser"):
            for weights in self.objective.parameters():  # learned classes, which are in no DDP
                assert weights.grad is not None
                weights.grad = self.world.sum(weights.grad) / self.world.size
            logged |= optimizer_step(self.optimizer, recipe.optimizer.clip_norm)
        with record_section("bank"):
            both = (torch.cat(column) for column in zip(*embeddings, strict=True))
            self.bank.update(batch.rows, *both)
        return {**logged, "lr": torch.tensor(lr), "stage": torch.tensor(self.curriculum.stage)}

    def validate(self) -> dict[str, float]:
        """Retrieval both ways on the val split, one centre clip a video (Section 4.2)."""
        training = self.recipe.training
        with force_eager(training):
            features = extract_features(
                self.model, self.validation,
                clips=1, batch_size=training.batch_size // training.accumulate,
                workers=training.workers, world=self.world, precision=training.precision,
            )  # fmt: skip
        titles = self.validation.column(self.recipe.text.column)
        text = embed_texts(self.model, [titles[row] for row in features.rows.tolist()])
        scores: dict[str, float] = {"stage": self.curriculum.stage, "pairs": len(features.rows)}
        found = {
            "text_to_video": retrieval(text, features.embedding),
            "video_to_text": retrieval(features.embedding, text),
        }
        for direction, result in found.items():
            for k, recall in result.recall.items():
                scores[f"{direction}_R@{k}"] = recall
            scores[f"{direction}_median_rank"] = result.median_rank
        scores["mrr"] = sum(result.mrr for result in found.values()) / 2
        return scores

    def observe(self, scores: dict[str, float]) -> bool:
        """The score is the mean reciprocal rank, of both ways; see `Task`."""
        return self.curriculum.observe(scores["mrr"])

    def advance(self, epochs_done: int) -> str:
        """Go on to stage II if it is time; see `Task`."""
        if not self.curriculum.advance(epochs_done):
            return ""
        self.enter_stage()
        return "stage II begins"

    def state_dict(self) -> dict[str, Any]:
        """What every process has the same; see `Task`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "curriculum": self.curriculum.state_dict(),
        }

    def own_state_dict(self) -> dict[str, Any]:
        """This process's share of the bank; see `Task`."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, shared: dict[str, Any], owns: Sequence[dict[str, Any]]) -> None:
        """Put back what the other two gave; see `Task`."""
        self.model.load_state_dict(shared["model"])
        self.optimizer.load_state_dict(shared["optimizer"])
        self.objective.load_state_dict(shared["objective"])
        self.curriculum.load_state_dict(shared["curriculum"])
        self.bank.load_state_dict([own["bank"] for own in owns])
        self.enter_stage()

    def pair_id(self, row: int) -> str:
        """The name of a training pair; see `Task`."""
        return str(self.train.table["pair_id"][row].as_py())

    def enter_stage(self) -> None:
        """Freeze the language model or set it free, as the curriculum's stage says."""
        self.model.train()
        trains_text = self.curriculum.stage == 2
        self.model.text_encoder.requires_grad_(trains_text).train(trains_text)
        self.towers = wrap_ddp(self.model, self.world)

    def _build_model(self, init: str) -> CPD:
        """The model, after leaving out pairs that cannot be learnt from."""
        text = self.recipe.text
        self.train = _titled(self.train, text.column)
        self.validation = _titled(self.validation, text.column)
        model = models.build_model(self.recipe, self.train.column(text.column))
        self.origin = {"init": models.load_pretrained_towers(model, init)}
        self.train = _with_words(self.train, model, text.column, text.empty_titles)
        self.validation = _with_words(self.validation, model, text.column, "drop")
        model = prepare_model(model, self.world)
        if self.recipe.training.compile:
            compile_model(model.video_encoder, self.world.device)
        return model

    def _check_sizes(self, manifest: Manifest) -> int:
        training, curriculum = self.recipe.training, self.recipe.curriculum
        check_frames(self.recipe.clip.frames, self.world.device, training.precision)
        check_batch_size(training, self.world)
        if len(self.train) < training.batch_size:
            raise ManifestError(
                f"{manifest.path}: {len(self.train)} usable pairs in split train, fewer than "
                f"a batch of {training.batch_size}; add pairs or lower training.batch_size"
            )
        if len(self.validation) == 0:
            if curriculum.strategy == "curriculum" and curriculum.stage2_epoch is None:
                raise ManifestError(
                    f"{manifest.path}: no pairs in split val, which tells when stage II begins; "
                    "add some or give curriculum.stage2_epoch"
                )
            logger.warning("%s: no pairs in split val: no validation", manifest.path)
        return len(self.train) // training.batch_size


def _titled(split: Manifest, column: str) -> Manifest:
    kept = drop_unusable_rows(split, column)
    if len(split) and not len(kept):
        raise ManifestError(
            f"{split.path}: none of {len(split)} pairs has a {column} and a readable video"
        )
    return kept


def _with_words(split: Manifest, model: CPD, column: str, policy: str) -> Manifest:
    """Rows whose title the text encoder can read; the others refuse the start, or are named."""
    ids, titles = split.column("pair_id"), split.column(column)
    empty = [row for row, title in enumerate(titles) if model.text_encoder.is_empty(title)]
    if empty and policy == "error":
        first = empty[0]
        raise TextError(
            f"{split.path}: {len(empty)} titles hold no known word (the first: pair {ids[first]!r},"
            f" {titles[first]!r}); mend them, or leave them out by text.empty_titles=drop"
        )
    for row in empty:
        logger.warning("left out %s: no known word in %r", ids[row], titles[row])
    return split.take(sorted(set(range(len(split))) - set(empty)))
