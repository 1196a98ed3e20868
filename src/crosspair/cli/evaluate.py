"""``crosspair features`` and ``crosspair evaluate``: what a frozen model is worth."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import (
    Verbs,
    add_cluster,
    add_encoding,
    add_seed,
    add_splits,
    check_output_path,
    distributed_context,
    int_at_least,
    uses_ray,
)
from crosspair.errors import RunError

if TYPE_CHECKING:
    from crosspair.corpora.manifest import Manifest
    from crosspair.distributed import World
    from crosspair.evaluation.evaluate import FrozenConfig
    from crosspair.evaluation.features import Features
    from crosspair.evaluation.results import Result, Subject
    from crosspair.models.cpd import CPD
    from crosspair.provenance import Provenance


_PROTOCOLS = {
    "all": "the five that follow",
    "retrieval": "texts find their videos and videos their texts: R@1, 5, 10, median rank",
    "knn": "the labels of the nearest videos, by cosine",
    "linear": "batch normalisation and one layer, trained on frozen features",
    "lowshot": "the same with a share of the labels: 1 %%, 10 %%, 20 %%",
    "zeroshot": "the nearest class name",
}


def add_features(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "features",
        help="encode every video of a manifest once, into a folder",
        epilog="What was stopped goes on by the same command. Runs under torchrun, too.",
    )
    _add_inputs(verb)
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="gets features.safetensors (visual, embedding) and index.parquet",
    )  # fmt: skip
    add_cluster(verb)
    verb.set_defaults(verb=_features)


def add_evaluate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "evaluate", help="test a frozen model: retrieval, kNN, linear, low-shot, zero-shot"
    )
    protocols = verb.add_subparsers(required=True, metavar="PROTOCOL")
    for name, text in _PROTOCOLS.items():
        _add_protocol(protocols, name, text)
    add_multiview(protocols)


def _add_protocol(protocols: Verbs, name: str, text: str) -> None:
    every = name == "all"
    verb = protocols.add_parser(
        name, help=text,
        epilog="A file of results holds those of one command. Runs under torchrun, too.",
    )  # fmt: skip
    _add_inputs(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    add_splits(verb, "--model, --manifest and --features")
    verb.add_argument(
        "--features", type=Path, metavar="DIR",
        help='of "crosspair features", made where it is not there (default: a folder beside '
        "FILE, named after model and manifest)",
    )  # fmt: skip
    verb.add_argument(
        "--split", choices=("test", "val", "train"), default="test",
        help="to test on (default: test); classifiers learn from the splits before it",
    )  # fmt: skip
    verb.add_argument(
        "--beside-random", action=argparse.BooleanOptionalAction, default=every,
        help=f"test random weights, too (default: {'yes' if every else 'no'})",
    )  # fmt: skip
    add_seed(verb, "all that is drawn")
    if name != "retrieval":
        verb.add_argument(
            "--details", type=Path, metavar="DIR",
            help="gets the accuracy of each class (csv) and the confusion of classes (csv, png)",
        )  # fmt: skip
    if name in {"all", "knn", "linear", "lowshot"}:
        verb.add_argument(
            "--feature", choices=("visual", "embedding"),
            help="classify this feature: before the mapping layer, or after it (default: both)",
        )  # fmt: skip
    if name in {"all", "knn"}:
        verb.add_argument("--k", type=int, default=25, help="neighbours (default: 25)")
        verb.add_argument(
            "--weighting", choices=("uniform", "distance"), default="uniform",
            help="of votes: all the same (default), or exp(cosine / temperature)",
        )  # fmt: skip
        verb.add_argument(
            "--temperature", type=float, default=0.07, help="of weighting by distance (0.07)"
        )
    if name in {"all", "linear", "lowshot"}:
        verb.add_argument("--epochs", type=int, default=30, help="of training (default: 30)")
        verb.add_argument("--lr", type=float, default=1e-3, help="÷10 every 10 epochs (1e-3)")
        verb.add_argument("--train-batch", type=int, default=64, help="videos (default: 64)")
    if name in {"all", "lowshot"}:
        verb.add_argument(
            "--shares", type=float, nargs="+", default=(0.01, 0.1, 0.2), metavar="SHARE",
            help="of the labels, 0 to 1 (default: 0.01 0.1 0.2)",
        )  # fmt: skip
    if name in {"all", "zeroshot"}:
        verb.add_argument(
            "--classes", type=int, nargs="+", default=(), metavar="N",
            help="test on N random classes, too; several numbers may be given",
        )  # fmt: skip
        verb.add_argument("--draws", type=int, default=10, help="of N classes (default: 10)")
        verb.add_argument(
            "--templates", type=Path, metavar="FILE",
            help="texts for class names, one a line, with {} for the name; averaged",
        )  # fmt: skip
    verb.set_defaults(verb=_evaluate, protocols=tuple(_PROTOCOLS)[1:] if every else (name,))


def _add_inputs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", required=True, metavar="DIR|imagenet:FILE",
        help="a model folder or hub name; or a 2D ResNet's state dict, for features of frames "
        "(visual ones alone: its embedding is untrained)",
    )  # fmt: skip
    verb.add_argument("--manifest", required=True, metavar="M")
    add_encoding(verb)
    verb.add_argument(
        "--batch-size", type=int_at_least(1), default=32,
        help="clips at a time, at most (default: 32)",
    )  # fmt: skip


def _features(options: argparse.Namespace) -> None:
    ray = uses_ray(options)

    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.features import encode_on_ray
    from crosspair.models.init import load_frozen_model

    with distributed_context() as world:
        manifest, model = Manifest.read(options.manifest), load_frozen_model(options.model)
        how = {"encode": partial(encode_on_ray, address=options.address)} if ray else {}
        found = _encoded(model.to(world.device), manifest, options.out, options, world, **how)
        if world.is_main:
            print(f"{options.out}: features of {len(found.rows)} of {len(manifest)} videos")


def _evaluate(options: argparse.Namespace) -> None:
    from crosspair.evaluation.results import check_manifest_name, write_results, write_split_means
    from crosspair.reporting.tables import print_table

    check_output_path(options.out)
    config = _config(options)
    if options.splits:
        check_manifest_name(options.manifest)
    with distributed_context() as world:
        # What is wrong with the last split is told before the first one's videos are encoded.
        inputs = {split: _inputs(options, config, split) for split in options.splits or [None]}
        encoded = {
            split: _subjects(split, model, manifest, options, world)
            for split, (model, manifest, _) in inputs.items()
        }
        if not world.is_main:  # tests may take long, and nobody waits for them
            return
        found = {
            split: _tested(*each, encoded[split], options, config) for split, each in inputs.items()
        }
        if options.splits:
            shown = write_split_means(options.out, {s: each for s, each in found.items() if s})
        else:
            shown, origin = found[None]
            write_results(options.out, shown, origin)
        if getattr(options, "details", None):
            from crosspair.reporting.figures import write_details

            for split, (results, _) in found.items():
                write_details(options.details / (f"split{split}" if split else ""), results)
        print_table(shown)


def _inputs(
    options: argparse.Namespace, config: FrozenConfig, split: int | None
) -> tuple[CPD, Manifest, str]:
    """The model and the videos of an official split, or of the one there is; the recipe's hash."""
    from crosspair.config import Recipe
    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.evaluate import check_protocols
    from crosspair.evaluation.results import fill_split
    from crosspair.models.init import load_frozen_model
    from crosspair.recipes import hash_beside

    name = fill_split(options.model, split)
    model = load_frozen_model(name)
    manifest = Manifest.read(fill_split(options.manifest, split))
    check_protocols(model, manifest, options.protocols, config)
    return model, manifest, hash_beside(Recipe, name)


