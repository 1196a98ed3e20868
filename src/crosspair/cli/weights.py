"""``crosspair import-weights``, ``crosspair export`` and ``crosspair publish``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crosspair.cli.options import Verbs


def add_import_weights(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "import-weights",
        help="convert weights of another project to a model folder",
        description="Supported are checkpoints of the paper's authors (both towers), slow-only 3D "
        "ResNets of PySlowFast, pytorchvideo and mmaction2, and 2D ResNets, which are inflated. "
        "Only tensors are read. Pass the folder to --init of pretrain and finetune.",
    )
    verb.add_argument("file", metavar="FILE", help=".pth, .pyth, .pt or .safetensors")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder")
    verb.add_argument(
        "--tokenizer", metavar="DIR",
        help="folder with DistilBERT's config.json and tokenizer files, for the authors' "
        "checkpoints; without it, the text tower is skipped",
    )  # fmt: skip
    for name, description in (
        ("frames", "frames of a clip"),
        ("stride", "distance between frames in 1/30 s"),
        ("size", "side of the crop in pixels"),
    ):
        default = "(default: as configured in the file, or the project's usual value)"
        verb.add_argument(f"--{name}", type=int, metavar="N", help=f"{description} {default}")
    verb.set_defaults(verb=_import_weights)


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
    file = Path(options.file).name
    write_card(options.out, data=f"{file} of {imported.project}; its licence applies")
    video, form = model.video, model.clip
    print(
        f"{imported.project}: ResNet-{video.depth} of width {video.width}, shortcut "
        f"{video.shortcut}; clips of {form.frames} frames, {form.stride}/30 s apart, {form.size} px"
    )
    for line in imported.skipped:
        print(f"skipped: {line}")
    if model.untrained:
        print(f"untrained: {', '.join(model.untrained)}")
    print(f"model: {options.out}")
    print(
        f"to train from it: --init {options.out} video.depth={video.depth} "
        f"video.width={video.width} video.shortcut={video.shortcut}"
    )


def add_export(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="export a model to ONNX or to PyTorch's exported program",
        description="The input is uint8 RGB (B, 3, T, H, W) of any B, T, H and W, normalised "
        "inside. A trained text tower is written to a second file, whose inputs are token ids and "
        "a mask. The outputs are compared with the model's before a file is written.",
    )
    verb.add_argument("--model", required=True, metavar="M", help="model folder or Hub name")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write, e.g. model.onnx"
    )
    verb.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx",
        help="onnx (default), or torch: a .pt2 file of torch.export",
    )  # fmt: skip
    verb.set_defaults(verb=_export)


def _export(options: argparse.Namespace) -> None:
    from crosspair import models
    from crosspair.models.export import TOLERANCE, export

    model = models.load_model(options.model)
    files = export(model, options.out, options.format)
    for file in files:
        print(f"{file.path}: {file.path.stat().st_size / 2**20:.1f} MiB")
        print(f"  inputs   {', '.join(file.inputs)}")
        print(f"  outputs  {', '.join(file.outputs)}")
        for output, difference in file.differences.items():
            print(f"  {output}: maximum difference {difference:.1e} (limit: {TOLERANCE:.0e})")
    if isinstance(model, models.CPD) and "text_encoder" in model.untrained:
        print("no text tower: the model's text tower is untrained")
    elif isinstance(model, models.CPD) and len(files) == 2:
        words = "are the positions of the lower-case words in words.json"
        tokens = "and mask come from the tokenizer in language_model/"
        print(f"ids {words if model.text.encoder == 'words' else tokens} of {options.model}")


def add_publish(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "publish",
        help="write a model card with results, and upload the model to the Hugging Face Hub",
        description="Without --to, only the card (README.md in the model folder) is written.",
    )
    verb.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder")
    verb.add_argument(
        "--results", type=Path, metavar="FILE",
        help="results of evaluate or finetune (default: results.json next to the model folder, if "
        "it exists)",
    )  # fmt: skip
    verb.add_argument(
        "--license", default="unknown", metavar="NAME", help="Hub identifier, e.g. apache-2.0"
    )
    verb.add_argument("--data", default="", metavar="TEXT", help="description of the training data")
    verb.add_argument("--to", metavar="USER/NAME", help="repository on the Hub to upload to")
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.set_defaults(verb=_publish)


def _publish(options: argparse.Namespace) -> None:
    from crosspair.errors import ModelError
    from crosspair.evaluation.results import Result, read_results
    from crosspair.models.hub import push, read_weights, weights_hash, write_card

    if options.private and not options.to:
        raise ModelError("--private requires --to USER/NAME.")
    file = options.results or options.model.absolute().parent / "results.json"
    results: list[Result] = []
    if options.results or file.is_file():
        results, origin = read_results(file)
        model_hash = weights_hash(read_weights(options.model))
        if model_hash not in origin.model.split("+"):
            raise ModelError(
                f"{file} contains results of model {origin.model}, but {options.model} is "
                f"{model_hash}. Evaluate it, or pass its results with --results."
            )
    card = write_card(options.model, results=results, license=options.license, data=options.data)
    print(f"card: {card}, {len(results)} results")
    if options.license == "unknown":
        print("no licence: others may not use the model. Pass --license.", file=sys.stderr)
    if options.to:
        print(f"model: {push(options.model, options.to, private=options.private)}")
