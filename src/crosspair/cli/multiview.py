"""``crosspair evaluate multiview``: a classifier under the test of 30 views."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import check_place, whole_number

if TYPE_CHECKING:
    from crosspair.cli.verbs import Verbs


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
    verb.add_argument("--clips", type=whole_number(1), default=10, help="a video; the paper's: 10")
    verb.add_argument(
        "--crops", type=int, choices=(1, 3), default=3,
        help="a clip: 3, left, centre and right (the paper's), or 1, the centre",
    )  # fmt: skip
    verb.add_argument(
        "--workers", type=whole_number(0), default=2, help="decoding processes (default: 2)"
    )
    verb.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="auto: bfloat16 where the processor computes in it",
    )  # fmt: skip
    verb.set_defaults(verb=_multiview)


def _multiview(options: argparse.Namespace) -> None:
    from crosspair.config import FinetuneRecipe
    from crosspair.corpora import Manifest
    from crosspair.distributed import joined
    from crosspair.evaluation import provenance, write_results
    from crosspair.evaluation.multiview import multiview_results
    from crosspair.models import Classifier
    from crosspair.recipes import read_recipe, recipe_hash
    from crosspair.reporting.table import print_table

    check_place(options.out)
    manifest = Manifest.read(options.manifest)
    model = Classifier.from_pretrained(options.model)
    recipe = Path(options.model).parent / "recipe.yaml"  # a run's model lies beside its recipe
    with joined() as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        results = multiview_results(
            model.to(world.device), manifest,
            split=options.split, clips=options.clips, crops=options.crops,
            workers=options.workers, world=world, precision=options.precision,
        )  # fmt: skip
        if not world.is_main:
            return
        known = recipe.is_file()
        origin = provenance(
            recipe=recipe_hash(read_recipe(FinetuneRecipe, str(recipe))) if known else "",
            model=model.hash, manifest=manifest.hash, seed=0,
            manifest_file=manifest.path.name,
        )  # fmt: skip
        write_results(options.out, results, origin)
        print_table(results)
