"""An earlier name of `resnest_det.inference.export`, which documents had."""

import importlib


def __getattr__(name: str):
    return getattr(importlib.import_module("resnest_det.inference.export"), name)
