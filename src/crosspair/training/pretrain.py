"""Pre-training by cross-modal pair discrimination (Section 3)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crosspair.config import Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, check_frames, dtype_for, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError, TextError
from crosspair.evaluation.features import embed_texts, extract_features
from crosspair.evaluation.retrieval import retrieval
from crosspair.models.cpd import CPD, build_model
from crosspair.models.init import load_pretrained_towers
from crosspair.objectives import build_objective
from crosspair.objectives.bank import MemoryBank
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
from crosspair.training.schedule import Curriculum, build_optimizer, set_learning_rates
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
        recipe: all settings.
        manifest: pairs of the splits ``train`` and ``val`` (validation, optional).
        run_folder: receives ``recipe.yaml``, ``metrics.jsonl``, checkpoints and the model.
        init: initial weights, see `crosspair.models.load_pretrained_towers`.
        resume: continue from the last checkpoint in the folder.
        profile: profile some steps, see `crosspair.training.profile`.
        world: the processes of the training; each of them calls this function.

    Returns:
        The model that was written, or None if a signal (SIGTERM, Ctrl-C) stopped the training.

    Raises:
        CrosspairError: pairs, recipe, folder or videos are invalid.
    """
    world = world or World()
    task, folder = Pretraining(recipe, manifest, world, init), Path(run_folder)
    if not train(task, manifest, folder, resume=resume, profile=profile):
        return None
    if recipe.training.export == "best":
        return CPD.from_pretrained(folder / MODEL).to(world.device)
    return task.model.eval()


