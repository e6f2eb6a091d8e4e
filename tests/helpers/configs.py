"""Configuration keys of models and runs that are small enough for a test."""

# Of every small run: no GPU, no worker processes.
HERE = {"MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0}


def narrow(width: int, channels: int) -> dict[str, int]:
    """A ResNeSt as deep as its recipe says, with `width` channels in a block's bottleneck and `channels` in the maps of res2."""
    return {"MODEL.RESNETS.WIDTH_PER_GROUP": width, "MODEL.RESNETS.RES2_OUT_CHANNELS": channels}


def datasets(train: str, test: str) -> dict[str, str]:
    """Train on one dataset, evaluate on another."""
    return {"DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{test}',)"}


def typed(keys: dict) -> list[str]:
    """KEY, VALUE, ... as they are typed after the flags of a command."""
    return [str(item) for pair in keys.items() for item in pair]
