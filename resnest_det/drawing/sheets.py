"""Pictures put together and written to files."""

import io

from PIL import Image, ImageDraw, ImageFont

from resnest_det.files import write_bytes

_LONGEST_SIDE_AT_LEAST = 480
_GAP = 8


def scale_to_read(width: int, height: int) -> float:
    """What a picture has to be enlarged by for labels in it to be read: to a longest side of 480 pixels, or not at all."""
    return max(1.0, _LONGEST_SIDE_AT_LEAST / max(width, height))


def enlarge(image: Image.Image) -> Image.Image:
    """An RGB copy with a longest side of at least 480 pixels."""
    scale = scale_to_read(*image.size)
    return image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def side_by_side(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of equal height in a row, each under its caption, which takes another line where it is too wide."""
    font = ImageFont.load_default(size=15)
    captions = [_wrapped(caption, picture.width - 8, font) for caption, picture in panels]
    head = 8 + 18 * max(caption.count("\n") + 1 for caption in captions)
    width = sum(picture.width for _, picture in panels) + _GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, panels[0][1].height + head), "white")
    draw = ImageDraw.Draw(sheet)
    x = 0
    for caption, (_, picture) in zip(captions, panels):
        draw.multiline_text((x + 4, 4), caption, font=font, fill="black", spacing=2)
        sheet.paste(picture, (x, head))
        x += picture.width + _GAP
    return sheet


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a PNG, whole or not at all, and make its folder.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_bytes(path, content.getvalue())