def _subjects(
    split: int | None, model: CPD, manifest: Manifest, options: argparse.Namespace, world: World
) -> list[tuple[Subject, CPD, Features]]:
    """What is tested, and its features, which all processes make together."""
    from crosspair.evaluation.evaluate import randomize_weights
    from crosspair.evaluation.feature_cache import feature_spec
    from crosspair.evaluation.results import fill_split

    model.to(world.device)
    subjects: list[tuple[Subject, CPD]] = [("trained", model)]
    if options.beside_random:
        subjects.append(("random weights", randomize_weights(model, options.seed)))
    found = []
    for of, each in subjects:
        protocol = feature_spec(
            each, manifest, clips=options.clips, precision=options.precision, device=world.device
        )
        folder = options.out.parent / protocol.folder
        if options.features:
            folder = Path(fill_split(str(options.features), split)).resolve()
            folder = folder if each is model else folder.with_name(f"{folder.name}-random")
        found.append((of, each, _encoded(each, manifest, folder, options, world)))
    return found


def _tested(
    model: CPD,
    manifest: Manifest,
    recipe: str,
    subjects: list[tuple[Subject, CPD, Features]],
    options: argparse.Namespace,
    config: FrozenConfig,
) -> tuple[list[Result], Provenance]:
    """What the protocols measure, and where it comes from."""
    from crosspair.evaluation.evaluate import frozen_results
    from crosspair.provenance import provenance

    results: list[Result] = []
    for of, each, features in subjects:
        found = frozen_results(each, manifest, features, options.protocols, config, subject=of)
        results += [result for result in found if result not in results]
    return results, provenance(
        recipe=recipe, model=model.hash, manifest=manifest.hash, seed=options.seed,
        manifest_file=manifest.path.name,
    )  # fmt: skip


