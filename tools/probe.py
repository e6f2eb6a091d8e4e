#!/usr/bin/env python
"""`resnest-det probe`, from a checkout; `--help` lists the flags."""

from resnest_det.commands import run

if __name__ == "__main__":
    run("probe")
