"""The loop that every training shares: steps, log, validation, checkpoints, a clean stop."""

from __future__ import annotations

import functools
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crosspair.config import Clip, ClipConfig, FinetuneRecipe, Recipe, TrainingConfig
from crosspair.corpora.manifest import Manifest
from crosspair.device import to_device
from crosspair.distributed import World
from crosspair.errors import RecipeError, RunError, VideoError
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.progress import Progress, graceful_shutdown, progress
from crosspair.training.profile import profile_steps, record_section
from crosspair.training.run import RunFolder, load_checkpoint, save_checkpoint
from crosspair.video.loader import Batch, TrainingOrder, explain_dead_workers, training_loader
from crosspair.video.pixels import jitter_colors, normalize

logger = logging.getLogger(__name__)


def train(task: Task, manifest: Manifest, folder: Path, *, resume: bool, profile: bool) -> bool:
    """Train, and write the model to ``folder/model``; see `crosspair.training.pretrain`.

    Returns:
        Whether it came to its end; not where it was asked to stop.
    """
    recipe, world, config = task.recipe, task.world, task.recipe.training
    with RunFolder(
        folder, recipe, manifest.hash, resume=resume, world=world, also=task.origin
    ) as run:
        loop = Loop(task, run)
        if run.last_step is None and task.counts:
            run.record("pairs", 0, {"epoch": 0, **task.counts})
        order = TrainingOrder(
            len(task.clips), config.batch_size, config.epochs, config.seed,
            rank=world.rank, world_size=world.size, start=loop.step,
        )  # fmt: skip
        batches: Iterable[Batch] = training_loader(
            task.clips, order, recipe.clip, seed=config.seed, workers=config.workers
        )
        if profile:
            batches = profile_steps(batches, run, world)
        total = config.epochs * task.steps_per_epoch
        with (
            progress(task.name, total, "steps", shown=world.is_main) as bar,
            explain_dead_workers(manifest.path, ", move its file away, and go on by --resume"),
        ):
            finished = loop.go(batches, bar)
        if finished:
            if world.is_main and (config.export == "last" or not run.model.exists()):
                task.model.save_pretrained(run.model)
            world.barrier()
        return finished


class Task(Protocol):
    """What a training does, apart from going round."""

    name: str
    """For people."""
    origin: dict[str, str]
    """What a run depends on besides recipe and manifest, by name."""
    clips: list[Clip]
    """Those of an epoch."""
    steps_per_epoch: int
    validation: Manifest
    """May be empty."""
    counts: dict[str, int]
    """How many pairs of each split are used and left out, for the log; may be empty."""
    world: World
    """The processes."""

    @property
    def recipe(self) -> Recipe | FinetuneRecipe:
        """Everything that decides the training."""

    @property
    def model(self) -> CPD | Classifier:
        """What is to be written in the end."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be gained, so that the training ends with this epoch."""

    def train_step(self, batch: Batch, epoch: float, share: float) -> dict[str, torch.Tensor]:
        """Learn from a batch of at least two clips.

        Args:
            batch: this process's clips.
            epoch: where the training is, fractional.
            share: what to multiply a mean over these clips by, so that the average over processes
                is the mean over the whole batch.

        Returns:
            Scalars to log, still on the device.
        """

    def validate(self) -> dict[str, float]:
        """Test on the videos of validation."""

    def observe(self, scores: dict[str, float]) -> bool:
        """Take in what `validate` gave; tell whether the weights are the best so far."""

    def advance(self, epochs_done: int) -> str:
        """Change stage or rate if it is time; tell what happened, if anything."""

    def state_dict(self) -> dict[str, Any]:
        """What is the same on every process, or is made so: all of them call this."""

    def own_state_dict(self) -> dict[str, Any]:
        """What only this process has."""

    def load_state_dict(self, shared: dict[str, Any], owns: Sequence[dict[str, Any]]) -> None:
        """Put back what the other two gave, the second on each process that there was then."""

    def pair_id(self, row: int) -> str:
        """The name of a pair, for messages."""


