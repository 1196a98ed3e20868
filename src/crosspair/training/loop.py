"""The training loop that pre-training and fine-tuning share.

`Trainer.train` opens the run folder and loops over batches: step, log, validate, checkpoint, stop.
Its subclasses define the model and what one step does. The rest of the file, in the order of use:
the device and DDP setup of the model, then the gradient step.
"""

from __future__ import annotations

import functools
import json
import logging
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crosspair.config import Clip, FinetuneRecipe, Recipe, TrainingConfig
from crosspair.corpora.manifest import Manifest
from crosspair.device import check_frames, get_rng_state, set_rng_state, to_device
from crosspair.distributed import World
from crosspair.errors import RecipeError, RunError, VideoError
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.progress import graceful_shutdown, progress
from crosspair.training.average import WeightAverage, average_running_stats
from crosspair.training.profile import profile_steps, record_section
from crosspair.training.run import RunFolder, load_checkpoint, save_checkpoint
from crosspair.video.loader import Batch, TrainingOrder, explain_dead_workers, training_loader
from crosspair.video.pixels import preprocess_clips, separate_views

logger = logging.getLogger(__name__)

LossAndMetrics = tuple[torch.Tensor, dict[str, torch.Tensor]]  # scalar loss, scalars to log


class Trainer(ABC):
    """Trains a model from its first or last saved step to the end.

    The constructors of the subclasses build model, optimizer and data, and set the attributes.
    """

    name: str  # shown in the progress bar
    saved: tuple[str, ...]  # attributes whose state is in checkpoints, the same on all processes
    recipe: Recipe | FinetuneRecipe
    origin: dict[str, str]  # inputs of the run other than recipe and manifest, such as the initial weights
    model: CPD | Classifier
    network: nn.Module  # the model, wrapped in DDP if there are several processes
    optimizer: torch.optim.Optimizer
    clips: list[Clip]  # of one epoch
    ids: list[str]  # pair ids of the clips, repeated as often as necessary
    steps_per_epoch: int
    validation: Manifest  # may be empty
    views = 0  # different views of each clip, which epochs use in turn; 0: a new one in every epoch
    views_per_step = 1  # views of each clip that a step reads, V
    min_checkpoint_steps = 0  # between checkpoints at the ends of epochs

    def __init__(self, recipe: Recipe | FinetuneRecipe, manifest: Manifest, world: World) -> None:
        if recipe.video.encoder == "resnet3d":
            check_frames(recipe.clip.frames, world.device, recipe.training.precision)
        check_batch_size(recipe.training, world)
        self.recipe, self.manifest, self.world = recipe, manifest, world
        self.counts: dict[str, int] = {}  # pairs used and skipped in each split, to be logged
        self.average = WeightAverage(recipe.training.ema)
        self.skipped: dict[str, str] = {}  # pair id and error message of unreadable training clips
        self.step = self._saved_step = 0  # training steps done; of the last checkpoint
        self._losses: dict[int, torch.Tensor] = {}  # by step, since the last `_check_finite`

    @abstractmethod
    def train_step(self, batch: Batch, epoch: float, loss_scale: float) -> dict[str, torch.Tensor]:
        """Train on one batch.

        Args:
            batch: the clips of this process, at least two.
            epoch: fractional number of epochs done.
            loss_scale: factor of the mean loss over these clips, such that the average over
                processes is the mean over the global batch.

        Returns:
            Scalars to log, still on the device.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Compute the validation metrics."""

    @abstractmethod
    def observe(self, scores: dict[str, float]) -> bool:
        """Record the result of `validate`; return whether these weights are the best so far."""

    @abstractmethod
    def advance(self, epochs_done: int) -> str:
        """Update stage or learning rate; return a description of the change, or ""."""

    @property
    def ended(self) -> bool:
        """Whether to stop at the end of this epoch, before the last one."""
        return False

    # --- the loop -------------------------------------------------------------------------------

    def train(self, folder: Path, *, resume: bool, profile: bool = False) -> bool:
        """Train in a run folder and write the model to it; return False if a signal stopped the training."""
        config, world = self.recipe.training, self.world
        run_folder = RunFolder(
            folder, self.recipe, self.manifest.hash,
            resume=resume, world=world, origin=self.origin, manifest_file=str(self.manifest.path.absolute()),
        )  # fmt: skip
        with run_folder as self.run_folder:
            if run_folder.last_step is not None:
                self.resume(run_folder.checkpoints, run_folder.last_step)
                self._check_finite()
            elif self.counts:
                run_folder.record("pairs", 0, {"epoch": 0, **self.counts})
            order = TrainingOrder(
                len(self.clips), config.batch_size, config.epochs, config.seed,
                rank=world.rank, world_size=world.size, start=self.step,
            )  # fmt: skip
            with explain_dead_workers(self.manifest.path, ", move the file away and continue with --resume"):
                batches = self.load_batches(order)
                if profile and world.is_main:
                    batches = profile_steps(batches, folder, world.device)
                finished = self._run(batches)
            if finished:
                if world.is_main and (config.export == "last" or not run_folder.model.exists()):
                    with self.average.applied(self.model):
                        self.export()
                world.barrier()
            return finished

    def load_batches(self, order: TrainingOrder) -> Iterable[Batch]:
        """Return an iterable over the batches of an order."""
        training = self.recipe.training
        return training_loader(
            self.clips, order, self.recipe.clip, seed=training.seed, workers=training.workers,
            views=self.views, views_per_step=self.views_per_step,
        )  # fmt: skip

    def export(self) -> None:
        """Write the model to the run folder."""
        self.model.save_pretrained(self.run_folder.model)

    def _run(self, batches: Iterable[Batch]) -> bool:
        """Train on ``batches``; return False if a signal stopped the training before its end."""
        config, first_step = self.recipe.training, self.step
        self._throughput = _Throughput()
        total = config.epochs * self.steps_per_epoch
        with (
            progress(self.name, total, "steps", shown=self.world.is_main) as bar,
            graceful_shutdown() as stop_requested,
        ):
            for batch in () if self.ended else batches:
                self._throughput.end_wait()
                stop = self._step(batch, stop_requested())
                epochs_done, step_in_epoch = divmod(self.step, self.steps_per_epoch)
                bar.advance(self.step, f"epoch {epochs_done}/{config.epochs}")
                due = config.checkpoint_steps and self.step % config.checkpoint_steps == 0
                end = step_in_epoch == 0 and (
                    self.step - self._saved_step >= self.min_checkpoint_steps or epochs_done == config.epochs
                )
                save = stop or due or end
                if save:
                    self._check_finite()
                if step_in_epoch == 0:
                    with record_section("validation"):
                        self._end_epoch(epochs_done)
                if save:
                    with record_section("checkpoint"):
                        self._save()
                if stop:
                    logger.warning("stopped at step %d; continue with --resume", self.step)
                    return False
                if self.ended:
                    break
                self._throughput.begin_wait()
        if self.step > first_step:
            self._sync_skipped()
            values = {"epoch": self.step / self.steps_per_epoch, "failed": len(self.skipped)}
            self.run_folder.record("pairs", self.step, values)
        if self.skipped:
            logger.warning("%d pairs were skipped: their videos are unreadable", len(self.skipped))
        return True

    def _step(self, batch: Batch, stop: bool) -> bool:
        """Train on a batch unless too few clips are readable; return whether any process was signalled to stop."""
        for row, message in batch.failures:
            pair_id = str(self.ids[row % len(self.ids)])
            if pair_id not in self.skipped:
                logger.warning("skipped %s: %s", pair_id, message)
                self._add_skipped(pair_id, message)
        config, clips = self.recipe.training, len(batch.rows)
        state = torch.tensor([clips, clips < 2, stop])  # on the CPU: does not wait for the GPU
        total, too_few, stops = self.world.sum(state).tolist()
        if total == 0:
            reason = batch.failures[0][1] if batch.failures else "see the other processes' messages"
            raise VideoError(f"no clip of a whole batch is readable: {reason}")
        epoch = self.step / self.steps_per_epoch
        self.step += 1
        if too_few:  # batch normalisation needs two clips on every process
            logger.warning("step %d is skipped: too few readable clips in its batch", self.step)
            return bool(stops)
        scalars = self.train_step(batch, epoch, clips * self.world.size / total)
        self._losses[self.step] = scalars["loss"]
        self._throughput.clips += total * self.views_per_step
        if self.step % config.log_every == 0:
            with record_section("logging"):
                self._check_finite()
                values = {name: round(float(value), 7) for name, value in scalars.items()}
                position = {"epoch": round(self.step / self.steps_per_epoch, 4), "pairs": self.step * config.batch_size}
                self.run_folder.record("train", self.step, {**position, **values, **self._throughput.read()})
        return bool(stops)

    def _end_epoch(self, epochs_done: int) -> None:
        """Validate if due, export the best weights, and change the stage or the learning rate."""
        config = self.recipe.training
        self._average_running_stats()
        due = epochs_done % config.validate_every == 0 or epochs_done == config.epochs
        if due and len(self.validation):
            with self.average.applied(self.model):
                scores = self.validate()
                self.run_folder.record("validation", self.step, {"epoch": epochs_done, **scores})
                if self.observe(scores) and config.export == "best" and self.world.is_main:
                    self.export()
        event = self.advance(epochs_done)
        if event:
            logger.info("epoch %d: %s", epochs_done, event)
            self.run_folder.record("event", self.step, {"epoch": epochs_done, "event": event})

    def _check_finite(self) -> None:
        """Raise RunError if a loss since the last call, or a weight, is not finite on any process."""
        bad = next((step for step, loss in self._losses.items() if not loss.isfinite()), 0)
        self._losses.clear()
        steps = [step for step in self.world.gather_counts(bad).tolist() if step]
        weights = (values for values in self.model.parameters() if values.requires_grad)
        finite = all(values.isfinite().all() for values in (*weights, *self.model.buffers()))
        if steps or self.world.gather_counts(int(not finite)).any():
            quantity = f"the loss of step {min(steps)} is" if steps else f"weights after step {self.step} are"
            last = f"step {self._saved_step}" if self._saved_step else "none"
            raise RunError(
                f"{self.run_folder.path}: {quantity} not finite, the training has diverged (last good checkpoint: "
                f"{last}); start a new run with other settings, for example a lower optimizer.lr"
            )

    def _sync_skipped(self) -> None:
        """Merge the skipped pairs of all processes: each may draw any pair in the next epoch."""
        for text in self.world.gather_texts(json.dumps(self.skipped)):
            for pair_id, message in json.loads(text).items():
                if pair_id not in self.skipped:
                    self._add_skipped(pair_id, message)

    def _add_skipped(self, pair_id: str, message: str) -> None:
        self.skipped[pair_id] = message
        epoch = self.step / self.steps_per_epoch
        values = {"epoch": epoch, "event": "left out", "pair_id": pair_id, "message": message}
        self.run_folder.record("event", self.step, values)

    # --- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is the same on all processes; called by each of them."""
        state = {name: getattr(self, name).state_dict() for name in self.saved}
        return {**state, "average": self.average.state_dict()}

    def rank_state_dict(self) -> dict[str, Any]:
        """Return the state that belongs to this process only."""
        return {}

    def load_state_dict(self, state: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> None:
        """Restore `state_dict`, and the `rank_state_dict` of each process that saved one."""
        del ranks
        for name in self.saved:
            getattr(self, name).load_state_dict(state[name])
        if self.average.decay:  # old checkpoints have none
            self.average.load_state_dict(state["average"], self.world.device)

    def _save(self) -> None:
        """Merge skipped pairs, average the running statistics and write a checkpoint of the current step."""
        self._sync_skipped()
        self._average_running_stats()
        rank_state = {"task": self.rank_state_dict(), **get_rng_state(self.world.device)}
        shared = {"task": self.state_dict(), "left_out": self.skipped}
        save_checkpoint(self.run_folder.checkpoints, self.step, shared, rank_state, self.world)
        self._saved_step = self.step

    def resume(self, checkpoints: Path, step: int) -> None:
        """Restore model, optimizer, bank, random generators and counters from a checkpoint.

        Raises:
            RunError: the checkpoint is damaged or does not match the model.
        """
        shared, ranks = load_checkpoint(checkpoints, step)
        try:
            self.load_state_dict(shared["task"], [each["task"] for each in ranks])
            if self.world.rank < len(ranks):  # an additional process keeps its freshly seeded generators
                set_rng_state(self.world.device, ranks[self.world.rank])
            self.step, self.skipped = shared["step"], shared["left_out"]
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{checkpoints}: the checkpoint of step {step} does not match this recipe's model, "
                f"or another version wrote it: {reason}"
            ) from error
        self._saved_step = self.step
        logger.info("resumed at step %d", self.step)

    # --- the gradient step ----------------------------------------------------------------------

    def accumulate_gradients(
        self, batch: Batch, compute_loss: Callable[[torch.Tensor, torch.Tensor], LossAndMetrics], loss_scale: float
    ) -> dict[str, torch.Tensor]:
        """Accumulate the gradients of a batch over at most ``training.accumulate`` microbatches.

        Args:
            batch: at least two clips.
            compute_loss: runs `network` on a microbatch: its rows (b,) on the CPU and its pixels
                (b·V, 3, T, H, W), or stored features (b·V, F), on the device, with the V views of a row one after the
                other; returns the mean loss and scalars to log.
            loss_scale: see `train_step`.

        Returns:
            Means over this process's clips of the loss and the scalars.
        """
        means: dict[str, torch.Tensor] = {}
        microbatches = self.split_batch(batch)
        for i, (rows, clips, colors) in enumerate(microbatches, start=1):
            pixels = self.preprocess(clips, colors)
            with maybe_no_sync(self.network, last=i == len(microbatches)):
                loss, scalars = compute_loss(rows, pixels)
                weight = len(rows) / len(batch.rows)
                with record_section("backward"):
                    torch.autograd.backward(loss * (weight * loss_scale))
            for name, value in {"loss": loss.detach(), **scalars}.items():
                means[name] = means.get(name, 0) + weight * value
        return means

    def split_batch(self, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return at most ``training.accumulate`` microbatches, see `microbatches_to_device`."""
        # The same number on every process, since each microbatch runs collectives.
        fewest = int(self.world.gather_counts(len(batch.rows)).min())
        count = min(self.recipe.training.accumulate, fewest // 2)
        with record_section("copy"):
            return microbatches_to_device(batch, count, self.world.device)

    def preprocess(self, clips: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        """Return the pixels of the V views of clips, see `preprocess_clips`, or stored features (b·V, F)."""
        with record_section("copy"):
            if clips.dim() == 2:  # stored features
                return separate_views(clips, self.views_per_step)
            return preprocess_clips(clips, colors, self.recipe.clip, self.views_per_step)

    def step_optimizer(self) -> dict[str, torch.Tensor]:
        """Clip the gradient norm, step the optimizer, zero the gradients and update the average of the weights.

        Returns:
            ``{"gradient_norm": …}``, the norm before clipping; empty without ``optimizer.clip_norm``.
        """
        metrics, clip_norm = {}, self.recipe.optimizer.clip_norm
        if clip_norm is not None:
            parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)
        return metrics

    def _average_running_stats(self) -> None:
        average_running_stats((*self.model.buffers(), *self.average.statistics), self.world)


class _Throughput:
    """Clips per second, and the fraction of time spent waiting for the loader, between logs."""

    def __init__(self) -> None:
        self._since = self._wait_begin = time.perf_counter()
        self._waited, self.clips = 0.0, 0

    def begin_wait(self) -> None:
        self._wait_begin = time.perf_counter()

    def end_wait(self) -> None:
        self._waited += time.perf_counter() - self._wait_begin

    def read(self) -> dict[str, float]:
        """Return clips/s and the waiting fraction since the last call, and restart."""
        now = time.perf_counter()
        elapsed = now - self._since
        rates = {"clips_per_second": round(self.clips / elapsed, 2), "data_wait": round(self._waited / elapsed, 4)}
        self._since, self._waited, self.clips = now, 0.0, 0
        return rates


# --- setup of the model -------------------------------------------------------------------------

Network = TypeVar("Network", bound=nn.Module)


def check_batch_size(training: TrainingConfig, world: World) -> None:
    """Raise RecipeError unless the batch divides into processes and microbatches of at least two clips."""
    size, microbatches = training.batch_size, training.accumulate
    if size % world.size:
        raise RecipeError(f"training.batch_size {size} is not divisible by the number of processes, {world.size}")
    if size // (world.size * microbatches) < 2:
        raise RecipeError(
            f"training.batch_size {size} on {world.size} processes with training.accumulate "
            f"{microbatches} gives microbatches of fewer than two clips, which batch normalisation "
            "needs; raise training.batch_size, lower training.accumulate or use fewer processes"
        )


def prepare_model(model: Network, world: World) -> Network:
    """Move a model to the device in the memory layout that its convolutions are fastest in.

    On several GPUs batch normalisation computes its statistics over all processes. On CPUs, where
    SyncBatchNorm does not support DDP, each process has its own, see `average_running_stats`.
    """
    if world.size > 1 and world.device.type == "cuda":
        convert: Callable[[Network], Network] = nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(model)
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=torch.channels_last_3d)
    if world.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all clips have the same size
    return model.to(world.device)


def compile_model(network: nn.Module, device: torch.device) -> None:
    """Compile a network in place with torch.compile; parameter names do not change.

    Raises:
        RecipeError: torch.compile fails on this machine.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # exceptions of torch, of the C++ compiler or of Triton
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"training.compile is true, but torch.compile fails on this machine ({reason}); set training.compile=false"
        ) from error
    network.compile()


