#!/usr/bin/env python
"""Train and evaluate a detector from a configuration file; `--help` lists the flags."""

from resnest_det.engine.train_net import command

if __name__ == "__main__":
    command()
