"""Reading labels of any format."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from resnest_det.data.annotation_files import InstanceFile
from resnest_det.data.formats.boxes_csv import read_csv
from resnest_det.data.formats.coco_export import read_coco
from resnest_det.data.formats.collector import commonest_spellings
from resnest_det.data.formats.cvat import read_cvat
from resnest_det.data.formats.label_studio import read_label_studio
from resnest_det.data.formats.labelme import read_labelme
from resnest_det.data.formats.labels import ABSENT, LabelFiles, Labels, Notes, counts_by_name
from resnest_det.data.formats.masks import read_masks
from resnest_det.data.formats.panoptic_export import read_panoptic
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.formats.splitting import split_images
from resnest_det.data.formats.voc import read_voc
from resnest_det.data.formats.yolo import read_yolo
from resnest_det.errors import UserError, shown

# One in five images is for evaluation where nobody has said which.
VAL_FRACTION = 0.2

_READERS: dict[str, Callable[[LabelFiles, Pictures, Notes], Labels]] = {
    "coco": read_coco,
    "panoptic": read_panoptic,
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "masks": read_masks,
    "csv": read_csv,
}


def read_labels(files: LabelFiles, *, need_images: bool = True, names: Iterable[str] | None = None) -> Labels:
    """Read labels into the typed document of COCO's instances.

    Args:
        need_images: refuse labels without a single image file; otherwise labels that tell sizes are read without any.
        names: of the images that there are, from `files.image_root`; None: whatever is there.

    Raises:
        UserError: a file is malformed, more images are absent than there, or there are none. Names
            file and line or entry.
    """
    notes = Notes()
    pictures = Pictures(files.image_root, names)
    if need_images and not pictures.names:
        raise UserError(f"{files.path}: there are no images in {files.image_root}")
    labels = _READERS[files.kind](files, pictures, notes)
    count = len(labels.content.images)
    if notes.count(ABSENT) > count:
        first = next(line for line in notes if ABSENT.partition(": ")[2] in line)
        raise UserError(f"{files.path}: most images are absent below {files.image_root}: {first}, and {count} are there")
    if labels.listed:
        _tell_of_like_names(labels)
    used = {str(image.file_name) for image in labels.content.images}
    without = [name for name in pictures.names if name not in used] if files.split is None else []
    if without:
        notes.add("told: images that the labels say nothing of, not taken", without[0], len(without))
    if not count:
        raise UserError(f"{files.path}: no image with labels, of {len(pictures.names)} in {files.image_root}")
    return labels if files.part is None else _part(labels, *files.part)


def _tell_of_like_names(labels: Labels) -> None:
    """Classes are listed on purpose, letters perhaps, so none is taken for another."""
    names = [str(category.name) for category in labels.content.categories]
    meant = commonest_spellings(counts_by_name(labels.content))
    for name in names:
        if meant[name] != name:
            labels.notes.add(
                "told: listed classes that differ in case alone, kept apart", f"{shown(name)} and {shown(meant[name])}"
            )


def _part(labels: Labels, name: str, seed: int) -> Labels:
    images = split_images(labels.content, VAL_FRACTION, seed)[("train", "val").index(name)]
    return replace(labels, content=of_images(labels.content, images))


def of_images(content: InstanceFile, image_ids: set[int]) -> InstanceFile:
    """A document with these images alone, and all classes."""
    return InstanceFile(
        [image for image in content.images if image.id in image_ids],
        content.categories,
        [annotation for annotation in content.annotations if annotation.image_id in image_ids],
    )
