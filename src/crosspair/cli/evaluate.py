"""Commands that evaluate and report: features, evaluate, report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import (
    Subparsers,
    add_batch_size,
    add_cluster,
    add_encoding,
    add_seed,
    add_splits,
    check_output_path,
    distributed_context,
    uses_ray,
)
from crosspair.errors import RunError

if TYPE_CHECKING:
    from crosspair.corpora.manifest import Manifest
    from crosspair.distributed import World
    from crosspair.evaluation.evaluate import EvaluationConfig
    from crosspair.evaluation.features import Features
    from crosspair.evaluation.results import Result, Subject
    from crosspair.models.cpd import CPD
    from crosspair.provenance import Provenance

_PROTOCOLS = {
    "all": "all of retrieval, knn, linear, lowshot and zeroshot",
    "retrieval": "text-to-video and video-to-text retrieval: R@1, 5, 10, median rank",
    "knn": "k nearest neighbours by cosine similarity",
    "linear": "linear probe: batch normalisation and one layer on frozen features",
    "lowshot": "linear probe with a fraction of the labels: 1 %%, 10 %%, 20 %%",
    "zeroshot": "classification by the nearest class name",
}


def add_features(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "features",
        help="encode every video of a manifest once and save the features",
        epilog="If interrupted, run the same command again to resume. Runs under torchrun.",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for features.safetensors (visual, embedding) and index.parquet",
    )  # fmt: skip
    add_cluster(parser)
    parser.set_defaults(command=_features)


def add_evaluate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate", help="evaluate a frozen model: retrieval, kNN, linear, low-shot, zero-shot"
    )
    protocols = parser.add_subparsers(required=True, metavar="PROTOCOL")
    for name, summary in _PROTOCOLS.items():
        _add_protocol(protocols, name, summary)
    _add_multiview(protocols)


def _add_protocol(protocols: Subparsers, name: str, summary: str) -> None:
    runs_all = name == "all"
    parser = protocols.add_parser(
        name, help=summary, epilog="FILE is overwritten with these results. Runs under torchrun."
    )
    _add_inputs(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    add_splits(parser, "--model, --manifest and --features")
    parser.add_argument(
        "--features", type=Path, metavar="DIR",
        help='features of "crosspair features"; computed if missing (default: a folder in the '
        "folder of FILE, named after model and manifest)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "val", "train"), default="test",
        help="split to test on (default: test); classifiers are trained on the splits before it",
    )  # fmt: skip
    parser.add_argument(
        "--random-baseline", action=argparse.BooleanOptionalAction, default=runs_all,
        help=f"also evaluate random weights (default: {'yes' if runs_all else 'no'})",
    )  # fmt: skip
    add_seed(parser, "all random choices")
    if name != "retrieval":
        parser.add_argument(
            "--details", type=Path, metavar="DIR",
            help="folder for the accuracy of each class (csv) and confusion matrices (csv, png)",
        )  # fmt: skip
    if name in {"all", "knn", "linear", "lowshot"}:
        parser.add_argument(
            "--feature", choices=("visual", "embedding"),
            help="feature to classify: before or after the projection head (default: both)",
        )  # fmt: skip
    if name in {"all", "knn"}:
        parser.add_argument("--k", type=int, default=25, help="neighbours (default: 25)")
        parser.add_argument(
            "--weighting", choices=("uniform", "distance"), default="uniform",
            help="weight of a neighbour's vote: 1 (default), or exp(cosine / temperature)",
        )  # fmt: skip
        parser.add_argument("--temperature", type=float, default=0.07, help="of --weighting distance (default: 0.07)")
    if name in {"all", "linear", "lowshot"}:
        parser.add_argument("--epochs", type=int, default=30, help="training epochs (default: 30)")
        parser.add_argument("--lr", type=float, default=1e-3, help="divided by 10 every 10 epochs (default: 1e-3)")
        parser.add_argument("--train-batch", type=int, default=64, help="batch size (default: 64)")
    if name in {"all", "lowshot"}:
        parser.add_argument(
            "--fractions", type=float, nargs="+", default=(0.01, 0.1, 0.2), metavar="FRACTION",
            help="fractions of the labels, 0 to 1 (default: 0.01 0.1 0.2)",
        )  # fmt: skip
    if name in {"all", "zeroshot"}:
        parser.add_argument(
            "--classes", type=int, nargs="+", default=(), metavar="N",
            help="also evaluate on N random classes; accepts several numbers",
        )  # fmt: skip
        parser.add_argument("--draws", type=int, default=10, help="random draws of N classes (default: 10)")
        parser.add_argument(
            "--templates", type=Path, metavar="FILE",
            help="prompts for class names, one per line, with {} for the name; averaged",
        )  # fmt: skip
    parser.set_defaults(command=_evaluate, protocols=tuple(_PROTOCOLS)[1:] if runs_all else (name,))


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR|imagenet:FILE",
        help="a model folder or Hub name, or the state dict of a 2D ResNet, applied to single "
        "frames (visual feature only)",
    )  # fmt: skip
    parser.add_argument("--manifest", required=True, metavar="M")
    add_encoding(parser)
    add_batch_size(parser)


def _features(options: argparse.Namespace) -> None:
    ray = uses_ray(options)

    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.features import encode_on_ray
    from crosspair.models.init import load_frozen_model

    with distributed_context() as world:
        manifest, model = Manifest.read(options.manifest), load_frozen_model(options.model)
        backend = {"encode": partial(encode_on_ray, address=options.address)} if ray else {}
        features = _encode(model.to(world.device), manifest, options.out, options, world, **backend)
        if world.is_main:
            print(f"{options.out}: features of {len(features.rows)} of {len(manifest)} videos")


def _evaluate(options: argparse.Namespace) -> None:
    from crosspair.evaluation.results import check_manifest_name, write_results, write_split_means
    from crosspair.reporting.tables import print_table

    check_output_path(options.out)
    config = _evaluation_config(options)
    if options.splits:
        check_manifest_name(options.manifest)
    with distributed_context() as world:
        # All splits are checked before the videos of the first one are encoded.
        inputs = {split: _load_inputs(options, config, split) for split in options.splits or [None]}
        subjects = {
            split: _encode_subjects(split, model, manifest, options, world)
            for split, (model, manifest, _) in inputs.items()
        }
        if not world.is_main:
            return
        evaluated = {
            split: _evaluate_subjects(*loaded, subjects[split], options, config) for split, loaded in inputs.items()
        }
        if options.splits:
            results = write_split_means(options.out, {s: r for s, r in evaluated.items() if s})
        else:
            results, origin = evaluated[None]
            write_results(options.out, results, origin)
        if getattr(options, "details", None):
            from crosspair.reporting.figures import write_details

            for split, (split_results, _) in evaluated.items():
                folder = options.details / (f"split{split}" if split else "")
                write_details(folder, split_results)
        print_table(results)


def _load_inputs(options: argparse.Namespace, config: EvaluationConfig, split: int | None) -> tuple[CPD, Manifest, str]:
    """Load model, manifest and recipe hash for a split (None: no splits), and check that the protocols apply."""
    from crosspair.config import Recipe
    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.evaluate import check_protocols
    from crosspair.evaluation.results import fill_split
    from crosspair.models.init import load_frozen_model
    from crosspair.recipes import run_recipe_hash

    name = fill_split(options.model, split)
    model = load_frozen_model(name)
    manifest = Manifest.read(fill_split(options.manifest, split))
    check_protocols(model, manifest, options.protocols, config)
    return model, manifest, run_recipe_hash(Recipe, name)


def _encode_subjects(
    split: int | None, model: CPD, manifest: Manifest, options: argparse.Namespace, world: World
) -> list[tuple[Subject, CPD, Features]]:
    """Encode the videos with the model and, if asked, random weights; on all processes."""
    from crosspair.evaluation.evaluate import randomize_weights
    from crosspair.evaluation.features import feature_spec
    from crosspair.evaluation.results import fill_split

    model.to(world.device)
    subjects: list[tuple[Subject, CPD]] = [("trained", model)]
    if options.random_baseline:
        subjects.append(("random weights", randomize_weights(model, options.seed)))
    encoded = []
    for subject, network in subjects:
        spec = feature_spec(network, manifest, clips=options.clips, precision=options.precision, device=world.device)
        folder = options.out.parent / spec.folder
        if options.features:
            folder = Path(fill_split(str(options.features), split)).resolve()
            folder = folder if network is model else folder.with_name(f"{folder.name}-random")
        features = _encode(network, manifest, folder, options, world)
        encoded.append((subject, network, features))
    return encoded


def _evaluate_subjects(
    model: CPD,
    manifest: Manifest,
    recipe: str,
    subjects: list[tuple[Subject, CPD, Features]],
    options: argparse.Namespace,
    config: EvaluationConfig,
) -> tuple[list[Result], Provenance]:
    """Run the protocols on the features of each subject; return the distinct results and their provenance."""
    from crosspair.evaluation.evaluate import frozen_results

    results: list[Result] = []
    for subject, network, features in subjects:
        found = frozen_results(network, manifest, features, options.protocols, config, subject=subject)
        results += [result for result in found if result not in results]
    return results, _provenance(recipe, model.hash, manifest, options.seed)


def _provenance(recipe: str, model: str, manifest: Manifest, seed: int) -> Provenance:
    from crosspair.provenance import provenance

    name = manifest.path.name
    return provenance(recipe=recipe, model=model, manifest=manifest.hash, seed=seed, manifest_file=name)


def _evaluation_config(options: argparse.Namespace) -> EvaluationConfig:
    """Return the settings of the protocols from the options that this protocol has."""
    from crosspair.evaluation.evaluate import EvaluationConfig
    from crosspair.evaluation.knn import KnnConfig
    from crosspair.evaluation.linear import LinearConfig, LowshotConfig
    from crosspair.evaluation.zeroshot import ZeroshotConfig, read_templates

    values = vars(options)
    sections: dict[str, Any] = {}
    if "k" in values:
        sections["knn"] = KnnConfig(options.k, options.weighting, options.temperature)
    if "epochs" in values:
        sections["linear"] = LinearConfig(epochs=options.epochs, lr=options.lr, batch_size=options.train_batch)
    if "fractions" in values:
        sections["lowshot"] = LowshotConfig(tuple(dict.fromkeys(options.fractions)))
    if "classes" in values:
        templates = read_templates(options.templates) if options.templates else ("{}",)
        sections["zeroshot"] = ZeroshotConfig(tuple(dict.fromkeys(options.classes)), options.draws, templates)
    if values.get("feature"):
        sections["feature"] = options.feature
    return EvaluationConfig(split=options.split, seed=options.seed, **sections)


def _encode(
    model: CPD, manifest: Manifest, folder: Path, options: argparse.Namespace, world: World, **backend: Any
) -> Features:
    """Compute features, or load them if the folder already has them."""
    from crosspair.evaluation.features import cached_features
    from crosspair.progress import delayed_progress

    with delayed_progress("encoding", "clips", shown=world.is_main) as progress:
        return cached_features(
            model, manifest, folder,
            clips=options.clips, batch_size=options.batch_size, workers=options.workers,
            world=world, precision=options.precision, progress=progress, **backend,
        )  # fmt: skip


def _add_multiview(protocols: Subparsers) -> None:
    parser = protocols.add_parser(
        "multiview",
        help="multi-view testing of a fine-tuned classifier: 10 clips × 3 crops per video",
        epilog="The softmax is averaged over views. Runs under torchrun with identical results.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a classifier")
    parser.add_argument("--manifest", required=True, metavar="M")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    parser.add_argument(
        "--split", choices=("test", "val", "train"), default="test",
        help="split to test on (default: test)",
    )  # fmt: skip
    parser.add_argument(
        "--crops", type=int, choices=(1, 3), default=3,
        help="per clip: 3 for left, centre and right (default, as in the paper), 1 for the centre",
    )  # fmt: skip
    add_encoding(parser)
    parser.set_defaults(command=_multiview)


def _multiview(options: argparse.Namespace) -> None:
    from crosspair.config import FinetuneRecipe
    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.multiview import MultiviewConfig, multiview_results
    from crosspair.evaluation.results import write_results
    from crosspair.models.classifier import Classifier
    from crosspair.recipes import run_recipe_hash
    from crosspair.reporting.tables import print_table

    check_output_path(options.out)
    manifest = Manifest.read(options.manifest)
    model = Classifier.from_pretrained(options.model)
    recipe = run_recipe_hash(FinetuneRecipe, options.model)
    with distributed_context() as world:
        results = multiview_results(
            model.to(world.device), manifest,
            MultiviewConfig(options.clips, options.crops),
            split=options.split, workers=options.workers, world=world, precision=options.precision,
        )  # fmt: skip
        if world.is_main:
            write_results(options.out, results, _provenance(recipe, model.hash, manifest, seed=0))
            print_table(results)


def add_report(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "report",
        help="compare the results of several runs in tables like Tables 2 to 5 of the paper",
        description="Write tables of runs by protocol: values with settings and a link to their "
        "file, 95 %% intervals of accuracies, chance and random weights if measured, and published "
        "results of the same protocol. Given one ablation folder, regenerate its report.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder with results.json, or a results file; NAME=RUN sets its name; or one "
        "folder of crosspair ablate",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder for report.html, report.md and report.csv (not for an ablation, whose report "
        "is written to its folder)",
    )  # fmt: skip
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspair.reporting.ablation import write_ablation_report
    from crosspair.reporting.ablation_tables import is_ablation
    from crosspair.reporting.summary import read_runs, write_summary
    from crosspair.reporting.tables import pluralize

    ablations = [run for run in options.runs if is_ablation(Path(run))]
    if ablations and (len(options.runs) > 1 or options.out):
        raise RunError(f"{ablations[0]} is an ablation: pass it alone and without --out")
    if ablations:
        print(f"{write_ablation_report(Path(ablations[0]))}, report.md, report.csv, results.parquet")
        return
    if options.out is None:
        raise RunError("--out DIR is required, for report.html, report.md and report.csv")
    runs = read_runs(options.runs)
    frame = write_summary(options.out, runs)
    values = (frame.of != "published").sum()
    print(
        f"{options.out / 'report.html'}, report.md, report.csv: {values} values of "
        f"{pluralize(len(runs), 'run')} in {pluralize(frame.table.nunique(), 'table')}"
    )
