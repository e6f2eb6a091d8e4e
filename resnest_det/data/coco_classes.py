"""The classes of COCO 2017, which published detectors learned, in the order of their outputs."""

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

# Of https://github.com/cocodataset/panopticapi/blob/master/panoptic_coco_categories.json those that are no things, as
# Detectron2 counts them from 1 on where it trains Panoptic FPN; 0 is all things together.
_STUFF = """
    92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 flower,
    122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield,
    147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel,
    171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other,
    184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged,
    190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged,
    196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""


def coco_classes() -> dict:
    """The 80 things and the 53 kinds of stuff, as a checkpoint has them under "trained_on"."""
    categories = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]  # by id, with gaps
    things = {index: name for index, name in enumerate(categories) if name not in ("__background__", "N/A")}
    stuff = {int(number): name for number, name in (entry.split() for entry in _STUFF.split(","))}
    return {
        "thing_classes": list(things.values()),
        "thing_ids": list(things),
        "stuff_classes": ["things", *stuff.values()],
        "stuff_ids": list(stuff),
    }
