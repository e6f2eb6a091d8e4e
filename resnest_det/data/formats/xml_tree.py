"""XML of labelling tools as a tree that knows its lines, read without what makes XML from strangers dangerous.

No entities are declared or fetched, nothing outside the file is read, and size, depth and count of elements are limited.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from resnest_det.errors import UserError

_MOST_BYTES, _MOST_ELEMENTS, _MOST_DEEP = 512 * 2**20, 5_000_000, 64


@dataclass(slots=True)
class Element:
    """An element; `text` is what stands in it before and between its children."""

    tag: str
    line: int
    attributes: dict[str, str]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> Iterator["Element"]:
        return (child for child in self.children if child.tag == tag)

    def first(self, *path: str) -> "Element | None":
        """The first child of the first child of ..., or None."""
        found: Element | None = self
        for tag in path:
            found = next(found.all(tag), None) if found is not None else None
        return found

    def value(self, *path: str) -> str:
        """The text of `first`, without spaces around it; "" where there is none."""
        found = self.first(*path)
        return "" if found is None else found.text.strip()


def root_tag(path: str) -> str:
    """The tag of the outermost element, or "" where the beginning of the file is no XML."""
    tags: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, attributes: tags.append(tag)
    try:
        with open(path, "rb") as file:
            parser.Parse(file.read(4096), False)
    except (OSError, ValueError, LookupError, expat.ExpatError):
        pass
    return tags[0] if tags else ""


def read_xml(path: str) -> Element:
    """The outermost element of a file.

    Raises:
        UserError: it cannot be read, is malformed, declares entities, or is beyond the limits; names file and line.
    """
    parser = expat.ParserCreate()
    open_elements: list[Element] = []
    roots: list[Element] = []
    texts: list[list[str]] = []
    count = 0

    def fail(problem: str) -> None:
        raise UserError(f"{path}: line {parser.CurrentLineNumber}: {problem}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(open_elements) >= _MOST_DEEP or count > _MOST_ELEMENTS:
            fail(f"elements are more than {_MOST_DEEP} deep or {_MOST_ELEMENTS} in all")
        element = Element(tag, parser.CurrentLineNumber, attributes)
        (open_elements[-1].children if open_elements else roots).append(element)
        open_elements.append(element)
        texts.append([])

    def end(tag: str) -> None:
        open_elements.pop().text = "".join(texts.pop())

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda text: texts[-1].append(text)
    # An entity can stand for gigabytes, or for a file or an address.
    parser.EntityDeclHandler = lambda *declaration: fail("declares an entity, which labels have no use for")
    parser.ExternalEntityRefHandler = lambda *reference: 0
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise UserError(f"{path}: more than {_MOST_BYTES // 2**20} MB; export it in parts")
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, expat.ExpatError):
            raise UserError(f"{path}: line {error.lineno}: malformed XML: {expat.ErrorString(error.code)}") from error
        raise UserError(f"{path}: malformed XML: {error}") from error
    return roots[0]
