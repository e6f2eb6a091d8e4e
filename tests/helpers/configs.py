"""Configuration keys of models and runs that are small enough for a test."""

# Of every small run: no GPU, no worker processes.
HERE = {"MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0}


def narrow(width: int, channels: int) -> dict[str, int]:
    """A ResNeSt as deep as its recipe says, with `width` channels in a block's bottleneck and `channels` in the maps of res2."""
    return {"MODEL.RESNETS.WIDTH_PER_GROUP": width, "MODEL.RESNETS.RES2_OUT_CHANNELS": channels}


def typed(keys: dict) -> list[str]:
    """KEY, VALUE, ... as they are typed after the flags of a command."""
    return [str(item) for pair in keys.items() for item in pair]


# A run of panoptic_ResNeSt14_FPN_shapes over a few images.
TINY_PANOPTIC = HERE | narrow(16, 32)
TINY_PANOPTIC |= {
    "MODEL.FPN.OUT_CHANNELS": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.PRECISE_BN.NUM_ITER": 1,
}
TINY_PANOPTIC |= {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 3, "SOLVER.STEPS": (2,), "SOLVER.WARMUP_ITERS": 0}
