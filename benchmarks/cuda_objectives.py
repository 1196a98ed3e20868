"""What `benchmarks.cuda` measures of objectives and of whole training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.cuda_device import Scale, Values, finish, memory, peak, rates, timed
from benchmarks.cuda_networks import sizes
from crosspair import objectives
from crosspair.config import (
    ClipConfig,
    CurriculumConfig,
    Depth,
    HeadConfig,
    ObjectiveConfig,
    Recipe,
    TextConfig,
    TowersOptimizerConfig,
    TrainingConfig,
    VideoConfig,
)
from crosspair.distributed import World
from crosspair.models import CPD, WordAverage
from crosspair.objectives import MemoryBank, gathered
from crosspair.training.curriculum import Curriculum
from crosspair.training.optimizer import build_optimizer
from crosspair.training.parallel import placed
from crosspair.training.pretrain import Pretraining
from crosspair.video import Batch

DIMENSIONS, NOISE, PAIRS = 256, 4096, 256  # D, m, B of the paper


def objective_step(
    settings: Values, pairs: int, kernel: bool, device: torch.device, scale: Scale
) -> Values:
    """Milliseconds of loss, backward pass and the bank's update; memory beside the bank."""
    config = ObjectiveConfig(noise_samples=NOISE // scale.shrink, **settings)
    world, batch = World(device=device), PAIRS // scale.shrink
    objective = objectives.build(config, pairs, DIMENSIONS, 0, world)
    bank = _bank(pairs, world, config)
    video, text = F.normalize(torch.randn(2, batch, DIMENSIONS, device=device), dim=2)
    rows = torch.randperm(min(pairs, 10**6))[:batch]
    index = rows.to(device)

    def step() -> None:
        own = [each.detach().requires_grad_() for each in (video, text)]
        loss, _ = objective(*own, index, bank)
        loss.backward()
        bank.update(rows, video, text)

    with _noise_by(kernel):
        step()
        before = memory(device, reset=True)
        seconds = timed(step, device, scale)
    beside = peak(device) - before
    return {"ms": [1e3 * each for each in seconds], "gib_beside_the_bank": beside / 2**30}


def kernel_equality(dtype: str, device: torch.device) -> Values:
    """Largest differences of the Triton kernel and its twin, beside the largest values."""
    kernel = gathered._kernel()
    if device.type != "cuda" or kernel is None:
        return {"left out": "the kernel needs a GPU and Triton"}
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    table = F.normalize(torch.randn(10**6, DIMENSIONS, device=device), dim=1).to(kind)
    query = F.normalize(torch.randn(64, DIMENSIONS, device=device), dim=1)
    rows = torch.randint(len(table), (64, NOISE), device=device)
    found = []
    for dots in (kernel, gathered.plain_dots):
        own = query.clone().requires_grad_()
        values = dots(own, [table], rows)
        values.square().sum().backward()
        assert own.grad is not None
        found.append((values.detach(), own.grad))
    (values, gradient), (twin, of_twin) = found
    return {
        "difference": float((values - twin).abs().max()), "largest": float(twin.abs().max()),
        "gradients_difference": float((gradient - of_twin).abs().max()),
        "gradients_largest": float(of_twin.abs().max()),
    }  # fmt: skip


def waits_of_a_step(settings: Values, device: torch.device, scale: Scale) -> Values:
    """Whether the whole training step makes the host wait for the device anywhere."""
    task, batch = _pretraining(ObjectiveConfig(**settings), 18, device, scale)
    for stage in (1, 2):
        task.curriculum.stage = stage
        task.enter_stage()
        for _ in range(2):
            task.train_step(batch, 0.0, 1.0)
        finish(device)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            task.train_step(batch, 0.0, 1.0)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0} if device.type == "cuda" else {"left out": "no GPU to wait for"}


def whole_step(depth: Depth, copies: str, device: torch.device, scale: Scale) -> Values:
    """Clips/s of the product's whole step, its batches pinned, not pinned, or on the device."""
    task, batch = _pretraining(ObjectiveConfig(), depth, device, scale)
    if copies == "not pinned":
        batch = replace(batch, clips=batch.clips.clone())
    elif copies == "on the device":
        batch = replace(batch, clips=batch.clips.to(device))
    memory(device, reset=True)
    seconds = timed(lambda: task.train_step(batch, 0.0, 1.0), device, scale, together=4)
    return {
        **rates(len(batch.rows), seconds, "clips_per_second"),
        "peak_gib": peak(device) / 2**30,
    }


def _pretraining(
    objective: ObjectiveConfig, depth: Depth, device: torch.device, scale: Scale
) -> tuple[Pretraining, Batch]:
    """The product's own training step, around what a manifest and a recipe file would give."""
    size, batch = sizes(depth, scale)
    recipe = Recipe(
        clip=ClipConfig(size=size, color_jitter=0.2),
        video=VideoConfig(depth, scale.width),
        text=TextConfig(dimensions=300),
        head=HeadConfig(DIMENSIONS),
        objective=replace(objective, noise_samples=NOISE // scale.shrink),
        optimizer=TowersOptimizerConfig(lr=1e-3, clip_norm=1.0),
        curriculum=CurriculumConfig(),
        training=TrainingConfig(batch_size=batch),
    )
    world, words = World(device=device), [f"word{i}" for i in range(1000)]
    task = Pretraining.__new__(Pretraining)
    task.recipe, task.world = recipe, world
    encoder = WordAverage(words, torch.randn(len(words), recipe.text.dimensions))
    task.model = placed(CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head), world)
    pairs = 10_000
    task.titles = [f"{words[i % 1000]} {words[i % 777]}" for i in range(pairs)]
    task.objective = objectives.build(recipe.objective, pairs, DIMENSIONS, 1, world)
    task.bank = MemoryBank(pairs, DIMENSIONS, recipe.objective.bank_momentum, 0, world)
    task.optimizer = build_optimizer(task.model, task.objective, recipe.optimizer)
    task.curriculum = Curriculum(recipe.curriculum)
    task.enter_stage()
    clips = torch.randint(0, 256, (batch, 8, size, size, 3), dtype=torch.uint8)
    made = Batch(
        0, torch.randperm(pairs)[:batch], clips.permute(0, 4, 1, 2, 3), torch.ones(batch, 3), []
    )
    return task, made.pin_memory() if device.type == "cuda" else made


def _bank(pairs: int, world: World, config: ObjectiveConfig) -> MemoryBank:
    """Drawn on the device: 10⁷ rows of a seed's own would take the host minutes."""
    bank = MemoryBank(1, DIMENSIONS, config.bank_momentum, 0, world)
    bank.pairs = pairs
    dtype = torch.bfloat16 if config.bank_precision == "bf16" else torch.float32
    shape = (pairs, DIMENSIONS)
    bank.video, bank.text = (
        torch.randn(shape, dtype=dtype, device=world.device).mul_(DIMENSIONS**-0.5)
        for _ in range(2)
    )
    return bank


@contextmanager
def _noise_by(kernel: bool) -> Iterator[None]:
    usual = gathered._kernel
    if not kernel:
        gathered._kernel = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        gathered._kernel = usual
