"""Microbatches on the device, torch.compile, learned class weights, and validation."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crosspair.config import ClipConfig, Recipe, TrainingConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RecipeError, RunError, VideoError
from crosspair.models import CPD
from crosspair.models.hub import weights_hash
from crosspair.objectives import Ranking
from crosspair.recipes import load_recipe
from crosspair.training import pretrain
from crosspair.training.captions import draw_captions
from crosspair.training.finetune import Finetuning
from crosspair.training.loop import check_batch_size, compile_model, microbatches_to_device
from crosspair.training.pretrain import Pretraining
from crosspair.training.run import find_checkpoint, load_checkpoint, save_checkpoint
from crosspair.video.loader import Batch
from crosspair.video.pixels import jitter_colors, normalize, preprocess_clips, rotate_hues
from tests.training import test_finetune

PAIRS, CLIPS = 24, 7
CPU = torch.device("cpu")


def batch(seed: int = 0, views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        epoch=0,
        rows=torch.randperm(PAIRS, generator=generator)[:CLIPS],
        clips=torch.randint(0, 256, (CLIPS, 3, 2 * views, 32, 32), generator=generator).to(torch.uint8),
        colors=torch.rand(CLIPS, 4 * views, generator=generator) + 0.5,
        failures=[(3, "broken")],
    )


def task(*settings: str, captions: list[str] | None = None) -> Pretraining:
    settings = (
        "clip.size=32", "clip.frames=2", "video.width=4", "text.dimensions=8", "head.hidden=8",
        "head.embedding=8", f"training.batch_size={CLIPS}", "training.precision=fp32",
        "optimizer.warmup_epochs=0", "objective.noise_samples=12", "curriculum.stage2_epoch=1",
        *settings,
    )  # fmt: skip
    rows: list[dict[str, Any]]
    rows = [{"pair_id": str(i), "path": "x", "title": f"a red dog {i % 3}"} for i in range(PAIRS)]
    for row in rows if captions else []:
        row["titles"] = [row["title"], *captions]
    return Pretraining(load_recipe("laptop", settings), manifest_from_rows(rows, "m.parquet"), World())


@pytest.mark.parametrize(("processes", "parts"), [(3, 1), (8, 1), (2, 4)])
def test_batch_size_too_small_for_its_processes(processes: int, parts: int) -> None:
    with pytest.raises(RecipeError, match=rf"training\.batch_size 8 .*{processes}"):
        check_batch_size(TrainingConfig(batch_size=8, accumulate=parts), World(size=processes))


@pytest.mark.parametrize(("processes", "parts"), [(1, 4), (2, 2), (4, 1)])
def test_two_clips_per_microbatch_suffice(processes: int, parts: int) -> None:
    check_batch_size(TrainingConfig(batch_size=8, accumulate=parts), World(size=processes))


@pytest.mark.parametrize("jitter", [0.0, 0.4])
@pytest.mark.parametrize("hue", [0.0, 0.1])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_microbatches_concatenate_to_the_batch(jitter: float, hue: float, parts: int) -> None:
    whole, config = batch(), ClipConfig(color_jitter=jitter, hue=hue)
    found = microbatches_to_device(whole, parts, CPU)
    assert [len(rows) for rows, _, _ in found] == {1: [7], 2: [4, 3], 3: [3, 2, 2]}[parts]
    assert torch.equal(torch.cat([rows for rows, _, _ in found]), whole.rows)
    expected = normalize(whole.clips)
    if hue:
        expected = rotate_hues(expected, whole.colors[:, 3])
    if jitter:
        expected = jitter_colors(expected, whole.colors[:, :3])
    pixels = [preprocess_clips(clips, colors, config) for _, clips, colors in found]
    torch.testing.assert_close(torch.cat(pixels), expected)


def test_pinned_batch_is_equal(monkeypatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda each: pinned.append(each) or each)
    whole = batch()
    again = whole.pin_memory()
    assert [id(each) for each in pinned] == [id(each) for each in (whole.rows, whole.clips, whole.colors)]
    assert (again.clips is whole.clips, again.failures) == (True, [(3, "broken")])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_copy_does_not_synchronise_with_the_gpu() -> None:
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, clips, colors in microbatches_to_device(batch().pin_memory(), 2, device):
            assert preprocess_clips(clips, colors, ClipConfig(color_jitter=0.4)).is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")


def graphs() -> int:
    """Return the number of graphs compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("one_thread", "eager_backend")
