"""An image of labels: its file, and the size that it has."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector
from resnest_det.data.formats.labels import ABSENT, RENAMED
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.image import open_image, upright_size
from resnest_det.errors import UserError

# Headers are short and the disk may be a network away: what takes long is to wait.
_READERS = 16


def sizes_of(paths: Iterable[str]) -> list[tuple[int, int]]:
    """(height, width) of image files, turned upright.

    Raises:
        UserError: see `resnest_det.data.image.upright_size`.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(upright_size, paths))


def image_of(
    collector: Collector, pictures: Pictures, name: str, size: tuple[int, int] | None, path: str, where: str, like: str = ""
) -> Image | None:
    """The image that labels are of, or None where its file is absent, which is counted.

    Args:
        name: of the image, as the labels have it.
        size: (height, width) that the labels say, or None.
        path: the file with the labels, for errors; `where`: the same, shorter, for what is counted.
        like: the name of the file with the labels, whose image has the same name where `name` finds nothing.

    Raises:
        UserError: its size is told nowhere, or the labels say another than the file has.
    """
    if name in collector.asked:
        image = collector.asked[name]
        if image is None:
            collector.notes.add(ABSENT, f"{where}, image {name}")
        return image
    found = pictures.find(name, path)
    if found is None and like:
        found = pictures.find(like.rpartition(".")[0], path, stem_only=True)
    collector.asked[name] = None
    if found is None:
        if pictures.names or size is None:
            collector.notes.add(ABSENT, f"{where}, image {name}")
            return None
        found = name.replace("\\", "/").lstrip("/")  # there are no images at all: labels alone are converted
    elif pictures.renamed(name, found):
        collector.notes.add(RENAMED, f"{where}, image {name}")
    if found in pictures:
        size = _actual_size(collector, pictures.path(found), size, path, where)
    collector.asked[name] = collector.image(found, size, path)
    return collector.asked[name]


def _actual_size(collector: Collector, file_name: str, size: tuple[int, int] | None, path: str, where: str) -> tuple[int, int]:
    """The size of an image file, held against what its labels say."""
    actual = upright_size(file_name)
    if size is None:
        collector.notes.add("mended: sizes of images, absent in the labels", where)
    elif size != actual:
        with open_image(file_name) as image:
            stored = (image.height, image.width)
        says = f"{path}: says {size[1]} x {size[0]} pixels (width x height), but image {file_name} has {actual[1]} x {actual[0]}"
        if stored == size:
            raise UserError(f"{says} upright, as its EXIF orientation says: annotate it upright, or take the orientation out")
        if size != actual[::-1]:
            raise UserError(f"{says}: are the labels those of another size of it?")
        collector.notes.add("mended: sizes of images, width and height exchanged", where)
    return actual
