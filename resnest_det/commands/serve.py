"""The command `serve`: a trained detector over HTTP."""

import argparse
import sys
from collections.abc import Sequence

from resnest_det.commands.model_flags import MEGA, add_classes_flag, add_model_flags, check_model_flags, classes_in, predictor_of
from resnest_det.errors import UserError

EXAMPLES = """
examples:
  resnest-det serve output/mine
  resnest-det serve output/mine/model_final.pth --port 9000 --batch 16 --classes person,car
  curl -F file=@street.jpg http://127.0.0.1:8000/predict
  curl --data-binary @street.jpg http://127.0.0.1:8000/predict
"""


def argument_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description="Answer POST /predict over HTTP with what a trained detector finds; /health and /metrics say how it does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_flags(parser, port=8000, threshold=0.5)
    add_classes_flag(parser)
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images that go through the network together (8)")
    parser.add_argument(
        "--window", type=float, default=5, metavar="MS", help="milliseconds that an image waits for others, if none is there (5)"
    )
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="until an answer has to be there (30)")
    parser.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="requests that are answered at a time; others are refused (256)"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, and answer until SIGINT or SIGTERM comes.

    Raises:
        UserError: bad input of any kind, or a package of the extra is missing.
    """
    args = argument_parser().parse_args(arguments)
    check_model_flags(args)
    for flag, value, least, most in (
        ("--batch", args.batch, 1, 1024),
        ("--window", args.window, 0, 1000),
        ("--timeout", args.timeout, 0.1, 3600),
        ("--max-waiting", args.max_waiting, 1, 100_000),
    ):
        if not least <= value <= most:
            raise UserError(f"{flag} {value}: expected a number from {least} to {most}")
    from resnest_det.inference.server import Limits, listen, make_app, make_server  # needs the extra, which --help does not

    limits = Limits(int(args.max_upload * MEGA), int(args.max_pixels * MEGA), args.timeout, args.max_waiting)
    with listen(args.host, args.port) as listening:
        predictor = predictor_of(args, score_threshold=args.confidence_threshold, classes=classes_in(args))
        server = make_server(make_app(predictor, limits, args.batch, args.window / 1000), limits)
        host = f"[{args.host}]" if ":" in args.host else args.host
        # Else whoever computes in Python keeps the thread that answers waiting for 5 ms each time.
        sys.setswitchinterval(0.001)
        print(f"serving {predictor.backend.source} at http://{host}:{listening.getsockname()[1]}/predict", flush=True)
        server.run(sockets=[listening])