class Loop:
    """Goes round until the last epoch, or until it is asked to stop.

    Args:
        task: what to do with a batch.
        run: where lines, checkpoints and the model go.
    """

    def __init__(self, task: Task, run: RunFolder) -> None:
        self.task, self.run, self.world = task, run, task.world
        self.config, world = task.recipe.training, task.world
        self.steps_per_epoch = task.steps_per_epoch
        self.step, self.best_step = 0, 0
        self.left_out: dict[str, str] = {}  # pair to reason
        if run.last_step is not None:
            shared, owns = load_checkpoint(run.checkpoints, run.last_step)
            try:
                task.load_state_dict(shared["task"], [own["task"] for own in owns])
                if world.rank < len(owns):  # one that is new keeps the generators it began with
                    torch.set_rng_state(owns[world.rank]["rng"])
                    if world.device.type == "cuda" and "cuda_rng" in owns[world.rank]:
                        torch.cuda.set_rng_state(owns[world.rank]["cuda_rng"])
                self.step, self.best_step = shared["step"], shared["best_step"]
                self.left_out = shared["left_out"]
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:200]
                raise RunError(
                    f"the checkpoint of step {run.last_step} in {run.checkpoints} does not fit "
                    f"this recipe's network, or is another version's: {reason}"
                ) from error
            logger.info("resumed at step %d", self.step)

    def go(self, batches: Iterable[Batch], progress: Progress) -> bool:
        """Train on what ``batches`` yields; tell whether the training came to its end."""
        begun = self.step
        with graceful_shutdown() as stop_requested:
            meter = _Meter()
            for batch in () if self.task.ended else batches:
                meter.received()
                stop = self._do(batch, meter, stop_requested())
                epochs_done, within = divmod(self.step, self.steps_per_epoch)
                progress.advance(self.step, f"epoch {epochs_done}/{self.config.epochs}")
                if within == 0:
                    with record_section("validation"):
                        self._end_epoch(epochs_done)
                due = self.config.checkpoint_steps and not self.step % self.config.checkpoint_steps
                if stop or due or within == 0:
                    with record_section("checkpoint"):
                        self.save()
                if stop:
                    logger.warning("asked to stop: saved at step %d, --resume goes on", self.step)
                    return False
                if self.task.ended:
                    break
                meter.waiting()
        if self.step > begun:
            self._share_failures()
            values = {"epoch": self.step / self.steps_per_epoch, "failed": len(self.left_out)}
            self.run.record("pairs", self.step, values)
        if self.left_out:
            logger.warning("%d pairs were left out, as their videos fail", len(self.left_out))
        return True

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self._share_failures()
        average_running_stats(self.task.model, self.world)
        own = {"task": self.task.own_state_dict(), "rng": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state()
        shared = {
            "task": self.task.state_dict(), "best_step": self.best_step, "left_out": self.left_out,
        }  # fmt: skip
        save_checkpoint(
            self.run.checkpoints, self.step, shared, own, self.world, keep=[self.best_step]
        )

    def _do(self, batch: Batch, meter: _Meter, stop: bool) -> bool:
        """One step; tell whether any process was asked to stop."""
        self._note_failures(batch)
        clips = len(batch.rows)
        state = torch.tensor([clips, clips < 2, stop])  # on the host: no step waits for the last
        everywhere, too_few, stops = self.world.sum(state).tolist()
        if everywhere == 0:
            reason = batch.failures[0][1] if batch.failures else "see the other processes' messages"
            raise VideoError(f"no clip of a whole batch can be read; the first: {reason}")
        epoch = self.step / self.steps_per_epoch
        self.step += 1
        if too_few:  # batch normalisation needs two clips on every process
            logger.warning("step %d is skipped: too few clips of its batch can be read", self.step)
            return bool(stops)
        scalars = self.task.train_step(batch, epoch, clips * self.world.size / everywhere)
        meter.stepped(everywhere)
        if self.step % self.config.log_every == 0:
            with record_section("logging"):
                values = {name: round(float(value), 7) for name, value in scalars.items()}
                pairs = self.step * self.config.batch_size
                position = {"epoch": round(self.step / self.steps_per_epoch, 4), "pairs": pairs}
                self.run.record("train", self.step, {**position, **values, **meter.read()})
        return bool(stops)

    def _end_epoch(self, epochs_done: int) -> None:
        task, config = self.task, self.config
        average_running_stats(task.model, self.world)
        due = epochs_done % config.validate_every == 0 or epochs_done == config.epochs
        if due and len(task.validation):
            scores = task.validate()
            self.run.record("validation", self.step, {"epoch": epochs_done, **scores})
            if task.observe(scores):
                self.best_step = self.step
                if config.export == "best" and self.world.is_main:
                    task.model.save_pretrained(self.run.model)
        event = task.advance(epochs_done)
        if event:
            logger.info("epoch %d: %s", epochs_done, event)
            self.run.record("event", self.step, {"epoch": epochs_done, "event": event})

    def _note_failures(self, batch: Batch) -> None:
        for row, message in batch.failures:
            pair_id = self.task.pair_id(row)
            if pair_id not in self.left_out:
                logger.warning("left out %s: %s", pair_id, message)
                self._leave_out(pair_id, message)

    def _share_failures(self) -> None:
        """Make what any process has left out known to all: another may draw that pair next."""
        for text in self.world.gather_texts(json.dumps(self.left_out)):
            for pair_id, message in json.loads(text).items():
                if pair_id not in self.left_out:
                    self._leave_out(pair_id, message)

    def _leave_out(self, pair_id: str, message: str) -> None:
        self.left_out[pair_id] = message
        epoch = self.step / self.steps_per_epoch
        values = {"epoch": epoch, "event": "left out", "pair_id": pair_id, "message": message}
        self.run.record("event", self.step, values)


class _Meter:
    """Clips a second, and the share of time spent waiting for the loader."""

    def __init__(self) -> None:
        self._since = self._mark = time.perf_counter()
        self._wait, self._clips = 0.0, 0

    def waiting(self) -> None:
        self._mark = time.perf_counter()

    def received(self) -> None:
        self._wait += time.perf_counter() - self._mark

    def stepped(self, clips: int) -> None:
        self._clips += clips

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = now - self._since
        rates = {
            "clips_per_second": round(self._clips / elapsed, 2),
            "data_wait": round(self._wait / elapsed, 4),
        }
        self._since, self._wait, self._clips = now, 0.0, 0
        return rates


LossAndMetrics = tuple[torch.Tensor, dict[str, torch.Tensor]]  # a loss, and scalars to log


def accumulate_gradients(
    batch: Batch,
    network: nn.Module,
    loss_of: Callable[[torch.Tensor, torch.Tensor], LossAndMetrics],
    recipe: Recipe | FinetuneRecipe,
    world: World,
    share: float,
) -> dict[str, torch.Tensor]:
    """Add up the gradients of a batch, ``training.accumulate`` parts of it one after another.

    Args:
        batch: at least two clips.
        network: of `crosspair.training.loop.wrap_ddp`.
        loss_of: told a part's rows (b,) on the host and its pixels, runs the network; returns the
            mean loss and scalars to log.
        recipe: of the clips, and of the parts.
        world: the processes, each of which has as many parts.
        share: see `crosspair.training.loop.Task.train_step`.

    Returns:
        The loss and the scalars, means over the batch.
    """
    # As many on every process, whatever could be read: each part has its collectives.
    parts = min(recipe.training.accumulate, int(world.counts(len(batch.rows)).min()) // 2)
    logged: dict[str, torch.Tensor] = {}
    with record_section("copy"):
        on_device = microbatches_to_device(batch, parts, world.device)
    for i, (rows, clips, colors) in enumerate(on_device):
        with record_section("copy"):
            pixels = preprocess_clips(clips, colors, recipe.clip)
        with maybe_no_sync(network, last=i == parts - 1):
            loss, scalars = loss_of(rows, pixels)
            weight = len(rows) / len(batch.rows)
            with record_section("backward"):
                torch.autograd.backward(loss * (weight * share))
        for name, value in {"loss": loss.detach(), **scalars}.items():
            logged[name] = logged.get(name, 0) + weight * value
    return logged


def optimizer_step(
    optimizer: torch.optim.Optimizer, clip_norm: float | None
) -> dict[str, torch.Tensor]:
    """Move the weights by their gradients, which are gone then; a norm that is clipped is told."""
    told = {}
    if clip_norm is not None:
        moving = [each for group in optimizer.param_groups for each in group["params"]]
        told["gradient_norm"] = nn.utils.clip_grad_norm_(moving, clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return told


Network = TypeVar("Network", bound=nn.Module)


def check_batch_size(training: TrainingConfig, world: World) -> None:
    """See that each process has its share of a batch, and two clips at a time of it.

    Raises:
        RecipeError: it has not.
    """
    size, parts = training.batch_size, training.accumulate
    if size % world.size:
        raise RecipeError(
            f"training.batch_size {size} cannot be shared evenly by {world.size} processes"
        )
    if size // (world.size * parts) < 2:
        raise RecipeError(
            f"training.batch_size {size}, shared by {world.size} processes, each taking its share "
            f"in {parts} parts, is fewer than two clips at a time, which batch normalisation "
            "needs; raise it, lower training.accumulate, or take fewer processes"
        )


def prepare_model(model: Network, world: World) -> Network:
    """The model on this process's device, in the layout that convolutions are fast in.

    On several GPUs batch normalisation takes its statistics over all processes. (On a CPU, where
    that does not work under DDP, each process has its own, see `average_statistics`.)
    """
    if world.size > 1 and world.device.type == "cuda":
        convert: Callable[[Network], Network] = nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(model)
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=torch.channels_last_3d)
    if world.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # clips are of one size: it pays to search once
    return model.to(world.device)


def wrap_ddp(model: nn.Module, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes; all its layers must be there by now."""
    if world.size == 1:
        return model
    # Running statistics play no part in training; they are averaged before they are used or kept.
    with warnings.catch_warnings():  # what PyTorch 2.13 wants instead would copy them here
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def compile_model(network: nn.Module, device: torch.device) -> None:
    """Let torch.compile make a network's passes from now on; its weights keep their names.

    Raises:
        RecipeError: there is nothing here that it can compile with.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # kinds of its own, of the compiler's, of Triton's
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"training.compile is true, and torch.compile does not work here ({reason}); "
            "give training.compile=false"
        ) from error
    network.compile()


def force_eager(config: TrainingConfig) -> AbstractContextManager[Any]:
    """A context for validation, whose batches are of sizes not worth compiling for."""
    # Not where nothing is compiled: the compiler takes seconds to import.
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def maybe_no_sync(network: nn.Module, last: bool) -> Any:
    """A context for one part of a batch: gradients are averaged once, with the last part's."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


@torch.no_grad()
def average_running_stats(model: nn.Module, world: World) -> None:
    """Give every process the mean of all processes' running statistics."""
    if world.size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(world.sum(buffer) / world.size)


def microbatches_to_device(
    batch: Batch, parts: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A batch in parts of nearly the same size.

    On a GPU copies have a stream of their own, which waits for nothing that the GPU still has to
    do: a batch travels while the step before is computed.

    Returns:
        Rows (B,) on the host, clips (B, 3, T, H, W) uint8 and colours (B, 3) on ``device``.
    """
    columns = (batch.rows, *_copy_async([batch.clips, batch.colors], device))
    return list(zip(*(column.tensor_split(parts) for column in columns), strict=True))


def preprocess_clips(clips: torch.Tensor, colors: torch.Tensor, clip: ClipConfig) -> torch.Tensor:
    """(B, 3, T, H, W) float: clips of `uploaded`, normalised and jittered."""
    pixels = normalize(clips)
    return jitter_colors(pixels, colors) if clip.color_jitter else pixels


def _copy_async(tensors: Sequence[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    if device.type != "cuda":
        return tensors
    computes, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        found = [to_device(each, device) for each in tensors]
    computes.wait_stream(copies)
    for each in found:
        each.record_stream(computes)  # or its memory would be taken for the next copy too early
    return found


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
