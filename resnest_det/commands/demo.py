"""The command `demo`: a local page to try a trained detector on pictures."""

import argparse
import tempfile
import threading
from collections.abc import Sequence

from resnest_det.commands.model_flags import MEGA, add_model_flags, check_model_flags, predictor_of

EXAMPLES = """
examples:
  resnest-det demo output/mine
  resnest-det demo mask_rcnn_ResNeSt50_FPN --confidence-threshold 0.7 --port 8080
"""


def argument_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description="Open a local page: drop a picture in, and see what a trained detector finds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_flags(parser, port=7860, threshold=0.5)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, and serve the page until SIGINT or SIGTERM comes.

    Raises:
        UserError: bad input of any kind, or a package of the extra is missing.
    """
    args = argument_parser().parse_args(arguments)
    check_model_flags(args)
    from resnest_det.inference.demo_page import make_page, open_page  # needs the extra, which --help does not

    predictor = predictor_of(args, score_threshold=0)
    with tempfile.TemporaryDirectory(prefix="resnest_det_demo_", ignore_cleanup_errors=True) as folder:
        page = make_page(predictor, args.confidence_threshold, int(args.max_pixels * MEGA), folder)
        address = open_page(page, args.host, args.port, int(args.max_upload * MEGA))
        print(f"the page is at {address}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)