def test_compiled_network_equals_eager_one(tmp_path: Path) -> None:
    plain, made = task(), task("training.compile=true")
    before = graphs()
    for step in range(4):
        if step == 2:
            for each in (plain, made):
                each.curriculum.stage = 2
                each.enter_stage()
        losses = [each.train_step(batch(step), 0.0, 1.0)["loss"] for each in (plain, made)]
        torch.testing.assert_close(*losses)
    assert graphs() > before
    weights = plain.model.state_dict()
    assert list(weights) == list(made.model.state_dict())
    torch.testing.assert_close(dict(made.model.state_dict()), dict(weights))
    made.model.save_pretrained(tmp_path / "model")
    assert CPD.from_pretrained(tmp_path / "model").hash == made.model.hash


def test_missing_compiler_raises_one_line(monkeypatch) -> None:
    def fails(_) -> None:
        raise RuntimeError("Cannot find a working\ntriton installation")

    monkeypatch.setattr("crosspair.training.loop.torch.compile", fails)
    with pytest.raises(RecipeError, match=r"training\.compile.*a working triton installation"):
        compile_model(torch.nn.Linear(2, 2), CPU)


# --- learned class weights (Equation 1) ---------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_z_changes_once_per_step() -> None:
    whole, split = task(), task("training.batch_size=6", "training.accumulate=3")
    seen: list[torch.Tensor] = []
    split.objective.register_forward_hook(lambda module, *_: seen.append(module.log_z.clone()))
    for number in range(2):
        for each in (whole, split):
            each.train_step(batch(number), 0.0, 1.0)
    assert len(seen) == 6
    assert all(torch.equal(seen[i], seen[i - i % 3]) for i in range(6))
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(split.objective.weight, whole.objective.weight)


# --- gradient caching ---------------------------------------------------------------------------

BATCH_OBJECTIVES = (
    ("objective.name=ranking", "objective.margin=0.5"),
    ("objective.name=in_batch", "objective.soft_targets=0.2", "objective.learnable_temperature=true"),
    ("objective.name=siglip",),
    ("objective.video_weight=0.5", "objective.temperature=0.5"),
)


def gradients(*settings: str, fixed: bool = True) -> tuple[dict[str, torch.Tensor], Pretraining]:
    """Return metrics and the gradients of all parameters in a step of seven clips, and the task after it."""
    run, found = task("curriculum.strategy=joint", "optimizer.clip_norm=1", *settings), {}
    for module in run.model.modules() if fixed else ():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    names = {**dict(run.model.named_parameters()), **dict(run.objective.named_parameters())}
    run.optimizer.register_step_pre_hook(lambda *_: found.update({n: p.grad.clone() for n, p in names.items()}))
    metrics = run.train_step(batch(views=run.views_per_step), 0.0, 1.0)
    return {**found, **metrics}, run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("settings", BATCH_OBJECTIVES)
def test_cached_gradients_are_those_of_the_whole_batch(settings: tuple[str, ...]) -> None:
    whole, at_once = gradients(*settings)
    cached, split = gradients("training.batch_size=9", "training.accumulate=3", *settings)
    assert len(whole) > 30
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(split.bank.video, at_once.bank.video)


@pytest.mark.usefixtures("one_thread")
def test_both_passes_of_gradient_caching_are_equal() -> None:
    settings = ("training.batch_size=9", "training.accumulate=3", "head.dropout=0.5", BATCH_OBJECTIVES[2][0])
    seen: list[torch.Tensor] = []
    statistics = {}
    for accumulated in (True, False):
        run = task(*settings)
        run.model.register_forward_hook(lambda _, __, output: seen.append(torch.cat(output).detach()))
        if not accumulated:  # the forward passes of plain accumulation
            run.objective = task("training.batch_size=9", "training.accumulate=3").objective
            run.recipe = replace(run.recipe, objective=replace(run.recipe.objective, name="cross_pair"))
        torch.manual_seed(3)
        run.train_step(batch(), 0.0, 1.0)
        statistics[accumulated] = [*run.model.buffers(), torch.get_rng_state()]
    assert len(seen) == 9
    for i in range(3):
        assert torch.equal(seen[i], seen[i + 3])
        assert torch.equal(seen[i], seen[i + 6])
    assert all(map(torch.equal, *statistics.values()))