def _config(options: argparse.Namespace) -> FrozenConfig:
    """The protocols' settings, of those options that the verb has."""
    from crosspair.evaluation.evaluate import FrozenConfig
    from crosspair.evaluation.linear import LinearConfig
    from crosspair.evaluation.zeroshot import read_templates

    given = vars(options)
    settings: dict[str, Any] = {
        name: given[name]
        for name in ("split", "seed", "k", "weighting", "temperature", "draws")
        if name in given
    }
    for name in ("shares", "classes"):
        if name in given:
            settings[name] = tuple(dict.fromkeys(given[name]))
    if given.get("feature"):
        settings["features"] = (options.feature,)
    if given.get("templates"):
        settings["templates"] = read_templates(options.templates)
    if "epochs" in given:
        settings["linear"] = LinearConfig(
            epochs=options.epochs, lr=options.lr, batch_size=options.train_batch
        )
    return FrozenConfig(**settings)


def _encoded(
    model: CPD,
    manifest: Manifest,
    folder: Path,
    options: argparse.Namespace,
    world: World,
    **how: Any,
) -> Features:
    from crosspair.evaluation.feature_cache import cached_features
    from crosspair.progress import delayed_progress

    with delayed_progress("encoding", "clips", shown=world.is_main) as progress:
        return cached_features(
            model, manifest, folder,
            clips=options.clips, batch_size=options.batch_size, workers=options.workers,
            world=world, precision=options.precision, progress=progress, **how,
        )  # fmt: skip


def add_multiview(kinds: Verbs) -> None:
    verb = kinds.add_parser(
        "multiview",
        help="a fine-tuned classifier: 10 clips × 3 crops a video, softmax averaged",
        epilog="Runs under torchrun, too, with the same results to the last bit.",
    )
    verb.add_argument("--model", required=True, metavar="DIR", help="a classifier's folder")
    verb.add_argument("--manifest", required=True, metavar="M")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    verb.add_argument(
        "--split", choices=("test", "val", "train"), default="test", help="to test on (test)"
    )
    verb.add_argument(
        "--crops", type=int, choices=(1, 3), default=3,
        help="a clip: 3, left, centre and right (the paper's), or 1, the centre",
    )  # fmt: skip
    add_encoding(verb)
    verb.set_defaults(verb=_multiview)


def _multiview(options: argparse.Namespace) -> None:
    from crosspair.config import FinetuneRecipe
    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.multiview import multiview_results
    from crosspair.evaluation.results import write_results
    from crosspair.models.classifier import Classifier
    from crosspair.provenance import provenance
    from crosspair.recipes import hash_beside
    from crosspair.reporting.tables import print_table

    check_output_path(options.out)
    manifest = Manifest.read(options.manifest)
    model = Classifier.from_pretrained(options.model)
    recipe = hash_beside(FinetuneRecipe, options.model)
    with distributed_context() as world:
        results = multiview_results(
            model.to(world.device), manifest,
            split=options.split, clips=options.clips, crops=options.crops,
            workers=options.workers, world=world, precision=options.precision,
        )  # fmt: skip
        if not world.is_main:
            return
        origin = provenance(
            recipe=recipe, model=model.hash, manifest=manifest.hash, seed=0,
            manifest_file=manifest.path.name,
        )  # fmt: skip
        write_results(options.out, results, origin)
        print_table(results)


def add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report",
        help="the results of several runs side by side, as the paper's Tables 2 to 5 are",
        description="Tables of runs by protocols: each number with its settings and a link to its "
        "file, accuracies with their 95 %% intervals, chance and random weights where they were "
        "measured, and what was published of the same protocol. The folder of an ablation, given "
        "alone, gets its own report written anew.",
    )
    verb.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder that holds results.json, or a file of results, NAME=RUN to name it; or "
        "one folder of crosspair ablate",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, metavar="DIR",
        help="gets report.html, report.md and report.csv; those of an ablation are in its folder",
    )  # fmt: skip
    verb.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspair.reporting.ablation import write_ablation_report
    from crosspair.reporting.ablation_tables import ABLATION
    from crosspair.reporting.summary import read_runs, write_summary
    from crosspair.reporting.tables import pluralize

    ablations = [run for run in options.runs if (Path(run) / ABLATION).is_file()]
    if ablations and (len(options.runs) > 1 or options.out):
        raise RunError(f"{ablations[0]} is an ablation: report it alone and without --out")
    if ablations:
        page = write_ablation_report(Path(ablations[0]))
        print(f"{page}: the ablation's report; report.md, report.csv beside it")
        return
    if options.out is None:
        raise RunError("--out DIR is missing: it gets report.html, report.md and report.csv")
    runs = read_runs(options.runs)
    frame = write_summary(options.out, runs)
    numbers = (frame.of != "published").sum()
    print(
        f"{options.out / 'report.html'}: {numbers} numbers of {pluralize(len(runs), 'run')} in "
        f"{pluralize(frame.table.nunique(), 'table')}; report.md, report.csv beside it"
    )