def force_eager(config: TrainingConfig) -> AbstractContextManager[Any]:
    """Return a context without compilation, for validation with its varying batch sizes."""
    # Only if needed: importing the compiler takes seconds.
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def wrap_ddp(model: nn.Module, world: World) -> nn.Module:
    """Wrap a complete model in DDP, unless there is one process only."""
    if world.size == 1:
        return model
    # Training does not read the running statistics; `average_running_stats` synchronises them.
    with warnings.catch_warnings():  # the replacement in PyTorch 2.13 would broadcast them here
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


# --- microbatches -------------------------------------------------------------------------------


def microbatches_to_device(
    batch: Batch, count: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Copy a batch to the device and split it into microbatches of nearly equal size.

    Returns:
        Rows (b,) on the CPU, and the columns ``clips`` and ``colors`` of `Batch` on the device.
    """
    tensors = [batch.clips, batch.colors]
    if device.type == "cuda":  # in a stream of its own, the copy overlaps with the previous step
        compute_stream, copy_stream = torch.cuda.current_stream(device), _copy_stream(device)
        with torch.cuda.stream(copy_stream):
            tensors = [to_device(tensor, device) for tensor in tensors]
        compute_stream.wait_stream(copy_stream)
        for tensor in tensors:
            tensor.record_stream(compute_stream)  # or the next copy may reuse its memory too early
    columns = (column.tensor_split(count) for column in (batch.rows, *tensors))
    return list(zip(*columns, strict=True))


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def maybe_no_sync(network: nn.Module, last: bool) -> Any:
    """Return a context in which DDP averages gradients for the last microbatch only."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()
