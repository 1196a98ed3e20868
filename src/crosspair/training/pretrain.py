"""Pre-training by cross-modal pair discrimination (Section 3)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crosspair.config import Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, dtype_for, get_rng_state, set_rng_state, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError
from crosspair.evaluation.encode import encode_plans, eval_mode
from crosspair.evaluation.features import extract_features
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.stored import StoredFeatures
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.cpd import CPD, build_model
from crosspair.models.init import load_pretrained_towers
from crosspair.objectives import LearnedTemperature, NoiseContrastive, build_objective
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.in_batch import InBatch
from crosspair.progress import progress
from crosspair.training.captions import draw_captions, drop_unknown_captions, list_captions, titled_pairs
from crosspair.training.loop import (
    LossAndMetrics,
    Trainer,
    compile_model,
    force_eager,
    maybe_no_sync,
    prepare_model,
    wrap_ddp,
)
from crosspair.training.profile import record_section
from crosspair.training.run import MODEL
from crosspair.training.schedule import Curriculum, build_optimizer, set_learning_rates
from crosspair.training.stored import StoredTowers, stored_batches
from crosspair.video.loader import Batch, TrainingOrder

logger = logging.getLogger(__name__)

BANK = 3  # use of a generator; the others are in `crosspair.video.loader`
TEXTS = 256  # texts of a call of the text encoder in validation
MIN_CHECKPOINT_STEPS = 1000  # with stored features, between checkpoints: epochs may last less than a second


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
        The model that was written, or None if a signal (SIGTERM, SIGHUP, Ctrl-C) stopped the training.

    Raises:
        CrosspairError: pairs, recipe, folder or videos are invalid.
    """
    training, folder = Pretraining(recipe, manifest, world or World(), init), Path(run_folder)
    if not training.train(folder, resume=resume, profile=profile):
        return None
    if recipe.training.export == "best" or recipe.head.interpolation != 1 or recipe.training.ema:
        return CPD.from_pretrained(folder / MODEL).to(training.world.device)
    training.keep_learned_temperature()
    return training.model.eval()


