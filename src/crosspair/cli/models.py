"""Verbs for models and results: evaluate, report, import-weights, export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from crosspair.cli.results import print_line
from crosspair.errors import ModelError, RunError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt


class EvaluationOptions(TypedDict, total=False):
    """Options of `crosspair.evaluate`.

    Attributes:
        split: split to test on (default: test); classifiers are trained on the splits before it
        features: folder of the features (default: next to FILE)
        feature: before or after the projection head (default: both)
        random_baseline: also test random weights (default: for all protocols)
        compare_with: other models to compare with, as for --model
        details: folder for accuracies by class and confusion matrices
    """

    split: Literal["test", "val", "train"]
    features: Path
    feature: Literal["visual", "embedding"]
    random_baseline: bool | None
    compare_with: list[str]
    details: Path
    clips: PositiveInt
    seed: NonNegativeInt
    device: str
    precision: Literal["auto", "bf16", "fp32"]
    workers: NonNegativeInt
    batch_size: PositiveInt


def run_evaluate(
    overrides: tuple[str, ...],
    *,
    model: str,
    manifest: str,
    out: Path,
    protocols: str = "",
    splits: str = "",
    **options: Unpack[EvaluationOptions],
) -> None:
    """Evaluate a model: retrieval, kNN, linear, low-shot, zero-shot, few-shot, multi-view.

    Runs under torchrun with identical results.

    Args:
        overrides: settings of protocols, such as knn.k=5, lowshot.fractions=[0.1],
            zeroshot.templates=FILE or fewshot.labels=4; docs/evaluate.md lists all
        model: model folder, Hub name, or imagenet:FILE (2D ResNet)
        manifest: videos with labels or titles
        out: results file (JSON) to write
        protocols: some of retrieval,knn,linear,lowshot,zeroshot,fewshot,attentive; for a classifier
            multiview (default: the first five, as far as model and manifest allow)
        splits: official splits to average over, such as 1,2,3; they replace {} in --model,
            --compare-with, --manifest and --features
    """
    from crosspair import api
    from crosspair.cli.parser import parse_splits
    from crosspair.reporting.tables import print_table

    names = protocols.split(",") if protocols else None
    results = api.evaluate(model, manifest, names, out=out, splits=parse_splits(splits), overrides=overrides, **options)
    if results:
        print_table(results)


def run_report(runs: list[str], *, out: Path | None = None) -> None:
    """Compare the results of several runs in tables like Tables 2 to 5 of the paper.

    Write tables of runs by protocol: values with settings and a link to their file, 95 % intervals
    of accuracies, chance and random weights if measured, and published results of the same
    protocol. Given one ablation folder, regenerate its report.

    Args:
        runs: a run folder with results.json, or a results file; NAME=RUN sets its name; or one
            folder of crosspair ablate
        out: folder for report.html, report.md and report.csv (not for an ablation, whose report is
            written to its folder)
    """
    from crosspair.files import check_output
    from crosspair.reporting.ablation import write_ablation_report
    from crosspair.reporting.ablation_results import is_ablation
    from crosspair.reporting.summary import read_runs, write_summary
    from crosspair.reporting.tables import pluralize

    ablations = [run for run in runs if is_ablation(Path(run))]
    if ablations and (len(runs) > 1 or out):
        raise RunError(f"{ablations[0]} is an ablation: pass it alone and without --out")
    if ablations:
        print_line(f"{write_ablation_report(Path(ablations[0]))}, report.md, report.csv, results.parquet")
        return
    if out is None:
        raise RunError("--out DIR is required, for report.html, report.md and report.csv")
    check_output(out / "report.html", "a report", "report.md", "report.csv")
    loaded = read_runs(runs)
    frame = write_summary(out, loaded)
    values = (frame.of != "published").sum()
    print_line(
        f"{out / 'report.html'}, report.md, report.csv: {values} values of "
        f"{pluralize(len(loaded), 'run')} in {pluralize(frame.table.nunique(), 'table')}"
    )


def run_import_weights(file: str, overrides: tuple[str, ...], *, out: Path, tokenizer: str | None = None) -> None:
    """Convert another project's weights to a model folder.

    Read checkpoints of the paper's authors (both towers), slow-only 3D ResNets of PySlowFast,
    pytorchvideo and mmaction2, and 2D ResNets, which are inflated. Only tensors are read. Use the
    folder as --init of pretrain and finetune.

    Args:
        file: .pth, .pyth, .pt or .safetensors
        overrides: clip.frames, clip.stride (in 1/30 s) and clip.size (in pixels); by default from the
            file, or the project's usual values
        out: model folder
        tokenizer: for the authors' checkpoints: a folder with DistilBERT's config.json and
            tokenizer files; without it, the text tower is not imported
    """
    from crosspair.files import check_output
    from crosspair.models.hub import CARD_FILE, CONFIG_FILE, MODEL_TYPES, read_config, write_card
    from crosspair.models.import_weights import import_weights

    if (out / CONFIG_FILE).exists():  # a model folder, which is replaced
        read_config(out, *MODEL_TYPES)
        check_output(out / CARD_FILE, "a model card", error_type=ModelError)
    imported = import_weights(file, tokenizer=tokenizer, clip=_parse_clip(overrides))
    model = imported.model
    model.save_pretrained(out)
    write_card(out, data=f"weights of {imported.project}, from {Path(file).name}; its licence applies")
    video, form = model.video, model.clip
    print_line(
        f"{imported.project}: ResNet-{video.depth}, width {video.width}, shortcut {video.shortcut};"
        f" clips of {form.frames} frames, {form.stride}/30 s apart, {form.size} px"
    )
    for line in imported.skipped:
        print_line(f"skipped: {line}")
    if model.untrained:
        print_line(f"untrained: {', '.join(model.untrained)}")
    print_line(f"model: {out}")
    print_line(f"use: --init {out} video.depth={video.depth} video.width={video.width} video.shortcut={video.shortcut}")


def _parse_clip(overrides: Sequence[str]) -> dict[str, int]:
    """Parse clip.frames, clip.stride and clip.size."""
    from crosspair.cli.parser import parse_pairs

    settings = parse_pairs(overrides, "key=value")
    for key, value in settings.items():
        if key not in {"clip.frames", "clip.stride", "clip.size"} or not value.isdecimal() or int(value) < 1:
            raise ModelError(f"{key}={value} must be clip.frames, clip.stride or clip.size with a number from 1")
    return {key.removeprefix("clip."): int(value) for key, value in settings.items()}


def run_export(
    *,
    model: str,
    out: Path | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    hub: str | None = None,
    card: bool = False,
    results: Path | None = None,
    license: str = "unknown",
    data: str = "",
    private: bool = False,
) -> None:
    """Export a model to ONNX or a PyTorch exported program, or publish it.

    --out: the exported video tower takes uint8 RGB clips (B, 3, T, H, W) and normalises them itself.
    A text tower is written to a second file, which takes token ids and a mask. The outputs are
    compared with the model's before a file is written. --card and --hub publish a model folder.

    Args:
        model: a model folder, or for --out also a Hub name
        out: file to export to, for example model.onnx
        format: format of --out; torch: a .pt2 file of torch.export
        hub: upload the folder to the Hub repository USER/NAME, with a model card
        card: write the model card README.md in the model folder
        results: results of evaluate or finetune for the card (default: results.json in the parent
            folder of the model, if it exists)
        license: Hub licence name for the card: apache-2.0, ...
        data: description of the training data for the card
        private: make the repository private if it is created
    """
    if not (out or hub or card):
        raise ModelError("--out FILE, --card or --hub USER/NAME is required")
    if private and not hub:
        raise ModelError("--private requires --hub USER/NAME")
    if out:
        _export_file(model, out, format)
    if hub or card:
        _write_card(Path(model), results, license, data)
    if hub:
        from crosspair.models.hub import push

        print_line(f"model: {push(model, hub, private=private)}")


def _export_file(source: str, out: Path, format: Literal["onnx", "torch"]) -> None:
    from crosspair import models
    from crosspair.models.export import TOLERANCE, export

    model = models.load_model(source)
    files = export(model, out, format)
    for file in files:
        print_line(f"{file.path}: {file.path.stat().st_size / 2**20:.1f} MiB")
        print_line(f"  inputs   {', '.join(file.inputs)}")
        print_line(f"  outputs  {', '.join(file.outputs)}")
        for name, difference in file.differences.items():
            print_line(f"  {name}: maximum difference {difference:.1e} (tolerance {TOLERANCE:.0e})")
    if isinstance(model, models.CPD) and "text_encoder" in model.untrained:
        print("text tower not exported: it is untrained")
    elif isinstance(model, models.CPD) and len(files) == 2:
        if model.text.encoder == "words":
            print_line(f"token ids: indices of lower-case words in words.json of {source}")
        else:
            where = "in language_model/ of" if model.text.encoder == "transformer" else "of"
            print_line(f"token ids and mask: from the tokenizer {where} {source}")


def _write_card(model: Path, results: Path | None, license: str, data: str) -> None:
    """Write the model card, with results of this model only."""
    from crosspair.evaluation.results import Result, read_results
    from crosspair.models.hub import read_weights, weights_hash, write_card

    file = results or model.absolute().parent / "results.json"
    found: list[Result] = []
    if results or file.is_file():
        found, origin = read_results(file)
        model_hash = weights_hash(read_weights(model))
        if model_hash not in origin.model.split("+"):
            raise ModelError(
                f"{file} has results of model {origin.model}, but {model} is {model_hash}; "
                "evaluate this model, or pass its results with --results"
            )
    card = write_card(model, results=found, license=license, data=data)
    print_line(f"card: {card}, {len(found)} results")
    if license == "unknown":
        print("warning: without a licence, others may not use the model: --license", file=sys.stderr)
