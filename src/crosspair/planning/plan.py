"""What a whole training takes, told from a part of a minute of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import RecipeError
from crosspair.evaluation.origin import Machine, provenance
from crosspair.models import read_start
from crosspair.planning.advice import advice
from crosspair.planning.measuring import Measured, measure
from crosspair.planning.projection import Projection, Whole, project
from crosspair.training.finetune import Finetuning
from crosspair.training.parallel import check_batch
from crosspair.training.pretrain import Pretraining
from crosspair.video import decoding

DATA_BOUND = 0.1  # share of the time that the network waits for clips
LOGGED = 12  # numbers in a line of metrics.jsonl
NUMBER = 30 + 64  # bytes of one there, and in TensorBoard's file


@dataclass(frozen=True)
class Plan:
    """What a training will take.

    Attributes:
        recipe, manifest: what is to be trained on what.
        machine: that was measured.
        pairs: to learn from.
        clips: that the training sees.
        part: clips that go through the network at a time, by the recipe.
        measured: see there.
        data_bound: whether the network waits for clips more than a tenth of the time.
        projections: the first is this machine as it was measured.
        checkpoints, model, logs: bytes on the disk; of all checkpoints that there are at a time.
        advice: what to change, a sentence each.
    """

    recipe: str
    manifest: str
    machine: Machine
    pairs: int
    clips: int
    part: int
    measured: Measured
    data_bound: bool
    projections: list[Projection]
    checkpoints: int
    model: int
    logs: int
    advice: list[str]


def plan(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    *,
    name: str = "recipe",
    init: str = "random",
    processes: Sequence[int] = (),
    seconds: float = 30,
    world: World | None = None,
) -> Plan:
    """Measure a training for some time, and tell what all of it takes. Nothing is written.

    Args:
        recipe: of a pre-training or a fine-tuning.
        manifest: pairs, or videos with labels.
        name: the recipe's, for people.
        init: weights to begin with, as of the training itself.
        processes: numbers of GPUs (of machines, where there is no GPU) to compute besides one.
        seconds: to measure for, about.
        world: where to compute: one process.

    Raises:
        CrosspairError: whatever would stop the training at its start; or the batch cannot be
            shared evenly by one of ``processes``.
    """
    world = world or World()
    training = recipe.training
    if world.size > 1:
        raise RecipeError("one process makes a plan for any number of them; leave out torchrun")
    for number in processes:
        check_batch(training, World(size=number))
    # A part of the batch is measured as a batch of its own.
    one_part = dataclasses.replace(training, accumulate=1)
    task = _task(dataclasses.replace(recipe, training=one_part), manifest, init, world)
    part = training.batch_size // training.accumulate
    with decoding(manifest.path):
        measured = measure(task, part, seconds)
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    whole = Whole(
        clips=training.epochs * task.steps_per_epoch * training.batch_size,
        validated=-(-training.epochs // training.validate_every) * len(task.validation),
        batch=training.batch_size,
        parts=training.accumulate,
        bank=_size(task.own_state_dict()),
        gradients=_size([each for each in task.model.parameters() if each.requires_grad]),
        cores=0 if world.device.type == "cpu" else machine.cores,
    )
    state = task.state_dict()
    data_bound = measured.data_wait > DATA_BOUND
    return Plan(
        recipe=name,
        manifest=str(manifest.path),
        machine=machine,
        pairs=len(task.clips),
        clips=whole.clips,
        part=part,
        measured=measured,
        data_bound=data_bound,
        projections=[project(whole, measured, each) for each in sorted({1, *processes})],
        # The newest, the best on validation, and the one that is being written.
        checkpoints=(_size(state) + whole.bank) * (3 if len(task.validation) else 2),
        model=_size(state["model"]),
        logs=whole.clips // training.batch_size // training.log_every * LOGGED * NUMBER,
        advice=advice(
            recipe, manifest, measured, machine.cores, data_bound=data_bound, device=world.device
        ),
    )


def _task(
    recipe: Recipe | FinetuneRecipe, manifest: Manifest, init: str, world: World
) -> Pretraining | Finetuning:
    """The training, in its dearest stage."""
    if isinstance(recipe, FinetuneRecipe):
        return Finetuning(recipe, manifest, read_start(init), world)
    task = Pretraining(recipe, manifest, world, init)
    if recipe.curriculum.strategy == "curriculum":
        task.curriculum.stage = 2
        task.enter_stage()
    return task


def _size(state: Any) -> int:
    """Bytes of all tensors in a nest of dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0
