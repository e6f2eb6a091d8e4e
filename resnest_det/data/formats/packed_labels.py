"""Labels of any format as they lie packed."""

import hashlib
import os
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np

from resnest_det.data.dataset_cache import packed_in_memory, packed_once
from resnest_det.data.formats.coco_export import SIZES
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.instance_columns import pack_document
from resnest_det.data.instance_records import Instances
from resnest_det.data.packed_file import Packed, Writer


def packed_labels(files: LabelFiles) -> tuple[Instances, list[str]]:
    """Labels, and what was mended, left out or is worth knowing of them, a line each. A file of COCO's format is parsed once.

    Raises:
        UserError: see `resnest_det.data.formats.reading.read_labels` and `resnest_det.data.coco.load_coco_instances`.
    """
    without = replace(files, classes=())
    if is_one_file(files) and files.classes:
        # They are the file's own but where another split has more, or spells them in another way.
        packed = _packed(without)
        if packed.about["names"] == list(files.classes):
            return Instances(packed, files.path), packed.about["notes"]
    packed = _packed(files)
    return Instances(packed, files.path), packed.about["notes"]


def is_one_file(files: LabelFiles) -> bool:
    """Whether labels are kept in the cache. Where they are many files, to find out that none has changed takes as long as to read
    them, and other formats of one file have sizes of images from the images."""
    return files.kind == "coco" and os.path.isfile(files.path)


def counts_of(instances: Instances) -> Counter:
    """Objects of each class by its name; classes without any count 0."""
    counts = np.bincount(instances.column("label"), minlength=len(instances.names))
    return Counter(dict(zip(instances.names, counts.tolist())))


def _packed(files: LabelFiles) -> Packed:
    def pack(out: Writer) -> None:
        labels = read_labels(files)
        names = [str(category.name) for category in labels.content.categories]
        about = {"notes": list(labels.notes), "listed": labels.listed, "names": names}
        pack_document(labels.content, files.path, out, about)

    if not is_one_file(files):
        return packed_in_memory(pack)
    # Names and sizes of images are mended by what is there.
    root = files.image_root
    known = [list(map(str, (files.kind, files.split, files.part))), files.classes, root, sorted(Pictures(root).names)]
    key = hashlib.sha256(msgspec.json.encode(known)).hexdigest()[:16]
    packed = packed_once(files.path, f"labels_{key}", lambda content, out: pack(out))
    return packed_in_memory(pack) if any(SIZES in note for note in packed.about["notes"]) else packed