# --- several captions per video -------------------------------------------------------------------


def seen_captions(run: Pretraining, rows: list[int], epoch: int) -> dict[int, str]:
    """Train on a batch of some rows, and return the caption of each."""
    seen: list[Sequence[str]] = []
    hook = run.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    clips, colors = torch.zeros(len(rows), 3, 2, 32, 32, dtype=torch.uint8), torch.ones(len(rows), 4)
    run.train_step(Batch(epoch, torch.tensor(rows), clips, colors, []), 0.0, 1.0)
    hook.remove()
    return dict(zip(rows, seen[0], strict=True))


@pytest.mark.usefixtures("one_thread")
def test_a_caption_is_drawn_per_visit() -> None:
    run = task("text.empty_titles=drop", captions=["one cat", "…", "two cats"])
    assert {"dog", "cat", "cats"} <= set(run.model.text_encoder.words)
    rows = list(range(PAIRS))
    epochs = [seen_captions(run, rows, epoch) for epoch in range(3)]
    assert {caption for epoch in epochs for caption in epoch.values()} == {
        "a red dog 0", "a red dog 1", "a red dog 2", "one cat", "two cats",
    }  # fmt: skip
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = task("text.empty_titles=drop", captions=["one cat", "…", "two cats"])
    assert seen_captions(resumed, rows[9:3:-1], 2) == {row: epochs[2][row] for row in range(4, 10)}
    first, other = (draw_captions(["abcdefgh"] * PAIRS, rows, seed, 1) for seed in (1, 2))
    assert first != other


def test_clean_titles_have_no_further_captions() -> None:
    run = task(captions=["one cat"])
    manifest = run.manifest.with_columns({"title_clean": ["a dog"] * PAIRS})
    recipe = replace(run.recipe, text=replace(run.recipe.text, column="title_clean"))
    assert Pretraining(recipe, manifest, World()).captions == [["a dog"]] * PAIRS


def classes_task(estimate: str) -> Pretraining:
    return task(
        "curriculum.strategy=joint", "objective.name=self_instance", "objective.instances=weights",
        f"objective.estimate={estimate}",
    )  # fmt: skip


