"""COCO's instance format as labelling tools export it: what they commonly get wrong is mended and told.

Nothing is mended that the strict rules (docs/data.md) take as it is.
"""

import os
from collections import Counter

import msgspec

from resnest_det.data.annotation_files import Annotation, Category, InstanceFile, document_of, no_list, read_annotation_file
from resnest_det.data.formats.labels import ABSENT, RENAMED, LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.image import upright_size
from resnest_det.data.json_files import read_bytes, read_json
from resnest_det.errors import UserError

SIZES = "sizes of images, absent in the labels"


class _Source(msgspec.Struct):
    images: str | None = None


class _Written(msgspec.Struct):
    """What a file that this package has written says of itself."""

    resnest_det: _Source | None = None


def image_root_in(json_file: str) -> str | None:
    """The folder of the images that a file of this package names, from the file's own, or None."""
    try:
        written = msgspec.json.decode(read_bytes(json_file), type=_Written)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if written.resnest_det is None or written.resnest_det.images is None:
        return None
    folder = os.path.join(os.path.dirname(os.path.abspath(json_file)), written.resnest_det.images)
    return os.path.normpath(folder) if os.path.isdir(folder) else None


def read_coco(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read a COCO file; images are looked for below `files.image_root`.

    Raises:
        UserError: see `resnest_det.data.annotation_files.read_annotation_file`; or an image has no size, here or in its file.
    """
    try:
        content = read_annotation_file(files.path, InstanceFile)
    except UserError:
        raw = read_json(files.path)
        _mend_entries(raw, files, pictures, notes)
        content = document_of(raw, InstanceFile, files.path)
    if content.annotations is None:
        raise no_list(files.path, "annotations", InstanceFile)
    _mend_categories(content, files, notes)
    _mend_images(content, files.path, pictures, notes)
    _mend_annotations(content, notes)
    return Labels(files, content, files.image_root, notes, listed=True)


def _mend_entries(raw: dict, files: LabelFiles, pictures: Pictures, notes: Notes) -> None:
    """What keeps entries from being read: images without a size, objects without a box or an id."""
    for image in raw.get("images") if isinstance(raw.get("images"), list) else ():
        if isinstance(image, dict) and not (image.get("height") and image.get("width")) and image.get("file_name"):
            where = f"image {image.get('id')}"
            found = pictures.find(str(image["file_name"]), f"{files.path}: {where}")
            if found is not None:
                image["height"], image["width"] = upright_size(pictures.path(found))
                notes.add(f"mended: {SIZES}", where)
    annotations = raw.get("annotations")
    annotations = [each for each in annotations if isinstance(each, dict)] if isinstance(annotations, list) else []
    if annotations and all(each.get("id") is None for each in annotations):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        notes.add("mended: annotations without an id", "annotation 1", len(annotations))
    for annotation in annotations:
        outline = annotation.get("segmentation")
        if isinstance(outline, list) and len(outline) >= 6 and all(isinstance(each, (int, float)) for each in outline):
            annotation["segmentation"] = outline = [outline]
            notes.add("mended: polygons that are no list of polygons", f"annotation {annotation.get('id')}")
        if annotation.get("bbox") in (None, []) and outline and isinstance(outline, list):
            try:
                x = [float(value) for polygon in outline for value in polygon[::2]]
                y = [float(value) for polygon in outline for value in polygon[1::2]]
                annotation["bbox"] = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            except (TypeError, ValueError):
                continue  # the strict reading tells
            notes.add("mended: boxes, absent beside a polygon", f"annotation {annotation.get('id')}")


def _mend_categories(content: InstanceFile, files: LabelFiles, notes: Notes) -> None:
    used = {annotation.category_id for annotation in content.annotations}
    # Roboflow lists the name of the project as a class of its own, number 0, which the others have as "supercategory".
    if len(content.categories) > 1 and _is_project(content.categories[0], files.path) and content.categories[0].id not in used:
        notes.add(
            "left out: classes that are the supercategory of the others and have no object",
            f"category {content.categories[0].id}",
        )
        content.categories = content.categories[1:]
    first: dict[object, int] = {}
    same: dict[int, int] = {}
    for category in content.categories:
        same[category.id] = first.setdefault(category.name, category.id)
    if len(first) < len(content.categories) and len(same) == len(content.categories):
        doubled = [category for category in content.categories if same[category.id] != category.id]
        notes.add("mended: classes that are listed twice, taken for one", f"category {doubled[0].id}", len(doubled))
        content.categories = [category for category in content.categories if same[category.id] == category.id]
        for annotation in content.annotations:
            annotation.category_id = same.get(annotation.category_id, annotation.category_id)
    known = {str(category.name) for category in content.categories}
    for name in files.classes:
        if name not in known:
            content.categories.append(Category(max((each.id for each in content.categories), default=-1) + 1, name))


class _WithSuper(msgspec.Struct):
    name: object = None
    supercategory: object = None


class _Categories(msgspec.Struct):
    categories: list[_WithSuper] = []


def _is_project(category: Category, json_file: str) -> bool:
    try:
        listed = msgspec.json.decode(read_bytes(json_file), type=_Categories).categories
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return bool(listed[1:]) and all(each.supercategory == category.name for each in listed[1:])


def _mend_images(content: InstanceFile, json_file: str, pictures: Pictures, notes: Notes) -> None:
    kept, moved, absent = {}, {}, set()
    for image in content.images:
        where, name = f"image {image.id}", str(image.file_name)
        found = pictures.find(name, f"{json_file}: {where}") if pictures.names else name
        if found is None:
            notes.add(ABSENT, f"{where}, {name[:200]}")
            absent.add(image.id)
            continue
        if found != name and pictures.renamed(name, found):
            notes.add(RENAMED, f"{where}, {name[:200]}")
        image.file_name = found
        before = kept.setdefault(found, image)
        if before is not image:
            if before.id != image.id:
                if (before.height, before.width) != (image.height, image.width):
                    raise UserError(
                        f"{json_file}: images {before.id} and {image.id} are both {found}, but {before.width} x {before.height} "
                        f"and {image.width} x {image.height} pixels (width x height)"
                    )
                moved[image.id] = before.id
            notes.add("mended: images that are listed twice, taken for one", where)
    content.images = list(kept.values())
    content.annotations = [each for each in content.annotations if each.image_id not in absent]
    for annotation in content.annotations if moved else ():
        annotation.image_id = moved.get(annotation.image_id, annotation.image_id)


def _mend_annotations(content: InstanceFile, notes: Notes) -> None:
    seen, kept = set(), []
    for annotation in content.annotations:
        key = (annotation.image_id, annotation.category_id, annotation.bbox, _outline_key(annotation))
        if key in seen:
            notes.add("left out: objects that their image has twice", annotation.called())
            continue
        seen.add(key)
        kept.append(annotation)
    content.annotations = kept
    counts = Counter(annotation.id for annotation in kept)
    if len(counts) < len(kept):
        twice = next(number for number, count in counts.items() if count > 1)
        notes.add("mended: ids of annotations that occur twice, all counted anew", f"annotation {twice}", len(kept) - len(counts))
        for number, annotation in enumerate(kept, start=1):
            annotation.id = number


def _outline_key(annotation: Annotation) -> int:
    outline = annotation.segmentation
    if not outline:
        return 0
    return hash(tuple(map(tuple, outline)) if isinstance(outline, list) else str(outline.counts))
