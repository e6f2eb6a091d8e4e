"""Translate a configuration and its checkpoint to MMDetection, or an MMDetection checkpoint back.

    to_mmdet.py --config-file mask_rcnn_ResNeSt50_FPN --weights output/model_final.pth --out mm
    to_mmdet.py --config-file mask_rcnn_ResNeSt50_FPN --from work_dirs/iter_90000.pth --out back

The first writes mm/mask_rcnn_ResNeSt50_FPN.py and .pth, for MMDetection's tools/test.py, tools/train.py and Python interface.
The second writes back/mask_rcnn_ResNeSt50_FPN.pth, for MODEL.WEIGHTS here and in Detectron2. MMDetection need not be installed.
"""

import argparse
from pathlib import Path

import torch

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.configuration.classes import check_classes
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.solver import scale_to_world_size
from resnest_det.configuration.standalone import register_datasets_of, with_datasets
from resnest_det.data.catalog import get_dataset
from resnest_det.errors import UserError
from resnest_det.files import atomic_write, prepare_output_dir
from resnest_det.integrations.mmdet_checkpoint import read_for_mmdet, read_from_mmdet
from resnest_det.integrations.mmdet_config import DIFFERENCES, config_text, mmdet_config


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DIFFERENCES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML file, or the name of a bundled recipe")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help="checkpoint of the built-in detector or Detectron2 to translate")
    source.add_argument("--from", dest="theirs", metavar="FILE", help="MMDetection checkpoint to translate back")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files in DIR")
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="how many processes will train, sharing SOLVER.IMS_PER_BATCH images (default: 1)",
    )
    add_register_flags(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set, after all flags")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    if args.num_processes < 1:
        raise UserError(f"--num-processes {args.num_processes}: at least 1 is needed")
    cfg = scale_to_world_size(load_config(args.config_file, args.opts), args.num_processes)
    register_datasets_of(with_datasets(cfg, registered_datasets(args)))
    stem = Path(args.config_file).name.removesuffix(".yaml")
    checkpoint, config_file = args.out / f"{stem}.pth", args.out / f"{stem}.py"
    for path in (checkpoint,) if args.theirs else (checkpoint, config_file):
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists; add --overwrite to replace it")

    if args.theirs:
        content = {"model": read_from_mmdet(cfg, args.theirs), "__author__": "resnest_det"}
        prepare_output_dir(args.out)
    else:
        content, text = translate(cfg, args, stem, checkpoint)
        prepare_output_dir(args.out)
        with atomic_write(config_file) as file:
            file.write(text)
        print(f"wrote {config_file}; to_mmdet.py --help lists what is not the same in MMDetection")
    with atomic_write(checkpoint, "wb") as file:
        torch.save(content, file)
    print(f"wrote {checkpoint}: {len(content['model' if args.theirs else 'state_dict'])} parameters and buffers")


def translate(cfg, args: argparse.Namespace, stem: str, checkpoint: Path) -> tuple[dict, str]:
    """The content of MMDetection's checkpoint, and the text of its configuration."""
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: MMDetection evaluates one dataset; name one")
    datasets = [get_dataset(cfg.DATASETS.TEST[0])]
    try:
        datasets += [get_dataset(name) for name in cfg.DATASETS.TRAIN]
    except UserError as error:
        print(f"without DATASETS.TRAIN the configuration can only be evaluated: {error}")
        del datasets[1:]
    check_classes(datasets, cfg)
    test, *train = [dataset.metadata for dataset in datasets]
    config = mmdet_config(cfg, test=test, train=train, num_processes=args.num_processes, checkpoint=str(checkpoint.resolve()))
    state = read_for_mmdet(cfg, args.weights)
    metainfo = config["test_dataloader"]["dataset"]["metainfo"]
    return {"state_dict": state, "meta": {"dataset_meta": metainfo}}, config_text(config, f"{stem}.yaml")