class Pretraining(Trainer):
    """Pre-training: model, objective, bank, optimizer and curriculum; arguments as in `pretrain`."""

    name = "pre-training"
    saved = ("model", "optimizer", "objective", "curriculum")
    recipe: Recipe
    model: CPD
    stores_features: bool  # whether the views are encoded before the training, by a frozen encoder
    towers: StoredTowers | None  # stored features
    stored_views: list[StoredFeatures]  # of the training pairs, if features are stored
    validation_videos: tuple[list[int], torch.Tensor]  # rows and stored features (V, F) of split val

    def __init__(self, recipe: Recipe, manifest: Manifest, world: World, init: str = "random") -> None:
        super().__init__(recipe, manifest, world)
        seed = recipe.training.seed
        torch.manual_seed(seed)
        train, self.captions = self._build_model(init)
        self.views_per_step = 2 if recipe.objective.video_weight else 1
        self.train_pairs, self.towers = train, None
        if recipe.video.trained_blocks == 0:
            self.views = min(recipe.video.views, max(recipe.training.epochs, self.views_per_step))
        self.stores_features = recipe.video.cache and self.views > 0
        self.clips, self.ids, pairs = train.clips(), train.column("pair_id"), len(train)
        self.steps_per_epoch = pairs // recipe.training.batch_size
        self._check_splits(pairs)
        self.objective = build_objective(recipe.objective, pairs, self.model.head.embedding, seed + 1, world)
        self.between_views = InBatch(recipe.objective.temperature, world)
        self.bank = MemoryBank(
            pairs, self.model.head.embedding, recipe.objective.bank_momentum, seed, world,
            dtype_for(world.device, recipe.objective.bank_precision),
        )  # fmt: skip
        if recipe.objective.merge_titles:
            numbers: dict[tuple[str, ...], int] = {}
            of_pairs = [numbers.setdefault(tuple(each), len(numbers)) for each in self.captions]
            self.bank.titles = torch.tensor(of_pairs, device=world.device)
        self.optimizer = build_optimizer(self.model, self.objective, recipe.optimizer)
        self.curriculum = Curriculum(recipe.curriculum)
        torch.manual_seed(seed + world.rank)  # dropout differs between processes
        self.enter_stage()

    def _build_model(self, init: str) -> tuple[Manifest, list[list[str]]]:
        """Build and initialise the model; set ``validation``, return the training pairs and their known captions."""
        text, manifest = self.recipe.text, self.manifest
        train = titled_pairs(manifest, "train", text.column)
        validation = titled_pairs(manifest, "val", text.column)
        captions = list_captions(train, text.column)
        model = build_model(self.recipe, [caption for each in captions for caption in each])
        self.origin = {"init": load_pretrained_towers(model, init)}
        train, captions = drop_unknown_captions(train, captions, model, text.empty_titles)
        titles = [[title] for title in validation.column(text.column)]
        self.validation, _ = drop_unknown_captions(validation, titles, model, "drop")
        for split, used in (("train", train), ("val", self.validation)):
            total = len(manifest.split(split))
            self.counts |= {split: len(used), f"{split}_left_out": total - len(used)}
            logger.info("split %s: using %d of %d pairs", split, len(used), total)
        self.model = prepare_model(model, self.world)
        if self.recipe.training.compile:
            compile_model(self.model.video_encoder, self.world.device)
        return train, captions

    def _check_splits(self, pairs: int) -> None:
        """Raise ManifestError if there are fewer pairs than in a batch, or no validation for the curriculum."""
        path, curriculum = self.manifest.path, self.recipe.curriculum
        if not self.steps_per_epoch:
            raise ManifestError(
                f"{path}: split train has {pairs} usable pairs, fewer than training.batch_size "
                f"{self.recipe.training.batch_size}; add pairs or use a smaller batch"
            )
        if not len(self.validation):
            if curriculum.strategy == "curriculum" and curriculum.stage2_epoch is None:
                raise ManifestError(
                    f"{path}: split val has no pairs, but validation determines when stage II begins; add pairs or "
                    "set curriculum.stage2_epoch"
                )
            logger.warning("%s: split val has no pairs: no validation", path)

    def enter_stage(self) -> None:
        """Freeze the text encoder in stage I, train it in stage II, and wrap the model in DDP anew."""
        self.model.train()
        trains_text = self.curriculum.stage == 2
        self.model.text_encoder.requires_grad_(trains_text).train(trains_text)
        self.network = wrap_ddp(self.model, self.world)

    def train_step(self, batch: Batch, epoch: float, loss_scale: float) -> dict[str, torch.Tensor]:
        """Train on one batch with the recipe's objective, by default Equation 5, and update the bank.

        The objective reads the first view of each video; ``objective.video_weight`` compares it with a second one.
        """
        recipe = self.recipe
        lr = set_learning_rates(
            self.optimizer, self.curriculum.stage, epoch, recipe.training.epochs,
            recipe.optimizer, recipe.curriculum,
        )  # fmt: skip
        embeddings: list[tuple[torch.Tensor, torch.Tensor]] = []

        def compute_loss(rows: torch.Tensor, pixels: torch.Tensor) -> LossAndMetrics:
            views, text = self._encode(self.network, rows, pixels, batch.epoch)
            if isinstance(self.objective, NoiseContrastive):
                self.objective.first_microbatch = not embeddings
            embeddings.append((views[:, 0].detach(), text.detach()))
            return self._compute_objective(views, text, rows)

        if recipe.objective.compares_batch and recipe.training.accumulate > 1:
            metrics, *embeddings = self._cache_gradients(batch, loss_scale)
        else:
            metrics = self.accumulate_gradients(batch, compute_loss, loss_scale)
        with record_section("optimiser"):
            for weights in self.objective.parameters():  # learned classes, outside DDP
                assert weights.grad is not None
                weights.grad = self.world.sum(weights.grad) / self.world.size
            metrics |= self.step_optimizer()
        with record_section("bank"):
            video, text = (torch.cat(column) for column in zip(*embeddings, strict=True))
            self.bank.update(batch.rows, video, text)
        return {**metrics, "lr": torch.tensor(lr), "stage": torch.tensor(self.curriculum.stage)}

    def _encode(
        self, network: nn.Module, rows: torch.Tensor, pixels: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return f_v of V views (b, V, D) and f_t (b, D) of a micro-batch, see `accumulate_gradients`."""
        training = self.recipe.training
        titles = draw_captions(self.captions, rows.tolist(), training.seed, epoch)
        with record_section("forward"), autocast(self.world.device, training.precision):
            views, text = network(pixels, self.text_inputs(titles))  # (b·V, D), (b, D)
        return views.view(len(text), self.views_per_step, -1), text

    def _compute_objective(self, views: torch.Tensor, text: torch.Tensor, rows: torch.Tensor) -> LossAndMetrics:
        """Return the loss of f_v (b, V, D) and f_t (b, D) of pairs, and metrics."""
        with record_section("objective"):
            batch_and_bank = to_device(rows, self.world.device), self.bank
            video, *others = views.unbind(1)
            loss, metrics = self.objective(video, text, *batch_and_bank)
            for other in others:
                between_views, _ = self.between_views(video, other, *batch_and_bank)
                loss = loss + self.recipe.objective.video_weight * between_views
                metrics["loss_views"] = between_views.detach()
        return loss, metrics

    def _cache_gradients(
        self, batch: Batch, loss_scale: float
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Compute the gradients of a loss that compares all pairs of the batch, in the memory of a micro-batch.

        This is gradient caching (GradCache, arXiv:2101.06983). Micro-batches are encoded twice with the same random
        numbers: without a graph, to compute the gradients of the loss with respect to the embeddings; and with a graph,
        to propagate these. Except for batch normalisation, which uses the statistics of each micro-batch, gradients are
        those of the whole batch. Arguments as of `train_step`.

        Returns:
            The loss and the metrics of the objective, and the embeddings f_v and f_t (B, D).
        """
        microbatches, device = self.split_batch(batch), self.world.device
        states, parts = [], []
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        with torch.no_grad():
            for rows, clips, colors in microbatches:
                states.append(get_rng_state(device))
                parts.append(self._encode(self.model, rows, self.preprocess(clips, colors), batch.epoch))
            for buffer, saved in zip(self.model.buffers(), buffers, strict=True):  # running statistics move once
                buffer.copy_(saved)
        views, text = (torch.cat(column).requires_grad_() for column in zip(*parts, strict=True))
        loss, metrics = self._compute_objective(views, text, batch.rows)
        with record_section("backward"):
            torch.autograd.backward(loss * loss_scale)
        assert views.grad is not None
        assert text.grad is not None
        sizes = [len(rows) for rows, _, _ in microbatches]
        gradients = zip(torch.split(views.grad, sizes), torch.split(text.grad, sizes), strict=True)
        for i, ((rows, clips, colors), gradient) in enumerate(zip(microbatches, gradients, strict=True)):
            set_rng_state(device, states[i])
            pixels = self.preprocess(clips, colors)
            with maybe_no_sync(self.network, last=i == len(microbatches) - 1):
                outputs = self._encode(self.network, rows, pixels, batch.epoch)
                trained = [t for t in (0, 1) if outputs[t].requires_grad]  # towers
                with record_section("backward"):
                    torch.autograd.backward([outputs[t] for t in trained], [gradient[t] for t in trained])
        return {"loss": loss.detach(), **metrics}, (views[:, 0].detach(), text.detach())

    def load_batches(self, order: TrainingOrder) -> Iterable[Batch]:
        """Return the batches of an order; with a frozen video encoder, with features that are stored first."""
        if not self.stores_features:
            return super().load_batches(order)
        self.min_checkpoint_steps = MIN_CHECKPOINT_STEPS
        self.towers = StoredTowers(self.model, self.recipe, self.world)
        if self.curriculum.stage == 1:
            captions = chain.from_iterable(self.captions)
            self.towers.load_titles([*captions, *self.validation.column(self.recipe.text.column)])
        if len(self.validation):
            self.validation_videos = self.towers.load_videos(self.validation)
        self.stored_views = self.towers.load_views(self.train_pairs, self.views)
        return stored_batches(order, self.stored_views, self.views_per_step)

    def _run(self, batches: Iterable[Batch]) -> bool:
        """Fill the memory bank before the first step, and train."""
        if not self.step:
            self.fill_bank()
        return super()._run(batches)

    def fill_bank(self) -> None:
        """Fill the memory bank from the initial towers, unless its entries are to be random.

        A pair is encoded by the first of its known captions, and by one clip in the middle of its video or its first
        stored view. Batches have the size of a micro-batch, are each encoded by one process, and are normalised by
        their own statistics, so entries do not depend on the number of processes; each process needs the memory of
        such a forward pass. The video entries of unreadable videos stay random.
        """
        config, training, world = self.recipe.objective, self.recipe.training, self.world
        if config.bank_init == "random" or not config.uses_bank:
            return
        pairs, size = len(self.captions), training.batch_size // training.accumulate
        count = -(-pairs // size)  # batches; the last is completed by pairs of the first, for its statistics
        order = np.random.default_rng((training.seed, BANK)).permutation(pairs)
        batches = np.resize(order, (count, size)).tolist()
        with (
            batch_statistics(self.model), torch.no_grad(), force_eager(training),
            autocast(world.device, training.precision),
            progress("filling the memory bank", pairs, "pairs", shown=world.is_main) as bar,
        ):  # fmt: skip
            videos = self._iter_visual_features(batches[world.rank :: world.size])
            for number in range(world.rank, -(-count // world.size) * world.size, world.size):
                rows = batches[number] if number < count else []
                new = rows[: max(0, pairs - number * size)]  # without the pairs that complete the batch
                text = video = self.bank.text.new_empty(0, self.bank.text.shape[1])
                if rows:
                    text = self.model.project_text(self._text_features([self.captions[row][0] for row in rows]))
                self.bank.fill(torch.tensor(new, dtype=torch.long), "text", text[: len(new)])
                if config.bank_init == "towers":
                    features = next(videos) if rows else []
                    readable = [i for i, each in enumerate(features) if each is not None]
                    if len(readable) > 1:
                        visual = torch.cat([each for each in features if each is not None])
                        video = self.model.project_video(to_device(visual, world.device))
                    filled = [rows[i] for i in readable[: len(video)] if i < len(new)]
                    self.bank.fill(torch.tensor(filled, dtype=torch.long), "video", video[: len(filled)])
                bar.advance(min(pairs, (number + world.size) * size))

    def _iter_visual_features(self, batches: Sequence[Sequence[int]]) -> Iterator[list[torch.Tensor | None]]:
        """Yield for batches of training pairs the feature (1, F) of each video on the CPU, None if it is unreadable."""
        if self.towers:
            view = self.stored_views[0]
            yield from ([None if row in view.failures else view[[row]] for row in rows] for rows in batches)
            return

        def network(clips: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.model.visual_features(to_device(clips, self.world.device)).float().cpu(),)

        plans = [whole_video_plan(row, self.clips[row], clips=1) for rows in batches for row in rows]
        workers, size = self.recipe.training.workers, len(batches[0]) if batches else 1
        encoded = encode_plans(plans, network, self.recipe.clip, batch_size=size, workers=workers)
        for rows in batches:
            yield [video.sums[0] if video.groups else None for video in islice(encoded, len(rows))]

    def text_inputs(self, titles: Sequence[str]) -> Sequence[str] | torch.Tensor:
        """Return titles; or, if the text encoder is frozen and they are stored, their features (b, E) on the device."""
        if self.towers and self.curriculum.stage == 1:
            return to_device(self.towers.text_features(titles), self.world.device)
        return titles

    def _text_features(self, titles: Sequence[str]) -> torch.Tensor:
        """Return the features (b, E) of titles by the text encoder, on the device."""
        inputs = self.text_inputs(titles)
        return inputs if isinstance(inputs, torch.Tensor) else self.model.text_encoder(inputs)

    def validate(self) -> dict[str, float]:
        """Compute retrieval in both directions on split val, with one centre clip per video.

        The scores are those of the model as it is exported. For heads that started as the identity, on encoders that
        keep their weights, ``mrr_0`` is that of the original model, ``mrr_1`` that of the trained heads, and
        ``mrr_0.5`` that of heads halfway between them.
        """
        weight = self.recipe.head.interpolation
        with eval_mode(self.model), torch.no_grad():
            visual, text = self._validation_features()
            scores: dict[str, float] = {"stage": self.curriculum.stage, "pairs": len(visual)}
            scores |= self._retrieval_scores(visual, text, weight)
            frozen = self.recipe.video.trained_blocks == 0 and self.recipe.curriculum.strategy == "frozen"
            if frozen and self.recipe.head.projection == "identity":
                scores |= {f"mrr_{w}": self._retrieval_scores(visual, text, w)["mrr"] for w in (0, 0.5, 1)}
        return scores

    def _validation_features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features (V, F) of the readable videos of split val, and (V, E) of their titles, on the device."""
        training, device = self.recipe.training, self.world.device
        if self.towers:
            rows, visual = self.validation_videos
        else:
            with force_eager(training):
                features = extract_features(
                    self.model, self.validation,
                    clips=1, batch_size=training.batch_size // training.accumulate,
                    workers=training.workers, world=self.world, precision=training.precision,
                )  # fmt: skip
            rows, visual = features.rows.tolist(), features.visual
        column = self.validation.column(self.recipe.text.column)
        titles = [column[row] for row in rows]
        text = [self._text_features(titles[i : i + TEXTS]) for i in range(0, len(titles), TEXTS)]
        return visual.to(device), torch.cat(text)

    def _retrieval_scores(self, visual: torch.Tensor, text: torch.Tensor, weight: float) -> dict[str, float]:
        """Compute retrieval metrics from the features of pairs, by heads that are interpolated with ``weight``."""
        with self.model.interpolated(weight):
            video, titles = self.model.project_video(visual).cpu(), self.model.project_text(text).cpu()
        results = {"text_to_video": retrieval(titles, video), "video_to_text": retrieval(video, titles)}
        scores: dict[str, float] = {}
        for direction, result in results.items():
            for k, recall in result.recall.items():
                scores[f"{direction}_R@{k}"] = recall
            scores[f"{direction}_median_rank"] = result.median_rank
        scores["mrr"] = sum(result.mrr for result in results.values()) / 2
        return scores

    def export(self) -> None:
        """Write the model with its temperature, if that is learned, and heads interpolated as the recipe says."""
        self.keep_learned_temperature()
        with self.model.interpolated(self.recipe.head.interpolation):
            super().export()

    def keep_learned_temperature(self) -> None:
        """Set the temperature of the model to that of the objective, if it is learned."""
        temperature = getattr(self.objective, "temperature", None)
        if isinstance(temperature, LearnedTemperature):
            self.model.temperature = temperature().item()

    def observe(self, scores: dict[str, float]) -> bool:
        """Record the mean reciprocal rank; return whether it is the highest so far."""
        return self.curriculum.observe(scores["mrr"])

    def advance(self, epochs_done: int) -> str:
        """Enter stage II if it is due; return a description of the change, or ""."""
        if not self.curriculum.advance(epochs_done):
            return ""
        self.enter_stage()
        return "stage II begins"

    def rank_state_dict(self) -> dict[str, Any]:
        """Return this process's shard of the memory bank."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> None:
        """Restore the state, with the bank's shards of any number of processes."""
        super().load_state_dict(state, ranks)
        self.bank.load_state_dict([each["bank"] for each in ranks])
        self.enter_stage()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, but let batch normalisation that is trained use the statistics of each batch.

    Running statistics do not change, and processes do not communicate.
    """
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training]
    running = [(norm.running_mean, norm.running_var) for norm in norms]
    with eval_mode(model):
        for norm in norms:
            norm.running_mean = norm.running_var = None
        try:
            yield
        finally:
            for norm, (mean, variance) in zip(norms, running, strict=True):
                norm.running_mean, norm.running_var = mean, variance
