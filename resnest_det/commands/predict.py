"""The command `predict`: what a trained detector finds in images and videos, as pictures and files."""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from resnest_det.commands.model_flags import add_classes_flag, add_weights_flags, classes_in
from resnest_det.errors import UserError, printable
from resnest_det.inference.files import Done, Output, claim_folder, predict_images, predict_video
from resnest_det.inference.inputs import Input, check_any, list_inputs
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import PICTURES, write_picture
from resnest_det.inference.tiles import predict_tiled
from resnest_det.inference.video import SUFFIXES as VIDEO_SUFFIXES
from resnest_det.inference.video import is_camera

EXAMPLES = """
examples:
  resnest-det predict output/mine photos/*.jpg
  resnest-det predict output/mine/model_final.pth photos/ --output found --save-json --save-masks
  resnest-det predict mask_rcnn_ResNeSt50_FPN street.jpg --output street_found.jpg --classes person,car
  resnest-det predict --config-file mine.yaml --weights theirs.pkl --input photos/
  resnest-det predict output/mine --input film.mp4 --output film_found.mp4
  resnest-det predict output/mine --input 0 --output camera.mp4
  find . -name '*.jpg' | resnest-det predict output/mine --input -
"""


def argument_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description="Find objects in images and videos, or label their pixels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL IMAGE",
        help="a run's folder, a checkpoint or a recipe, unless --config-file or --weights says what; and images",
    )
    add_weights_flags(parser, threshold=0.5)
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="files, folders, patterns, addresses, videos, the number of a camera, or - for a list on standard input",
    )
    parser.add_argument("--output", default="predictions", metavar="PATH", help="a folder; for one image or video also a file")
    add_classes_flag(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images that go through the network together (1)")
    parser.add_argument(
        "--save-json", action="store_true", help="a JSON file for each image, and COCO results of all; a line for each frame"
    )
    parser.add_argument("--save-masks", action="store_true", help="masks, segment maps or label maps as PNG files")
    parser.add_argument(
        "--tile", metavar="HEIGHTxWIDTH", help="look at images in tiles of so many pixels, and join what they show"
    )
    parser.add_argument("--overlap", type=float, default=0.2, metavar="FRACTION", help="of a tile that its neighbour sees (0.2)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, and write what is found.

    Raises:
        UserError: bad input of any kind; SystemExit with status 1 where some images were skipped.
    """
    args = argument_parser().parse_args(arguments)
    model, weights, words = _model(args)
    tile = _tile(args)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: expected at least 1")
    file = os.path.splitext(args.output)[1].lower() in (*PICTURES, *VIDEO_SUFFIXES) and not os.path.isdir(args.output)
    lines = (line.rstrip("\n") for line in sys.stdin) if "-" in (*words, *args.input) else ()
    inputs, problems = list_inputs([*words, *args.input], lines, leave_out="" if file else args.output)
    check_any(inputs, problems)
    if file:
        _check_file(args.output, inputs)
    predictor = Predictor(model, weights, args.device, args.confidence_threshold, classes_in(args))
    if tile and predictor.classes.stuff.names:
        raise UserError("--tile joins objects, and this model labels pixels: leave it away")
    folder = os.path.dirname(os.path.abspath(args.output)) if file else args.output
    output = Output(folder, args.save_json, args.save_masks, tile, args.overlap, args.batch)
    for problem in problems:
        tell(f"skipped: {problem}")
    skipped = len(problems)
    if file and not inputs[0].is_video:
        skipped += _one_image(predictor, inputs[0], args.output, output)
    else:
        if not file:
            claim_folder(output, predictor)
        skipped += _all(predictor, inputs, output, args.output if file else None)
    if skipped:
        tell(f"{skipped} of the inputs could not be used")
        sys.exit(1)


def tell(line: str) -> None:
    """Say something on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def _model(args: argparse.Namespace) -> tuple[str, str | None, list[str]]:
    if args.config_file or args.weights:
        return args.config_file or args.weights, args.weights if args.config_file else None, args.words
    if not args.words:
        raise UserError(
            "say which model: a run's folder, a checkpoint or a recipe before the images, or --config-file, --weights"
        )
    return args.words[0], None, args.words[1:]


def _tile(args: argparse.Namespace) -> tuple[int, int] | None:
    if not 0 <= args.overlap < 0.9:
        raise UserError(f"--overlap {args.overlap}: expected a fraction from 0 to below 0.9")
    if args.tile is None:
        return None
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", args.tile)
    if not found or min(map(int, found.groups())) < 32:
        raise UserError(f"--tile {args.tile[:40]}: expected HEIGHTxWIDTH in pixels, such as 800x1000, of 32 and more")
    return int(found[1]), int(found[2])


def _check_file(path: str, inputs: Sequence[Input]) -> None:
    video = os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES
    if len(inputs) != 1:
        raise UserError(f"--output {path} is one file, but there are {len(inputs)} inputs: give a folder")
    if inputs[0].is_video != video:
        raise UserError(f"--output {path} is a {'video' if video else 'picture'}, the input is not")
    if os.path.lexists(path):
        raise UserError(f"--output {path} exists: remove it, or give another")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"--output {path}: there is no folder {folder}")


def _one_image(predictor: Predictor, item: Input, path: str, output: Output) -> int:
    picture = predictor.read(item.source)
    if output.tile:
        result = predict_tiled(predictor, picture, output.tile, output.overlap, output.batch)
    else:
        (result,) = predictor.predict_pictures([picture])
    if output.save_json:
        result.save(f"{os.path.splitext(path)[0]}.json")
    if output.save_masks:
        raise UserError("--save-masks needs a folder as --output")
    write_picture(path, result.draw())
    print(f"{path}: {len(result)} objects" if result.classes.things.names else path)
    return 0


def _all(predictor: Predictor, inputs: Sequence[Input], output: Output, file: str | None) -> int:
    """Look at all of them; how many were skipped."""
    skipped = 0
    images = [item for item in inputs if not item.is_video]
    if images:
        done = predict_images(predictor, images, output, tell)
        skipped += done.skipped
        print(f"{output.folder}: {done}")
        if done.skipped == len(images) == len(inputs):
            raise UserError(f"none of the {len(images)} images could be used")
    for item in inputs:
        if not item.is_video:
            continue
        name = f"camera_{item.name}" if is_camera(item.source) else item.name
        path = file or os.path.join(output.folder, f"{name}.mp4")
        if os.path.exists(path):
            print(f"{path} was there already")
            continue
        try:
            done: Done = predict_video(predictor, item.source, path, output, tell, item.source)
            print(f"{path}: {done}")
        except UserError as error:
            if len(inputs) == 1:
                raise
            tell(f"skipped: {error}")
            skipped += 1
    return skipped
