"""``crosspair evaluate multiview``: a classifier under the test of 30 views."""

from __future__ import annotations

import argparse
from pathlib import Path

from crosspair.cli.verbs import Verbs, add_encoding, check_place, processes


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
    from crosspair.corpora import Manifest
    from crosspair.evaluation import provenance, write_results
    from crosspair.evaluation.multiview import multiview_results
    from crosspair.models import Classifier
    from crosspair.recipes import hash_beside
    from crosspair.reporting.table import print_table

    check_place(options.out)
    manifest = Manifest.read(options.manifest)
    model = Classifier.from_pretrained(options.model)
    recipe = hash_beside(FinetuneRecipe, options.model)
    with processes() as world:
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