def step(training: Pretraining, number: int) -> float:
    return float(training.train_step(batch(number), 0.0, 1.0)["loss"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("estimate", ["nce", "softmax"])
def test_resumed_run_is_identical(estimate: str, tmp_path: Path) -> None:
    run = classes_task(estimate)
    before = run.objective.discrimination.weights.detach().clone()
    for number in range(2):
        step(run, number)
    after = run.objective.discrimination.weights.detach().clone()
    assert not torch.equal(before, after)
    save_checkpoint(tmp_path, 2, {"task": run.state_dict()}, run.rank_state_dict(), World())
    resumed = classes_task(estimate)
    shared, ranks = load_checkpoint(tmp_path, 2)
    resumed.load_state_dict(shared["task"], ranks)
    assert torch.equal(resumed.objective.discrimination.weights, after)
    torch.manual_seed(7)
    expected = [step(run, 2), step(run, 3)]
    torch.manual_seed(7)
    assert [step(resumed, 2), step(resumed, 3)] == expected
    ours, theirs = (t.objective.discrimination.weights for t in (resumed, run))
    assert torch.equal(ours, theirs)


def test_class_weights_have_the_learning_rate_of_the_towers() -> None:
    run = classes_task("nce")
    weights = run.objective.discrimination.weights
    groups = [g for g in run.optimizer.param_groups if any(p is weights for p in g["params"])]
    assert [group["role"] for group in groups] == ["rest"]


# --- average of the weights -----------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_average_of_the_weights_matches_a_loop() -> None:
    run, steps = task("training.ema=0.3"), 6
    history: dict[str, list[torch.Tensor]] = {}
    for number in range(steps):
        if number == 2:
            run.curriculum.stage = 2
            run.enter_stage()
        step(run, number)
        for name, value in run.model.state_dict().items():
            if not name.startswith("text_encoder") or number >= 2:
                history.setdefault(name, []).append(value.clone())
    expected: dict[str, torch.Tensor] = {}
    for name, values in history.items():
        if not name.endswith("num_batches_tracked"):
            expected[name] = values[0]
            for number, value in enumerate(values[1:], steps - len(values) + 1):
                decay = min(0.3, (1 + number) / (10 + number))
                expected[name] = decay * expected[name] + (1 - decay) * value
    assert any("running_var" in name for name in expected)
    torch.testing.assert_close(run.average.values, expected)
    assert not torch.equal(expected["video_head.weight"], history["video_head.weight"][-1])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("export", ["last", "best"])
def test_validation_and_exported_model_use_the_average(tmp_path, make_video, monkeypatch, export: str) -> None:
    recipe, manifest = small_run(tmp_path, make_video, "training.ema=0.9", f"training.export={export}")
    validated: list[str] = []
    monkeypatch.setattr(Pretraining, "validate", lambda run: validated.append(run.model.hash) or {"mrr": 0.5})
    model = pretrain(recipe, manifest, tmp_path / "run")
    assert model is not None
    assert model.hash == CPD.from_pretrained(tmp_path / "run/model").hash == validated[-1 if export == "last" else 0]
    shared, _ = load_checkpoint(tmp_path / "run/checkpoints", 6)
    weights, averages = shared["task"]["model"], shared["task"]["average"]["values"]
    assert weights_hash(weights) not in validated  # they are back after the validation
    assert weights_hash({**weights, **averages}) == validated[-1]


@pytest.mark.usefixtures("one_thread")
def test_pairs_with_the_same_captions_share_a_number() -> None:
    run = task("objective.merge_titles=true", "objective.estimate=softmax")
    assert run.bank.titles.tolist() == [row % 3 for row in range(PAIRS)]
    plain = task("objective.estimate=softmax")
    assert plain.bank.titles is None
    losses = [float(each.train_step(batch(), 0.0, 1.0)["loss"]) for each in (run, plain)]
    # Two thirds of the classes of each query are left, all with similar scores.
    assert losses[1] - losses[0] == pytest.approx(-2 * math.log((1 + 2 * PAIRS / 3) / PAIRS), rel=0.5)


# --- two views of a video -------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_video_term_matches_a_loop() -> None:
    temperature, weight = 0.2, 0.7
    settings = ("objective.name=ranking", "objective.margin=0.3", f"objective.temperature={temperature}")
    run = task(*settings, f"objective.video_weight={weight}")
    before = run.bank.video.clone()
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    run.model.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
    pairs = batch(views=2)
    scalars = run.train_step(pairs, 0.0, 1.0)
    ((views, text),) = outputs
    assert (len(views), len(text)) == (2 * CLIPS, CLIPS)
    first, second = views.detach()[::2], views.detach()[1::2]
    expected = 0.0
    for queries, candidates in ((first, second), (second, first)):
        for i in range(CLIPS):
            scores = [float(queries[i] @ candidate) / temperature for candidate in candidates]
            expected += (math.log(sum(map(math.exp, scores))) - scores[i]) / CLIPS
    ranking, _ = Ranking(0.3, World())(first, text.detach(), pairs.rows, run.bank)
    assert float(scalars["loss_views"]) == pytest.approx(expected, rel=1e-5)
    assert float(scalars["loss"]) == pytest.approx(float(ranking) + weight * expected, rel=1e-5)
    momentum = run.recipe.objective.bank_momentum
    entries = F.normalize(momentum * before[pairs.rows] + (1 - momentum) * first, dim=1)
    torch.testing.assert_close(run.bank.video[pairs.rows], entries)  # the bank has the first view


# --- validation -----------------------------------------------------------------------------------


class BatchSizeError(Exception):
    """Raised with the requested batch size."""


def raise_batch_size(*arguments: Any, batch_size: int, **more: Any) -> None:
    raise BatchSizeError(batch_size)


@pytest.mark.parametrize(
    ("make", "module", "reads"),
    [
        (lambda: task("training.batch_size=8", "training.accumulate=2"), "pretrain", "extract_features"),
        (lambda: test_finetune.task(**{"training.accumulate": 2}), "finetune", "encode_plans"),
    ],
)
def test_batches_have_the_size_of_a_microbatch(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Pretraining | Finetuning], module: str, reads: str
) -> None:
    monkeypatch.setattr(importlib.import_module(f"crosspair.training.{module}"), reads, raise_batch_size)
    with pytest.raises(BatchSizeError, match=r"^4$"):
        make().validate()


@pytest.mark.usefixtures("one_thread")
def test_unreadable_validation_videos_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = test_finetune.task(**{"training.workers": 0})
    with pytest.raises(VideoError, match=r"4 .*no such file"):
        made.validate()
    for name, message in zip(made.validation.column("pair_id"), caplog.messages[-4:], strict=True):
        assert f" {name}: " in message
    assert made.model.training


def small_run(tmp_path: Path, make_video: Callable[..., Path], *settings: str) -> tuple[Recipe, Manifest]:
    """Return a recipe and a corpus for two epochs of three steps."""
    for row in range(8):
        make_video(tmp_path / f"{row}.mp4", frames=12, size=(64, 64))
    rows = [
        {"pair_id": str(row), "path": f"{row}.mp4", "title": "a dog", "split": split}
        for row, split in enumerate(["train"] * 6 + ["val"] * 2)
    ]
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet")
    recipe = load_recipe("laptop", [
        "clip.size=32", "clip.frames=4", "video.width=4", "text.dimensions=8", "head.hidden=8",
        "head.embedding=8", "objective.noise_samples=8", "training.batch_size=2",
        "training.epochs=2", "training.workers=0", "training.validate_every=1",
        "curriculum.stage2_epoch=1", *settings,
    ])  # fmt: skip
    return recipe, manifest


@pytest.mark.usefixtures("one_thread")
def test_best_model_is_written_and_returned(tmp_path, make_video, monkeypatch) -> None:
    recipe, manifest = small_run(tmp_path, make_video, "training.export=best")
    worse = iter([0.9, 0.1])
    monkeypatch.setattr(Pretraining, "validate", lambda _: {"mrr": next(worse)})
    model = pretrain(recipe, manifest, tmp_path / "run")
    assert model is not None
    assert not model.training
    assert model.hash == CPD.from_pretrained(tmp_path / "run/model").hash


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["siglip", "in_batch"])
def test_learned_temperature_is_trained_and_saved(tmp_path, make_video, name: str) -> None:
    settings = [f"objective.name={name}", "optimizer.name=sgd", "optimizer.lr=0.1"]
    if name == "in_batch":
        settings += ["objective.learnable_temperature=true", "objective.temperature=0.2"]
    recipe, manifest = small_run(tmp_path, make_video, *settings)
    run = Pretraining(recipe, manifest, World())
    scalars = {id(each) for each in run.objective.parameters()}
    groups = [g for g in run.optimizer.param_groups if any(id(p) in scalars for p in g["params"])]
    assert [(group["role"], group["weight_decay"]) for group in groups] == [("rest", 0.0)]
    initial = run.objective.temperature().item()
    run.train(tmp_path / "run", resume=False)
    trained = run.objective.temperature().item()
    assert trained != pytest.approx(initial, rel=1e-4)
    assert CPD.from_pretrained(tmp_path / "run/model").temperature == trained
    again = Pretraining(recipe, manifest, World())
    again.train(tmp_path / "run", resume=True)
    assert again.objective.temperature().item() == trained