class Pretraining:
    """The pre-training `Task`: model, objective, bank, optimizer, curriculum; arguments as in `pretrain`."""

    name = "pre-training"
    ended = False

    def __init__(self, recipe: Recipe, manifest: Manifest, world: World, init: str = "random") -> None:
        self.recipe, self.world = recipe, world
        seed = recipe.training.seed
        torch.manual_seed(seed)
        self.model = self._build_model(manifest, init)
        self.titles: list[str] = self.train.column(recipe.text.column)
        self.clips, pair_count = self.train.clips(), len(self.train)
        self.steps_per_epoch = pair_count // recipe.training.batch_size
        self._check_recipe(manifest)
        self.counts: dict[str, int] = {}
        for split, used in (("train", self.train), ("val", self.validation)):
            total = len(manifest.split(split))
            self.counts |= {split: len(used), f"{split}_left_out": total - len(used)}
            logger.info("split %s: using %d of %d pairs", split, len(used), total)
        self.objective = build_objective(recipe.objective, pair_count, recipe.head.embedding, seed + 1, world)
        self.bank = MemoryBank(
            pair_count, recipe.head.embedding, recipe.objective.bank_momentum, seed, world,
            dtype_for(world.device, recipe.objective.bank_precision),
        )  # fmt: skip
        self.optimizer = build_optimizer(self.model, self.objective, recipe.optimizer)
        self.curriculum = Curriculum(recipe.curriculum)
        torch.manual_seed(seed + world.rank)  # dropout differs between processes
        self.enter_stage()

    def _build_model(self, manifest: Manifest, init: str) -> CPD:
        """Build and initialise the model; set ``train``, ``validation`` to the pairs with a title it knows words of."""
        text = self.recipe.text
        train = _titled_pairs(manifest, "train", text.column)
        validation = _titled_pairs(manifest, "val", text.column)
        model = build_model(self.recipe, train.column(text.column))
        self.origin = {"init": load_pretrained_towers(model, init)}
        self.train = _drop_unknown_titles(train, model, text.column, text.empty_titles)
        self.validation = _drop_unknown_titles(validation, model, text.column, "drop")
        model = prepare_model(model, self.world)
        if self.recipe.training.compile:
            compile_model(model.video_encoder, self.world.device)
        return model

    def _check_recipe(self, manifest: Manifest) -> None:
        """Raise RecipeError or ManifestError for settings that cannot train, e.g. a batch larger than split train."""
        training, curriculum = self.recipe.training, self.recipe.curriculum
        check_frames(self.recipe.clip.frames, self.world.device, training.precision)
        check_batch_size(training, self.world)
        if not self.steps_per_epoch:
            raise ManifestError(
                f"{manifest.path}: split train has {len(self.train)} usable pairs, fewer than "
                f"training.batch_size {training.batch_size}; add pairs or use a smaller batch"
            )
        if not len(self.validation):
            if curriculum.strategy == "curriculum" and curriculum.stage2_epoch is None:
                raise ManifestError(
                    f"{manifest.path}: split val has no pairs, but validation determines when "
                    "stage II begins; add pairs or set curriculum.stage2_epoch"
                )
            logger.warning("%s: split val has no pairs: no validation", manifest.path)

    def enter_stage(self) -> None:
        """Freeze the text encoder in stage I, train it in stage II, and wrap the model in DDP anew."""
        self.model.train()
        trains_text = self.curriculum.stage == 2
        self.model.text_encoder.requires_grad_(trains_text).train(trains_text)
        self.towers = wrap_ddp(self.model, self.world)

    def train_step(self, batch: Batch, epoch: float, loss_scale: float) -> dict[str, torch.Tensor]:
        """Train on one batch with the recipe's objective, by default Equation 5, and update the bank."""
        recipe, device = self.recipe, self.world.device
        lr = set_learning_rates(
            self.optimizer, self.curriculum.stage, epoch, recipe.training.epochs,
            recipe.optimizer, recipe.curriculum,
        )  # fmt: skip
        embeddings = []

        def compute_loss(rows: torch.Tensor, pixels: torch.Tensor) -> LossAndMetrics:
            titles = [self.titles[row] for row in rows.tolist()]
            with record_section("forward"), autocast(device, recipe.training.precision):
                video, text = self.towers(pixels, titles)  # (b, D) each
            embeddings.append((video.detach(), text.detach()))
            with record_section("objective"):
                result: LossAndMetrics = self.objective(video, text, to_device(rows, device), self.bank)
            return result

        metrics = accumulate_gradients(batch, self.towers, compute_loss, recipe, self.world, loss_scale)
        with record_section("optimiser"):
            for weights in self.objective.parameters():  # learned classes, outside DDP
                assert weights.grad is not None
                weights.grad = self.world.sum(weights.grad) / self.world.size
            metrics |= optimizer_step(self.optimizer, recipe.optimizer.clip_norm)
        with record_section("bank"):
            video, text = (torch.cat(column) for column in zip(*embeddings, strict=True))
            self.bank.update(batch.rows, video, text)
        return {**metrics, "lr": torch.tensor(lr), "stage": torch.tensor(self.curriculum.stage)}

    def validate(self) -> dict[str, float]:
        """Compute retrieval in both directions on split val, with one centre clip per video."""
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
        results = {
            "text_to_video": retrieval(text, features.embedding),
            "video_to_text": retrieval(features.embedding, text),
        }
        for direction, result in results.items():
            for k, recall in result.recall.items():
                scores[f"{direction}_R@{k}"] = recall
            scores[f"{direction}_median_rank"] = result.median_rank
        scores["mrr"] = sum(result.mrr for result in results.values()) / 2
        return scores

    def observe(self, scores: dict[str, float]) -> bool:
        """Record the mean reciprocal rank; return whether it is the highest so far."""
        return self.curriculum.observe(scores["mrr"])

    def advance(self, epochs_done: int) -> str:
        """Enter stage II if it is due; return a description of the change, or ""."""
        if not self.curriculum.advance(epochs_done):
            return ""
        self.enter_stage()
        return "stage II begins"

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is the same on all processes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "curriculum": self.curriculum.state_dict(),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """Return this process's shard of the memory bank."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> None:
        """Restore the state, with the bank's shards of any number of processes."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.bank.load_state_dict([each["bank"] for each in ranks])
        self.enter_stage()

    def pair_id(self, row: int) -> str:
        """Return the id of a training pair."""
        return str(self.train.table["pair_id"][row].as_py())


def _titled_pairs(manifest: Manifest, name: str, column: str) -> Manifest:
    """Return the pairs of a split that have a title and no error; ManifestError if it has no such pair."""
    split = manifest.split(name)
    kept = split.drop_unusable(column)
    if len(split) and not len(kept):
        raise ManifestError(
            f"{split.path}: all {len(split)} pairs of split {name} lack a {column} or a readable "
            f'video. Run "crosspair check {split.path}" to list unreadable videos.'
        )
    return kept


def _drop_unknown_titles(split: Manifest, model: CPD, column: str, policy: str) -> Manifest:
    """Drop pairs without a word known to the text encoder; with policy "error" raise instead."""
    ids, titles = split.column("pair_id"), split.column(column)
    unknown = [row for row, title in enumerate(titles) if model.text_encoder.is_empty(title)]
    if unknown and policy == "error":
        first = unknown[0]
        raise TextError(
            f"{split.path}: {len(unknown)} titles contain no known word, the first is "
            f"{titles[first]!r} (pair {ids[first]!r}); fix them or set text.empty_titles=drop"
        )
    for row in unknown:
        logger.warning("skipped %s: no known word in %r", ids[row], titles[row])
    return split.take(sorted(set(range(len(split))) - set(unknown)))
