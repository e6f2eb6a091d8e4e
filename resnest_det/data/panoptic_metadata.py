"""What is known of a panoptic dataset besides its images, from the categories of its file."""

from dataclasses import dataclass

from resnest_det.data.annotation_files import PanopticCategory, by_id, category_names, check_names_differ, must_be
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.semantic import SemanticMetadata, class_color
from resnest_det.errors import UserError


@dataclass(frozen=True)
class PanopticMetadata(SemanticMetadata):
    """What is known of a panoptic dataset; `json_file` is None where it has no instance annotations beside the panoptic ones.

    `stuff_classes[0]` is "things", `stuff_classes[i]` names stuff class i; `stuff_dataset_id_to_contiguous_id` maps the file's
    category ids to 1..S. `panoptic_root` is the folder of the PNG files. Colors are (R, G, B).
    """

    panoptic_json: str
    panoptic_root: str
    thing_colors: list[tuple[int, int, int]]
    stuff_dataset_id_to_contiguous_id: dict[int, int]


def metadata_of(
    name: str, categories: list[PanopticCategory], panoptic_json: str, panoptic_root: str, image_root: str
) -> PanopticMetadata:
    """What the categories of a panoptic file say.

    Raises:
        UserError: there are none, or too many of stuff, two things or two of stuff have one name, or one lacks what a category
            has; the message names the file and the category.
    """
    things: dict[int, tuple[str, tuple[int, int, int]]] = {}
    stuff: dict[int, tuple[str, tuple[int, int, int]]] = {}
    by_ids = by_id(categories, "category", panoptic_json)
    for category_id, label in category_names(by_ids, panoptic_json).items():
        category, where = by_ids[category_id], f"{panoptic_json}: category {category_id}"
        if category.isthing not in (0, 1):
            raise UserError(f"{where}: {must_be('isthing', category.isthing)}")
        color = class_color(category.color, category_id, where)
        (things if category.isthing else stuff)[category_id] = (label, color)
    if not things and not stuff:
        raise UserError(f'{panoptic_json}: the list "categories" is empty')
    if len(stuff) >= UNLABELLED:
        raise UserError(f"{panoptic_json}: {len(stuff)} stuff categories; a semantic target has room for {UNLABELLED - 1}")
    for part in (things, stuff):
        check_names_differ({category_id: label for category_id, (label, _) in part.items()}, panoptic_json)
    return PanopticMetadata(
        name=name,
        json_file=None,
        image_root=str(image_root),
        thing_classes=[label for label, _ in things.values()],
        thing_dataset_id_to_contiguous_id={category_id: i for i, category_id in enumerate(things)},
        panoptic_json=str(panoptic_json),
        panoptic_root=str(panoptic_root),
        thing_colors=[color for _, color in things.values()],
        stuff_classes=["things", *(label for label, _ in stuff.values())],
        stuff_colors=[(82, 18, 128), *(color for _, color in stuff.values())],
        stuff_dataset_id_to_contiguous_id={category_id: i for i, category_id in enumerate(stuff, start=1)},
    )
