"""``crosspair features`` and ``crosspair evaluate``: what a frozen model is worth."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.multiview import add_multiview
from crosspair.cli.verbs import (
    Verbs,
    add_cluster,
    add_encoding,
    add_seed,
    add_splits,
    check_place,
    on_cluster,
    processes,
    whole_number,
)

if TYPE_CHECKING:
    from crosspair.corpora import Manifest
    from crosspair.distributed import World
    from crosspair.evaluation import Features, FrozenConfig, Provenance, Result
    from crosspair.evaluation.results import Subject
    from crosspair.models import CPD

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
        "--batch-size", type=whole_number(1), default=32,
        help="clips at a time, at most (default: 32)",
    )  # fmt: skip


def _features(options: argparse.Namespace) -> None:
    ray = on_cluster(options)

    from crosspair.corpora import Manifest
    from crosspair.evaluation.on_ray import encode_on_ray
    from crosspair.models import frozen_model

    with processes() as world:
        manifest, model = Manifest.read(options.manifest), frozen_model(options.model)
        how = {"encode": partial(encode_on_ray, address=options.address)} if ray else {}
        found = _encoded(model.to(world.device), manifest, options.out, options, world, **how)
        if world.is_main:
            print(f"{options.out}: features of {len(found.rows)} of {len(manifest)} videos")


def _evaluate(options: argparse.Namespace) -> None:
    from crosspair.evaluation import write_results
    from crosspair.evaluation.officialsplits import check_manifest_name, write_over_splits
    from crosspair.reporting.table import print_table

    check_place(options.out)
    config = _config(options)
    if options.splits:
        check_manifest_name(options.manifest)
    with processes() as world:
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
            shown = write_over_splits(options.out, {s: each for s, each in found.items() if s})
        else:
            shown, origin = found[None]
            write_results(options.out, shown, origin)
        if getattr(options, "details", None):
            from crosspair.reporting.confusion import write_details

            for split, (results, _) in found.items():
                write_details(options.details / (f"split{split}" if split else ""), results)
        print_table(shown)


def _inputs(
    options: argparse.Namespace, config: FrozenConfig, split: int | None
) -> tuple[CPD, Manifest, str]:
    """The model and the videos of an official split, or of the one there is; the recipe's hash."""
    from crosspair.config import Recipe
    from crosspair.corpora import Manifest
    from crosspair.evaluation import check_protocols
    from crosspair.evaluation.officialsplits import name_of_split
    from crosspair.models import frozen_model
    from crosspair.recipes import hash_beside

    name = name_of_split(options.model, split)
    model = frozen_model(name)
    manifest = Manifest.read(name_of_split(options.manifest, split))
    check_protocols(model, manifest, options.protocols, config)
    return model, manifest, hash_beside(Recipe, name)


def _subjects(
    split: int | None, model: CPD, manifest: Manifest, options: argparse.Namespace, world: World
) -> list[tuple[Subject, CPD, Features]]:
    """What is tested, and its features, which all processes make together."""
    from crosspair.evaluation import protocol_of, random_like
    from crosspair.evaluation.officialsplits import name_of_split

    model.to(world.device)
    subjects: list[tuple[Subject, CPD]] = [("trained", model)]
    if options.beside_random:
        subjects.append(("random weights", random_like(model, options.seed)))
    found = []
    for of, each in subjects:
        protocol = protocol_of(
            each, manifest, clips=options.clips, precision=options.precision, device=world.device
        )
        folder = options.out.parent / protocol.folder
        if options.features:
            folder = Path(name_of_split(str(options.features), split)).resolve()
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
    from crosspair.evaluation import frozen_results, provenance

    results: list[Result] = []
    for of, each, features in subjects:
        found = frozen_results(each, manifest, features, options.protocols, config, of=of)
        results += [result for result in found if result not in results]
    return results, provenance(
        recipe=recipe, model=model.hash, manifest=manifest.hash, seed=options.seed,
        manifest_file=manifest.path.name,
    )  # fmt: skip


def _config(options: argparse.Namespace) -> FrozenConfig:
    """The protocols' settings, of those options that the verb has."""
    from crosspair.evaluation import FrozenConfig, LinearConfig
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
    from crosspair.evaluation import cached_features
    from crosspair.progress import late_progress

    with late_progress("encoding", "clips", shown=world.is_main) as progress:
        return cached_features(
            model, manifest, folder,
            clips=options.clips, batch_size=options.batch_size, workers=options.workers,
            world=world, precision=options.precision, progress=progress, **how,
        )  # fmt: skip
