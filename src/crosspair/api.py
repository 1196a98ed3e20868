"""Train and evaluate models from Python, as the commands do."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import resolve_device
from crosspair.distributed import World, init_distributed
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation.attentive import extract_tokens
from crosspair.evaluation.encode import CLIPS, check_counts
from crosspair.evaluation.evaluate import (
    FROZEN_PROTOCOLS,
    PAPER_PROTOCOLS,
    EvaluationConfig,
    check_protocols,
    evaluate_model,
)
from crosspair.evaluation.features import Features, cached_features, encode_on_ray, feature_spec
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import (
    SUBJECTS,
    Result,
    Subject,
    check_manifest_name,
    fill_split,
    write_results,
    write_split_means,
)
from crosspair.evaluation.stored import encode_stored_rows
from crosspair.evaluation.zeroshot import read_templates
from crosspair.files import check_output, check_output_folder
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.models.init import IMAGENET, load_frozen_model, load_model
from crosspair.models.video import read_resolved_recipe
from crosspair.progress import delayed_progress
from crosspair.provenance import Provenance, provenance
from crosspair.recipes import make_recipe, parse_overrides, run_recipe_hash, suggest
from crosspair.training.finetune import finetune_and_test
from crosspair.training.pretrain import pretrain as train_pairs
from crosspair.training.run import MODEL, RECIPE, check_run_folder
from crosspair.workers import cpu_count

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]
MULTIVIEW = "multiview"  # the protocol of classifiers


# --- training -----------------------------------------------------------------------------------


def pretrain(
    recipe: str | Recipe,
    manifest: FilePath | Manifest,
    run: FilePath,
    *,
    init: str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    profile: bool = False,
) -> CPD | None:
    """Pre-train a model and write it to ``run/model``, as ``crosspair pretrain`` does.

    Under ``torchrun``, each process calls this function; likewise for the other functions of this module.

    Args:
        recipe: name of a packaged recipe, YAML file, or recipe.
        manifest: training pairs.
        run: run folder, which receives the model, checkpoints, ``metrics.jsonl`` and ``report.html``.
        init: initial weights: a model folder, Hub name, or "imagenet:FILE"; None: random.
        resume: resume the run in the folder.
        overrides: recipe settings such as "training.epochs=30"; only if ``recipe`` is a name or file.
        profile: profile some steps, see `crosspair.training.profile`.

    Returns:
        The model, or None if a signal (SIGTERM, SIGHUP, Ctrl-C) stopped the training.

    Raises:
        CrosspairError: recipe, pairs, weights or folder are invalid.
    """
    check_run_folder(Path(run))
    settings = recipe if isinstance(recipe, Recipe) else read_resolved_recipe(Recipe, recipe, overrides)
    pairs = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    with distributed_context() as world:
        model = train_pairs(settings, pairs, run, init=init or "random", resume=resume, profile=profile, world=world)
        if model is not None and world.is_main:
            _write_report(Path(run))
    return model


def finetune(
    recipe: str | FinetuneRecipe,
    manifest: FilePath,
    run: FilePath,
    *,
    init: str,
    split: str = "test",
    splits: Sequence[int] = (),
    test: bool = True,
    resume: bool = False,
    overrides: Sequence[str] = (),
    profile: bool = False,
) -> list[Result] | None:
    """Train a classifier and test it with 30 views, as ``crosspair finetune`` does.

    Args:
        recipe, run, resume, overrides, profile: as for `pretrain`; the run folder also receives ``results.json``.
        manifest: videos with labels.
        init: initial weights as for `pretrain`, or "random".
        split: split to test on, "test" or "val".
        splits: numbers of official splits to average over; they replace ``{}`` in ``manifest`` and ``init``.
        test: whether to test.

    Returns:
        The results, empty without a test; None if a signal stopped the training.
    """
    folder = Path(run)
    if splits:
        parts = [f"split{number}" for number in splits]
        check_output_folder(folder, "a folder of runs", f"{parts[0]}/{RECIPE}", *parts)
        for part in parts:
            check_run_folder(folder / part)
    else:
        check_run_folder(folder)
    settings = recipe if isinstance(recipe, FinetuneRecipe) else read_resolved_recipe(FinetuneRecipe, recipe, overrides)
    if splits and not test:
        raise CrosspairError("official splits (--splits) average test results and require a test, not --no-test")
    with distributed_context() as world:
        results = finetune_and_test(
            settings, os.fspath(manifest), init, folder,
            splits=splits, test=test, test_split=split, resume=resume, profile=profile, world=world,
        )  # fmt: skip
        if results is not None and world.is_main:
            _write_report(folder)
    return results


def is_main_process() -> bool:
    """Return whether this process is rank 0, or there is only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def distributed_context(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, and silence the logs of all but rank 0."""
    with init_distributed() as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        if device != "auto" and world.size > 1:
            raise RunError("several processes choose their devices themselves; leave --device auto")
        yield world if device == "auto" else replace(world, device=resolve_device(device))


def _write_report(run: Path) -> None:
    """Write ``report.html``; a failure is a warning, since the training itself is complete."""
    try:
        from crosspair.reporting.run_report import write_run_report

        write_run_report(run)
    except Exception as error:
        logger.warning("%s has no report.html: %s: %s", run, type(error).__name__, error)


# --- evaluation ---------------------------------------------------------------------------------


def evaluate(
    model: FilePath,
    manifest: FilePath,
    protocols: Sequence[str] | None = None,
    *,
    out: FilePath | None = None,
    split: str = "test",
    splits: Sequence[int] = (),
    features: FilePath | None = None,
    feature: str | None = None,
    random_baseline: bool | None = None,
    compare_with: Sequence[str] = (),
    details: FilePath | None = None,
    clips: int = CLIPS,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    batch_size: int = 32,
    overrides: Sequence[str] = (),
) -> list[Result]:
    """Evaluate a model with the paper's protocols, as ``crosspair evaluate`` does, whose help explains the arguments.

    Args:
        model: model folder, Hub name, or "imagenet:FILE" of a 2D ResNet.
        manifest: videos with labels or titles.
        protocols: some of `FROZEN_PROTOCOLS`, or ["multiview"] for a classifier; None: all of the paper that the model
            and the manifest support.
        out: results file to write.
        features: folder of the features; None: next to ``out``, named after model and manifest.
        random_baseline: whether to evaluate random weights, too; None: if ``protocols`` is None.
        compare_with: other models, as for ``model``, whose results are added under their names: that of the Hub, the
            folder (of the run, for its folder "model"), or the file.
        overrides: settings of `EvaluationConfig` such as "knn.k=5".

    Returns:
        The results, with ``splits`` their means; empty on processes other than rank 0.

    Raises:
        CrosspairError: the model, the manifest or a setting is invalid, or no protocol is supported.
    """
    check_counts(clips=clips, batch_size=batch_size, workers=workers)
    if out is not None:
        check_output(Path(out), "a results file")
    if details:
        from crosspair.reporting.figures import check_details

        for name in [f"split{number}" for number in splits] or [""]:
            check_details(Path(details, name))
    config = _read_settings(overrides, split=split, feature=feature or "both", seed=seed)
    if splits:
        check_manifest_name(os.fspath(manifest))
    with distributed_context(device) as world, tempfile.TemporaryDirectory() as temporary:
        if out is None and world.size > 1:
            raise RunError("several processes need a common folder; set out")
        file = Path(out or f"{temporary}/results.json")
        # All splits are checked before the videos of the first one are encoded.
        numbers: list[int | None] = [*splits] or [None]
        names, load = _name_models(compare_with, numbers[0]), cache(_load_any)
        inputs = {
            number: _load_inputs(
                fill_split(os.fspath(model), number), fill_split(os.fspath(manifest), number), protocols, config,
                {name: load(fill_split(source, number)) for name, source in names.items()},
            )
            for number in numbers
        }  # fmt: skip
        workers = cpu_count() if workers is None else workers
        common: dict[str, Any] = {"precision": precision, "workers": workers, "world": world}
        baseline = protocols is None if random_baseline is None else random_baseline
        found: dict[int | None, tuple[list[Result], Provenance]] = {}
        for number, (network, videos, chosen, recipe, others) in inputs.items():
            for each in (network, *others.values()):
                each.to(world.device)
            if isinstance(network, Classifier):
                views = replace(config.multiview, clips=clips)
                results = multiview_results(network, videos, views, split=split, **common)
                for name, other in others.items():
                    of_other = multiview_results(other, videos, views, split=split, **common)
                    results += [replace(each, of=name, details={}) for each in of_other if each.of == "trained"]
            else:
                folder = Path(fill_split(os.fspath(features), number)).resolve() if features else None
                options = {"clips": clips, "batch_size": batch_size, **common}
                extract = partial(_extract_features, manifest=videos, folder=folder, parent=file.parent, **options)
                tokens = partial(_extract_tokens, batch_size=batch_size, workers=workers, precision=precision)
                results, _ = evaluate_model(
                    network, videos, extract, chosen, config,
                    random_baseline=baseline, others=others, tokens=tokens, is_main=world.is_main,
                )  # fmt: skip
            origin = provenance(
                recipe=recipe, model=network.hash, manifest=videos.hash, seed=seed, manifest_file=videos.path.name,
                compared={name: other.hash for name, other in others.items()},
            )  # fmt: skip
            found[number] = results, origin
        if not world.is_main:
            return []
        if splits:
            results = write_split_means(file, {number: pair for number, pair in found.items() if number})
        else:
            write_results(file, *found[None])
    if details:
        from crosspair.reporting.figures import write_details

        for number, (of_split, _) in found.items():
            write_details(Path(details, f"split{number}" if number else ""), of_split)
    return results


def _read_settings(overrides: Sequence[str], **common: Any) -> EvaluationConfig:
    """Read settings ``section.key=value`` with the value in YAML; `zeroshot.templates` may be a file."""
    settings, key = parse_overrides(overrides), "zeroshot.templates"
    if isinstance(settings.get(key), str):
        settings[key] = list(read_templates(Path(settings[key])))
    config = make_recipe(EvaluationConfig, settings, "evaluate")  # type: ignore[type-var]
    return replace(config, **common)


def _name_models(sources: Sequence[str], split: int | None) -> dict[str, str]:
    """Return the sources of models by their short names; RunError if a name is not unique."""
    named: dict[str, str] = {}
    for source in sources:
        path, name = Path(source.removeprefix(IMAGENET)).absolute(), source
        if source.startswith(IMAGENET) or Path(fill_split(source, split)).is_dir():
            name = path.parent.name if path.name == MODEL else path.name
        if name in (*named, *SUBJECTS):
            raise RunError(f"--compare-with {source}: the name {name!r} is used twice; rename the folder")
        named[name] = source
    return named


def _load_any(source: str) -> CPD | Classifier:
    return load_frozen_model(source) if source.startswith(IMAGENET) else load_model(source)


def _load_inputs(
    source: str,
    manifest: str,
    protocols: Sequence[str] | None,
    config: EvaluationConfig,
    others: Mapping[str, CPD | Classifier],
) -> tuple[CPD | Classifier, Manifest, Sequence[Any], str, Mapping[str, Any]]:
    """Load a model and a manifest, and check the protocols.

    Returns:
        The model, the manifest, the protocols, the recipe's hash, and ``others``: the models to compare with.
    """
    known = [*FROZEN_PROTOCOLS, MULTIVIEW]
    for name in protocols or ():
        if name not in known:
            raise CrosspairError(f"protocol {name!r} is unknown; {suggest(name, known)}")
    model, videos = _load_any(source), Manifest.read(manifest)
    kinds = {True: "a classifier", False: "not a classifier"}
    for name, other in others.items():
        if isinstance(model, Classifier) != isinstance(other, Classifier):
            kind, own = (kinds[isinstance(each, Classifier)] for each in (other, model))
            raise CrosspairError(f"{name} is {kind}, and {source} is {own}: they cannot be compared")
    if isinstance(model, Classifier):
        if protocols is not None and [*protocols] != [MULTIVIEW]:
            raise CrosspairError(f"{source} is a classifier, which only the protocol multiview can test")
        return model, videos, [], run_recipe_hash(FinetuneRecipe, source), others
    if MULTIVIEW in (protocols or ()):
        raise CrosspairError(f"{source} is not a classifier, which the protocol multiview tests")
    chosen: Sequence[Any] = protocols or PAPER_PROTOCOLS
    check_protocols(
        model, videos, chosen, config, {name: each for name, each in others.items() if isinstance(each, CPD)}
    )
    return model, videos, chosen, run_recipe_hash(Recipe, source), others


def write_features(
    model: str,
    manifest: FilePath,
    folder: Path,
    *,
    clips: int = CLIPS,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    batch_size: int = 32,
    ray: str | None = None,
) -> Features:
    """Write the features of a manifest's videos to a folder, for `evaluate`; resume if it has some of them.

    Args:
        model, clips, precision, workers, batch_size: as for `evaluate`.
        manifest: the videos.
        folder: receives ``features.safetensors`` (visual, embedding) and ``index.parquet``.
        device: PyTorch device; "auto": that of the process.
        ray: address of a Ray cluster that encodes, "" for a local one; None: without Ray.
    """
    check_counts(clips=clips, batch_size=batch_size, workers=workers)
    with distributed_context(device) as world:
        videos, network = Manifest.read(manifest), load_frozen_model(model).to(world.device)
        options: dict[str, Any] = {"clips": clips, "precision": precision, "batch_size": batch_size, "world": world}
        options["workers"] = cpu_count() if workers is None else workers
        if ray is not None:
            options["encode"] = partial(encode_on_ray, address=ray or None)
        return _extract_features(network, "trained", videos, folder, folder.parent, **options)


def _extract_features(
    model: CPD, subject: Subject, manifest: Manifest, folder: Path | None, parent: Path, *, world: World, **options: Any
) -> Features:
    """Compute features, or load them if the folder has them; its default is named after model and manifest."""
    if folder is None:
        protocol = {name: options[name] for name in ("clips", "precision")}
        folder = parent / feature_spec(model, manifest, device=world.device, **protocol).folder
    elif subject != "trained":
        folder = folder.with_name(f"{folder.name}-{'random' if subject in SUBJECTS else model.hash}")
    frozen = model.video.trained_blocks == 0 or model.head.projection == "none"
    if frozen and model.video.cache:  # heads differ from run to run, and their encoder is the same
        options.setdefault("encode", partial(encode_stored_rows, world=world))
    with delayed_progress("encoding", "clips", shown=world.is_main) as progress:
        return cached_features(model, manifest, folder, world=world, progress=progress, **options)


def _extract_tokens(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Extract tokens for the attentive probe, with a progress bar."""
    with delayed_progress("encoding tokens", "videos") as progress:
        return extract_tokens(*arguments, **options, progress=progress)
