"""Write a classifier, or a feature extractor, as an ONNX, OpenVINO, TorchScript or torch.export file.

    export_model.py --model resnest50 --format onnx --out resnest50.onnx
    export_model.py --model resnest50 --format openvino --out resnest50.xml --bgr --pixels
    export_model.py --model resnest101 --features 1 2 3 4 --format exported --out resnest101.pt2

The file takes any number of images of any size. After writing, it is run and compared with PyTorch. With `--config-file` in
place of `--model` a whole detector is written; `export_model.py --config-file FILE --help` lists the flags of that. See
docs/export.md.
"""

import argparse
from pathlib import Path

from resnest_det import create_model, resolve_weights
from resnest_det.backbone.classifier import IMAGENET_CLASSES
from resnest_det.commands import export_detector
from resnest_det.inference.export import (
    DEFAULT_OPSET,
    FORMATS,
    INPUT_NAME,
    OPSETS,
    DeployedModel,
    check_opset,
    check_path,
    export_model,
    require_back_end,
)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="see resnest_det.list_models()")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write; for openvino its name ends in .xml")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", help="a file, an address or a name of weights to use instead of the published ones")
    weights.add_argument("--untrained", action="store_true", help="random weights, to try a format")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--features",
        nargs="*",
        type=int,
        metavar="INDEX",
        help="output feature maps: all five, of stride 2, 4, 8, 16 and 32, or those with these indices (0 to 4)",
    )
    what.add_argument("--num-classes", type=int, default=IMAGENET_CLASSES, help="outputs; 0 for embeddings (default: 1000)")
    parser.add_argument("--bgr", action="store_true", help="the input's channels are blue, green, red")
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="the input's values are 0 to 255; the network subtracts the mean and divides by the standard deviation",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET}); old tools want old ones",
    )
    parser.add_argument("--probabilities", action="store_true", help="output `prob`, the softmax of the logits")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    if any(argument.split("=")[0] == "--config-file" for argument in arguments):
        export_detector.main(arguments)
        return
    args = parse_arguments(arguments)
    # Checked before weights are downloaded.
    require_back_end(args.format)
    check_path(Path(args.out), args.format)
    check_opset(args.opset, args.format)

    features = {} if args.features is None else {"features_only": True}
    if args.features:
        features["out_indices"] = args.features
    model = create_model(
        args.model,
        pretrained=not (args.untrained or args.checkpoint),
        num_classes=args.num_classes,
        checkpoint_path=resolve_weights(args.checkpoint) if args.checkpoint else None,
        new_head=False,
        **features,
    )
    deployed = DeployedModel(model, bgr=args.bgr, pixels=args.pixels, probabilities=args.probabilities)
    differences = export_model(deployed, args.out, args.format, opset=args.opset)

    channels = "BGR" if args.bgr else "RGB"
    values = "pixels 0 ... 255" if args.pixels else "normalised"
    print(
        f"wrote {args.out}: input {INPUT_NAME} (batch, {deployed.in_channels}, height, width) float32, {channels}, {values}; "
        f"output {', '.join(deployed.output_names)}"
    )
    for shape, difference in differences.items():
        print(f"ran it on {'x'.join(map(str, shape))}: largest difference from PyTorch {difference:.1e} of the largest output")
