"""Commands for weights: import-weights, export, publish."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crosspair.cli.options import Subparsers


def add_import_weights(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "import-weights",
        help="convert another project's weights to a model folder",
        description="Read checkpoints of the paper's authors (both towers), slow-only 3D ResNets "
        "of PySlowFast, pytorchvideo and mmaction2, and 2D ResNets, which are inflated. Only "
        "tensors are read. Use the folder as --init of pretrain and finetune.",
    )
    parser.add_argument("file", metavar="FILE", help=".pth, .pyth, .pt or .safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder")
    parser.add_argument(
        "--tokenizer", metavar="DIR",
        help="for the authors' checkpoints: a folder with DistilBERT's config.json and tokenizer "
        "files; without it, the text tower is not imported",
    )  # fmt: skip
    for name, meaning in (
        ("frames", "frames per clip"),
        ("stride", "distance of frames in 1/30 s"),
        ("size", "crop size in pixels"),
    ):
        parser.add_argument(
            f"--{name}", type=int, metavar="N",
            help=f"{meaning} (default: from the file, or the project's usual value)",
        )  # fmt: skip
    parser.set_defaults(command=_import_weights)


def _import_weights(options: argparse.Namespace) -> None:
    from crosspair.models.hub import write_card
    from crosspair.models.import_weights import import_weights

    clip = {name: getattr(options, name) for name in ("frames", "stride", "size")}
    imported = import_weights(
        options.file,
        tokenizer=options.tokenizer,
        clip={name: value for name, value in clip.items() if value is not None},
    )
    model = imported.model
    model.save_pretrained(options.out)
    origin = f"weights of {imported.project}, from {Path(options.file).name}; its licence applies"
    write_card(options.out, data=origin)
    video, form = model.video, model.clip
    print(
        f"{imported.project}: ResNet-{video.depth}, width {video.width}, shortcut {video.shortcut};"
        f" clips of {form.frames} frames, {form.stride}/30 s apart, {form.size} px"
    )
    for line in imported.skipped:
        print(f"skipped: {line}")
    if model.untrained:
        print(f"untrained: {', '.join(model.untrained)}")
    print(f"model: {options.out}")
    print(
        f"use: --init {options.out} video.depth={video.depth} video.width={video.width} video.shortcut={video.shortcut}"
    )


def add_export(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "export",
        help="export a model to ONNX or a PyTorch exported program",
        description="The exported video tower takes uint8 RGB clips (B, 3, T, H, W) of any B, T, H "
        "and W, and normalises them itself. If the model has a text tower, it is written to a "
        "second file, which takes token ids and a mask. The outputs are compared with the model's "
        "before a file is written.",
    )
    parser.add_argument("--model", required=True, metavar="M", help="a model folder or Hub name")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="for example model.onnx")
    parser.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx",
        help="onnx (default), or torch for a .pt2 file of torch.export",
    )  # fmt: skip
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    from crosspair import models
    from crosspair.models.export import TOLERANCE, export

    model = models.load_model(options.model)
    files = export(model, options.out, options.format)
    for file in files:
        size = file.path.stat().st_size / 2**20
        print(f"{file.path}: {size:.1f} MiB")
        print(f"  inputs   {', '.join(file.inputs)}")
        print(f"  outputs  {', '.join(file.outputs)}")
        for name, difference in file.differences.items():
            print(f"  {name}: maximum difference {difference:.1e} (tolerance {TOLERANCE:.0e})")
    if isinstance(model, models.CPD) and "text_encoder" in model.untrained:
        print("text tower not exported: it is untrained")
    elif isinstance(model, models.CPD) and len(files) == 2:
        if model.text.encoder == "words":
            print(f"token ids: indices of lower-case words in words.json of {options.model}")
        else:
            print(f"token ids and mask: from the tokenizer in language_model/ of {options.model}")


def add_publish(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "publish",
        help="write a model card with results, and upload the model to the Hugging Face Hub",
        description="Without --to, only the model card README.md in the model folder is written.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder")
    parser.add_argument(
        "--results", type=Path, metavar="FILE",
        help="results of evaluate or finetune (default: results.json in the parent folder of DIR, "
        "if it exists)",
    )  # fmt: skip
    parser.add_argument("--license", default="unknown", metavar="NAME", help="Hub licence name: apache-2.0, ...")
    parser.add_argument("--data", default="", metavar="TEXT", help="description of training data")
    parser.add_argument("--to", metavar="USER/NAME", help="Hub repository to upload to")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is created")
    parser.set_defaults(command=_publish)


def _publish(options: argparse.Namespace) -> None:
    from crosspair.errors import ModelError
    from crosspair.evaluation.results import Result, read_results
    from crosspair.models.hub import push, read_weights, weights_hash, write_card

    if options.private and not options.to:
        raise ModelError("--private requires --to USER/NAME")
    file = options.results or options.model.absolute().parent / "results.json"
    results: list[Result] = []
    if options.results or file.is_file():
        results, origin = read_results(file)
        model_hash = weights_hash(read_weights(options.model))
        if model_hash not in origin.model.split("+"):
            raise ModelError(
                f"{file} has results of model {origin.model}, but {options.model} is {model_hash}; "
                "evaluate this model, or pass its results with --results"
            )
    card = write_card(options.model, results=results, license=options.license, data=options.data)
    print(f"card: {card}, {len(results)} results")
    if options.license == "unknown":
        print("warning: without a licence, others may not use the model: --license", file=sys.stderr)
    if options.to:
        print(f"model: {push(options.model, options.to, private=options.private)}")
