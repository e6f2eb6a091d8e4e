"""Classes of the segmentation benchmarks: names, colors, and what stands for them in the label files as they are published."""

from dataclasses import dataclass

from resnest_det.data.label_png import UNLABELLED


@dataclass(frozen=True)
class Benchmark:
    """The classes of a benchmark, in the order of their indices.

    Attributes:
        names, colors: of each class; colors are (R, G, B).
        values: see `resnest_det.data.label_png.LabelPng`.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    values: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[dict, ...]:
        """As `resnest_det.data.semantic.SemanticFiles` takes them."""
        return tuple({"name": name, "color": list(color)} for name, color in zip(self.names, self.colors, strict=True))


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split("; "))


def _colors(text: str) -> tuple[tuple[int, int, int], ...]:
    """Colors written as RRGGBB."""
    return tuple(tuple(bytes.fromhex(color)) for color in text.split())


def _voc_color(number: int) -> tuple[int, int, int]:
    """The color of a number in VOC's map: its bits 0, 3, 6 are the highest of red, its bits 1, 4, 7 of green, 2, 5, 8 of blue."""
    return tuple(sum(((number >> (3 * place + channel)) & 1) << (7 - place) for place in range(3)) for channel in range(3))


# Names as in Detectron2's ade20k_sem_seg, colors of color150.mat of the benchmark's toolkit, from 1 on in the files, where 0 is
# whatever has none of these classes (https://github.com/CSAILVision/sceneparsing).
ADE20K = Benchmark(
    _names(
        """
        wall; building; sky; floor; tree; ceiling; road, route; bed; window; grass; cabinet; sidewalk, pavement; person;
        earth, ground; door; table; mountain, mount; plant; curtain; chair; car; water; painting, picture; sofa; shelf;
        house; sea; mirror; rug; field; armchair; seat; fence; desk; rock, stone; wardrobe, closet, press; lamp; tub; rail;
        cushion; base, pedestal, stand; box; column, pillar; signboard, sign; chest of drawers, chest, bureau, dresser;
        counter; sand; sink; skyscraper; fireplace; refrigerator, icebox; grandstand, covered stand; path; stairs; runway;
        case, display case, showcase, vitrine; pool table, billiard table, snooker table; pillow; screen door, screen;
        stairway, staircase; river; bridge, span; bookcase; blind, screen; coffee table;
        toilet, can, commode, crapper, pot, potty, stool, throne; flower; book; hill; bench; countertop; stove;
        palm, palm tree; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel, hut, hutch, shack, shanty;
        bus; towel; light; truck; tower; chandelier; awning, sunshade, sunblind; street lamp; booth; tv; plane; dirt track;
        clothes; pole; land, ground, soil; bannister, banister, balustrade, balusters, handrail;
        escalator, moving staircase, moving stairway; ottoman, pouf, pouffe, puff, hassock; bottle;
        buffet, counter, sideboard; poster, posting, placard, notice, bill, card; stage; van; ship; fountain;
        conveyer belt, conveyor belt, conveyer, conveyor, transporter; canopy; washer, automatic washer, washing machine;
        plaything, toy; pool; stool; barrel, cask; basket, handbasket; falls; tent; bag; minibike, motorbike; cradle; oven;
        ball; food, solid food; step, stair; tank, storage tank; trade name; microwave; pot; animal; bicycle; lake;
        dishwasher; screen; blanket, cover; sculpture; hood, exhaust hood; sconce; vase; traffic light; tray; trash can; fan;
        pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass, drinking glass; clock; flag
        """
    ),
    _colors(
        """
        787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
        8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
        ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
        8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
        00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
        ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
        00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
        5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
        0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
        b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
        """
    ),
    values=(UNLABELLED, *range(150)),
)

# Those of `trainId` 0 to 18 in cityscapesscripts/helpers/labels.py, by `id` in the files *_gtFine_labelIds.png.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES = Benchmark(
    _names(
        """
        road; sidewalk; building; wall; fence; pole; traffic light; traffic sign; vegetation; terrain; sky; person; rider;
        car; truck; bus; train; motorcycle; bicycle
        """
    ),
    _colors(
        """
        804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64
        005064 0000e6 770b20
        """
    ),
    values=tuple(_CITYSCAPES_IDS.index(value) if value in _CITYSCAPES_IDS else UNLABELLED for value in range(34)),
)

# The 59 most frequent of PASCAL-Context's categories (Mottaghi et al., CVPR 2014), in the order of their `category_id`.
PASCAL_CONTEXT_IDS = (
    2,
    9,
    18,
    19,
    22,
    23,
    25,
    31,
    33,
    34,
    44,
    45,
    46,
    59,
    65,
    68,
    72,
    80,
    85,
    98,
    104,
    105,
    113,
    115,
    144,
    158,
    159,
    162,
    187,
    189,
    207,
    220,
    232,
    258,
    259,
    260,
    284,
    295,
    296,
    308,
    324,
    326,
    347,
    349,
    354,
    355,
    360,
    366,
    368,
    397,
    415,
    416,
    420,
    424,
    427,
    440,
    445,
    454,
    458,
)
PASCAL_CONTEXT = Benchmark(
    _names(
        """
        aeroplane; bag; bed; bedclothes; bench; bicycle; bird; boat; book; bottle; building; bus; cabinet; car; cat; ceiling;
        chair; cloth; computer; cow; cup; curtain; dog; door; fence; floor; flower; food; grass; ground; horse; keyboard;
        light; motorbike; mountain; mouse; person; plate; platform; pottedplant; road; rock; sheep; shelves; sidewalk; sign;
        sky; snow; sofa; table; track; train; tree; truck; tvmonitor; wall; water; window; wood
        """
    ),
    colors=tuple(_voc_color(number) for number in range(1, 60)),
    values=(UNLABELLED, *range(59)),
)

_BY_DATASET = {"ade20k_": ADE20K, "cityscapes_": CITYSCAPES, "pascal_context_": PASCAL_CONTEXT}


def benchmark_classes(dataset: str) -> dict:
    """The classes of a benchmark's dataset by its name, as a checkpoint has them under "trained_on"; {} for any other dataset."""
    for start, benchmark in _BY_DATASET.items():
        if dataset.startswith(start):
            return {
                "stuff_classes": list(benchmark.names),
                "stuff_ids": list(range(len(benchmark.names))),
                "stuff_colors": [list(color) for color in benchmark.colors],
            }
    return {}
