"""What a file is that is not what it was given as: what people have in its place, and what to do."""

import re

# Of ISO's base media files (ISO/IEC 14496-12, 4.3): the brands of HEIF with HEVC (ISO/IEC 23008-12) and of AVIF.
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"version https://hawser": "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"%PDF-": "is a PDF: save its pages as PNG",
    b"8BPS": "is a Photoshop file: save it as PNG",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\x1f\x8b": "is an archive (gzip): unpack it",
    b"\x93NUMPY": "is a numpy array: save it as PNG, or as TIFF",
    b"\x89HDF": "is an HDF5 file",
}
_MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(!doctype\s+)?(html|svg|head|body)\b", re.I | re.S
)


def what_it_is(head: bytes) -> str:
    """What stands after a file's name in an error, by its first 512 bytes: "is ...: do ..."; "" where they say nothing.

    A zip archive and gzip are told too: those who read them ask before.
    """
    if found := _MARKUP.match(head):
        if found[2].lower() == b"svg":
            return "is a drawing (SVG): save it as PNG"
        return "is a web page, not the file itself: its address has moved, or wants a login"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "is HEIC, as phones save pictures: convert it to JPEG, by `heif-convert` or by Pillow with pillow-heif"
    if head[4:8] == b"ftyp" and head[8:12] in _AVIF:
        return "is AVIF, which this Pillow was built without: install a newer one"
    if head[128:132] == b"DICM":
        return "is DICOM: save it as PNG of 16 bits, by pydicom"
    return next((said for beginning, said in _BEGINNINGS.items() if head.startswith(beginning)), "")