# --- training that diverges ----------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_diverged_training_stops_before_it_replaces_a_checkpoint(tmp_path, make_video, monkeypatch, what) -> None:
    recipe, manifest = small_run(tmp_path, make_video, "training.checkpoint_steps=2", "training.log_every=100")
    original = Pretraining.train_step

    def train_step(self: Pretraining, *arguments: Any) -> dict[str, torch.Tensor]:
        scalars = original(self, *arguments)
        if self.step == 5 and what == "loss":
            scalars["loss"] = torch.tensor(torch.nan)
        if self.step == 6 and what == "weights":
            next(self.model.parameters()).detach().fill_(torch.inf)
        return scalars

    monkeypatch.setattr(Pretraining, "train_step", train_step)
    noticed = {"loss": 5, "weights": 6}[what]
    with pytest.raises(RunError, match=rf"{what} .*step {noticed} .*step 4"):
        pretrain(recipe, manifest, tmp_path / "run")
    assert find_checkpoint(tmp_path / "run/checkpoints") == 4
    assert not (tmp_path / "run/model").exists()


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_that_is_not_finite_is_rejected(tmp_path, make_video) -> None:
    recipe, manifest = small_run(tmp_path, make_video, "training.epochs=1")
    pretrain(recipe, manifest, tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000003/shared.pt"
    content = torch.load(file, weights_only=True)
    next(iter(content["task"]["model"].values())).fill_(torch.nan)
    torch.save(content, file)
    with pytest.raises(RunError, match=r"weights .*step 3"):
        pretrain(recipe, manifest, tmp_path / "run", resume=True)
