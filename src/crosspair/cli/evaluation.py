"""``crosspair evaluate``: a model under the protocols of the paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosspair.cli.verbs import Verbs


def add_evaluate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "evaluate", help="retrieval, kNN and zero-shot on the test split, beside random weights"
    )
    verb.add_argument("--model", required=True, metavar="DIR", help="a model folder or hub name")
    verb.add_argument("--manifest", required=True, metavar="M")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    verb.add_argument("--clips", type=int, default=10, help="a video; the paper's and default: 10")
    verb.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    verb.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    verb.set_defaults(verb=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from crosspair.corpora import Manifest
    from crosspair.distributed import World
    from crosspair.evaluation import (
        Features,
        extract_features,
        provenance,
        results_beside_random,
        write_results,
    )
    from crosspair.models import CPD
    from crosspair.progress import progress
    from crosspair.recipes import load_recipe, recipe_hash
    from crosspair.reporting.table import print_table

    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    manifest, model = Manifest.read(options.manifest), CPD.from_pretrained(options.model)

    def extract(each: CPD) -> Features:
        with progress("encoding", len(manifest) * options.clips, "clips") as bar:
            return extract_features(
                each, manifest, clips=options.clips, workers=options.workers, world=world,
                progress=lambda done, _: bar.advance(done),
            )  # fmt: skip

    results, _ = results_beside_random(model.to(world.device), manifest, extract, seed=options.seed)
    recipe = Path(options.model).parent / "recipe.yaml"  # a run's model lies beside its recipe
    origin = provenance(
        recipe=recipe_hash(load_recipe(str(recipe))) if recipe.is_file() else "",
        model=model.hash, manifest=manifest.hash, seed=options.seed,
    )  # fmt: skip
    write_results(options.out, results, origin)
    print_table(results)
