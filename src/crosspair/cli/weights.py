"""``crosspair import-weights``, ``crosspair export`` and ``crosspair publish``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crosspair.cli.options import Verbs


def add_import_weights(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "import-weights",
        help="make a model folder of another project's weights",
        description="Reads the checkpoints of the paper's authors (both towers); slow-only 3D "
        "ResNets of PySlowFast, pytorchvideo and mmaction2; and 2D ResNets, which are inflated. "
        "Only tensors are read. --init of pretrain and finetune begins with the folder.",
    )
    verb.add_argument("file", metavar="FILE", help=".pth, .pyth, .pt or .safetensors")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder")
    verb.add_argument(
        "--tokenizer", metavar="DIR",
        help="of the authors' checkpoints: a folder with DistilBERT's config.json and tokenizer "
        "files, which are not in them; without it the text tower is left out",
    )  # fmt: skip
    for name, what in (
        ("frames", "frames of a clip"),
        ("stride", "30ths of a second between them"),
        ("size", "side of the crop in pixels"),
    ):
        told = f"{what} (default: as the file tells, or as is usual)"
        verb.add_argument(f"--{name}", type=int, metavar="N", help=told)
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
    origin = f"weights of {imported.project}, from {Path(options.file).name}; its licence holds"
    write_card(options.out, data=origin)
    video, form = model.video, model.clip
    print(
        f"{imported.project}: ResNet-{video.depth} of width {video.width}, shortcut "
        f"{video.shortcut}; clips of {form.frames} frames, {form.stride}/30 s apart, {form.size} px"
    )
    for line in imported.skipped:
        print(f"left out: {line}")
    if model.untrained:
        print(f"untrained: {', '.join(model.untrained)}")
    given = {"depth": video.depth, "width": video.width, "shortcut": video.shortcut}
    print(f"model: {options.out}")
    print(f"to go on: --init {options.out} {' '.join(f'video.{k}={v}' for k, v in given.items())}")


def add_export(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="write a model for other programs: ONNX, or PyTorch's exported program",
        description="Videos go in as uint8 (B, 3, T, H, W), RGB, of any B, T, H and W, and are "
        "normalised inside. The text tower, where there is one, becomes a file beside FILE that "
        "takes token ids and a mask. Each is run beside the model before it is written.",
    )
    verb.add_argument("--model", required=True, metavar="M", help="a model folder or hub name")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="as model.onnx")
    verb.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx",
        help="onnx (default), or torch: a .pt2 of torch.export",
    )  # fmt: skip
    verb.set_defaults(verb=_export)


def _export(options: argparse.Namespace) -> None:
    from crosspair import models
    from crosspair.models.export import TOLERANCE, export

    model = models.load_model(options.model)
    files = export(model, options.out, options.format)
    for file in files:
        size = file.path.stat().st_size / 2**20
        print(f"{file.path}: {size:.1f} MiB")
        print(f"  in   {', '.join(file.inputs)}")
        print(f"  out  {', '.join(file.outputs)}")
        for what, difference in file.differences.items():
            print(f"  {what}: differs by {difference:.1e} at most (allowed: {TOLERANCE:.0e})")
    if isinstance(model, models.CPD) and "text_encoder" in model.untrained:
        print("no text tower: that of the model is untrained")
    elif isinstance(model, models.CPD) and len(files) == 2:
        words = "are the places of lower-case words in words.json"
        tokens = "and mask come from the tokenizer in language_model/"
        print(f"ids {words if model.text.encoder == 'words' else tokens} of {options.model}")


def add_publish(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "publish",
        help="write a model's card with its results, and upload it to the Hugging Face Hub",
        description="Without --to only the card, README.md in the model folder, is written.",
    )
    verb.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model folder")
    verb.add_argument(
        "--results", type=Path, metavar="FILE",
        help="of evaluate or finetune (default: results.json beside the folder, if there)",
    )  # fmt: skip
    verb.add_argument(
        "--license", default="unknown", metavar="NAME", help="as the hub names it: apache-2.0, …"
    )
    verb.add_argument("--data", default="", metavar="TEXT", help="what it learnt from, for people")
    verb.add_argument("--to", metavar="USER/NAME", help="where to on the hub")
    verb.add_argument("--private", action="store_true", help="if it is made: for you alone")
    verb.set_defaults(verb=_publish)


def _publish(options: argparse.Namespace) -> None:
    from crosspair.errors import ModelError
    from crosspair.evaluation.results import Result, read_results
    from crosspair.models.hub import push, read_weights, weights_hash, write_card

    if options.private and not options.to:
        raise ModelError("--private is of an upload; give --to USER/NAME, too")
    file = options.results or options.model.absolute().parent / "results.json"
    results: list[Result] = []
    if options.results or file.is_file():
        results, origin = read_results(file)
        found = weights_hash(read_weights(options.model))
        if found not in origin.model.split("+"):
            raise ModelError(
                f"{file} is of the model {origin.model}, and {options.model} holds {found}; "
                "evaluate it, or name its results by --results"
            )
    card = write_card(options.model, results=results, license=options.license, data=options.data)
    print(f"card: {card}, {len(results)} results")
    if options.license == "unknown":
        print("nobody may use a model whose licence is unknown: give --license", file=sys.stderr)
    if options.to:
        print(f"model: {push(options.model, options.to, private=options.private)}")
