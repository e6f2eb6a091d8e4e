#!/usr/bin/env python
"""`resnest-det train-classifier`, from a checkout; `--help` lists the flags."""

from resnest_det.commands import run

if __name__ == "__main__":
    run("train-classifier")
