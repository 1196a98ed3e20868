"""Steps of objectives and whole training steps for `benchmarks.cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.cuda_device import Scale, Values, allocated_memory, peak_memory, synchronize, time_step, to_rates
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
from crosspair.objectives import MemoryBank
from crosspair.objectives import nce as gathered
from crosspair.training.average import WeightAverage
from crosspair.training.loop import prepare_model
from crosspair.training.pretrain import Pretraining
from crosspair.training.schedule import Curriculum, build_optimizer
from crosspair.video.loader import Batch

DIMENSIONS, NOISE, PAIRS = 256, 4096, 256  # D, m, B of the paper


def objective_step(settings: Values, pairs: int, kernel: bool, device: torch.device, scale: Scale) -> Values:
    """Time the loss, backward pass and bank update in ms, and measure memory excluding the bank."""
    config = ObjectiveConfig(noise_samples=NOISE // scale.shrink, **settings)
    world, batch = World(device=device), PAIRS // scale.shrink
    objective = objectives.build_objective(config, pairs, DIMENSIONS, 0, world)
    bank = _bank(pairs, world, config)
    video, text = F.normalize(torch.randn(2, batch, DIMENSIONS, device=device), dim=2)
    rows = torch.randperm(min(pairs, 10**6))[:batch]
    index = rows.to(device)

    def step() -> None:
        leaves = [each.detach().requires_grad_() for each in (video, text)]
        loss, _ = objective(*leaves, index, bank)
        loss.backward()
        bank.update(rows, video, text)

    with _select_kernel(kernel):
        step()
        before = allocated_memory(device, reset=True)
        seconds = time_step(step, device, scale)
    extra = peak_memory(device) - before
    return {"ms": [1e3 * each for each in seconds], "gib_excluding_bank": extra / 2**30}


def compare_kernel(dtype: str, device: torch.device) -> Values:
    """Return the largest differences between the Triton kernel and the PyTorch reference."""
    kernel = gathered._triton_kernel()
    if device.type != "cuda" or kernel is None:
        return {"skipped": "the kernel needs a GPU and Triton"}
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    table = F.normalize(torch.randn(10**6, DIMENSIONS, device=device), dim=1).to(kind)
    query = F.normalize(torch.randn(64, DIMENSIONS, device=device), dim=1)
    rows = torch.randint(len(table), (64, NOISE), device=device)
    results = []
    for dots in (kernel, gathered.gather_dot_reference):
        leaf = query.clone().requires_grad_()
        values = dots(leaf, [table], rows)
        values.square().sum().backward()
        assert leaf.grad is not None
        results.append((values.detach(), leaf.grad))
    (values, gradient), (reference, reference_gradient) = results
    return {
        "difference": float((values - reference).abs().max()),
        "largest": float(reference.abs().max()),
        "gradients_difference": float((gradient - reference_gradient).abs().max()),
        "gradients_largest": float(reference_gradient.abs().max()),
    }  # fmt: skip


def check_synchronisation(settings: Values, device: torch.device, scale: Scale) -> Values:
    """Check that a training step never makes the host wait for the device."""
    task, batch = _pretraining(ObjectiveConfig(**settings), 18, device, scale)
    for stage in (1, 2):
        task.curriculum.stage = stage
        task.enter_stage()
        for _ in range(2):
            task.train_step(batch, 0.0, 1.0)
        synchronize(device)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            task.train_step(batch, 0.0, 1.0)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0} if device.type == "cuda" else {"skipped": "no GPU"}


def training_step_rate(depth: Depth, copies: str, device: torch.device, scale: Scale) -> Values:
    """Measure clips/s of a training step with pinned, pageable or device batches."""
    task, batch = _pretraining(ObjectiveConfig(), depth, device, scale)
    if copies == "not pinned":
        batch = replace(batch, clips=batch.clips.clone())
    elif copies == "on the device":
        batch = replace(batch, clips=batch.clips.to(device))
    allocated_memory(device, reset=True)
    seconds = time_step(lambda: task.train_step(batch, 0.0, 1.0), device, scale, together=4)
    return {**to_rates(len(batch.rows), seconds, "clips_per_second"), "peak_gib": peak_memory(device) / 2**30}


def _pretraining(
    objective: ObjectiveConfig, depth: Depth, device: torch.device, scale: Scale
) -> tuple[Pretraining, Batch]:
    """Build the package's training task without a manifest or recipe file."""
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
    task.model = prepare_model(CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head), world)
    pairs = 10_000
    task.towers, task.average = None, WeightAverage(0.0)
    task.captions = [[f"{words[i % 1000]} {words[i % 777]}"] for i in range(pairs)]
    task.objective = objectives.build_objective(recipe.objective, pairs, DIMENSIONS, 1, world)
    task.bank = MemoryBank(pairs, DIMENSIONS, recipe.objective.bank_momentum, 0, world)
    task.optimizer = build_optimizer(task.model, task.objective, recipe.optimizer)
    task.curriculum = Curriculum(recipe.curriculum)
    task.enter_stage()
    clips = torch.randint(0, 256, (batch, 8, size, size, 3), dtype=torch.uint8)
    host_batch = Batch(0, torch.randperm(pairs)[:batch], clips.permute(0, 4, 1, 2, 3), torch.ones(batch, 4), [])
    return task, host_batch.pin_memory() if device.type == "cuda" else host_batch


def _bank(pairs: int, world: World, config: ObjectiveConfig) -> MemoryBank:
    """Build a bank with random rows drawn on the device; 10⁷ rows take minutes on the host."""
    bank = MemoryBank(1, DIMENSIONS, config.bank_momentum, 0, world)
    bank.pairs = pairs
    dtype = torch.bfloat16 if config.bank_precision == "bf16" else torch.float32
    shape = (pairs, DIMENSIONS)
    bank.video, bank.text = (
        torch.randn(shape, dtype=dtype, device=world.device).mul_(DIMENSIONS**-0.5) for _ in range(2)
    )
    bank.unvisited = torch.zeros(pairs, dtype=torch.bool, device=world.device)
    return bank


@contextmanager
def _select_kernel(kernel: bool) -> Iterator[None]:
    original = gathered._triton_kernel
    if not kernel:
        gathered._triton_kernel = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        gathered._triton_kernel = original
