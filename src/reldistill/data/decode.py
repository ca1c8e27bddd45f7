"""One image file → 8-bit RGB, whatever its mode.

Transparency is composited on white, the EXIF orientation is applied, and of an animation the first frame is taken.
16-bit greys are scaled by their full range (65535 → 255). Floats and 32-bit integers declare no range: it is taken to
be the smallest of 1 (floats only), 255 and 65535 that their largest value is within.
"""

from __future__ import annotations

import importlib.util
import io
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reldistill.core.checks import UserError

ORIENTATION_TAG = 0x0112
ORIENTATIONS_ON_THE_SIDE = (5, 6, 7, 8)

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})


def _reads_heif() -> bool:
    """Let Pillow read HEIC, where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


EXTENSIONS = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png bmp dib gif webp tif tiff ppm pgm pbm pnm jp2 j2k avif tga ico".split()  # noqa: SIM905
) | (HEIF_EXTENSIONS if _reads_heif() else frozenset())
"""What is read as an image. AVIF is among them whether or not this Pillow can: then it is refused by name."""


class BadImage(UserError):
    """An image that cannot be decoded: where it is and why."""

    def __init__(self, where: str, reason: str, others: int = 0) -> None:
        more = f" ({others} more bad image{'s' * (others > 1)})" if others else ""
        super().__init__(
            f"bad image {where}: {reason}{more}; replace or remove it, or pass --skip-bad-images to continue without it"
        )
        self.where, self.reason = where, reason


def _deep_grey(image: Image.Image) -> Image.Image:
    """Modes I;16*, I and F → L. Pillow gives mode I to 32-bit TIFFs, and to 16-bit greys of other formats."""
    values = np.asarray(image)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        largest = values.max(initial=0, where=np.isfinite(values))
        ranges = (1.0, 255.0) if image.mode == "F" else (255.0,)
        values = values * (65535.0 / next((top for top in ranges if largest <= top), 65535.0))
        values = np.round(np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0))
    grey = Image.fromarray(((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image → mode RGB, transparency composited on white.

    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_grey(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "P", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # an unreadable EXIF block is no reason to refuse pixels that are fine
        return 1


def _verify_png(raw: bytes) -> None:
    """Raise for a wrong checksum of anything that matters to the pixels: Pillow reads over those of the image data."""
    at = 8
    while at + 12 <= len(raw):
        length, kind = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        end = at + 8 + length
        if kind[:1].isupper() and zlib.crc32(raw[at + 4 : end]) != int.from_bytes(raw[end : end + 4], "big"):
            raise ValueError(f"wrong checksum of its {kind.decode('latin-1')} data")
        at = end + 4


def _decode(raw: bytes, where: str, *, reduced: bool) -> tuple[Image.Image, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(raw)) as image:
            whole = image.size
            if reduced:
                image.draft(None, (1, 1))
            shrunk = image.size != whole
            if image.format == "PNG":
                _verify_png(raw)
            image.load()
            orientation = _orientation(image)  # read after loading: Pillow has turned a TIFF by then
            if orientation != 1:
                ImageOps.exif_transpose(image, in_place=True)
            if shrunk:
                return to_rgb(image), whole[::-1] if orientation in ORIENTATIONS_ON_THE_SIDE else whole
            return to_rgb(image), image.size
    except UnidentifiedImageError:
        raise BadImage(where, "empty file" if not raw else "not in an image format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise BadImage(
            where, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels (a decompression bomb?)"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on malformed bytes
        raise BadImage(where, " ".join(str(error).split()) or type(error).__name__) from None


def decode(raw: bytes, *, where: str) -> Image.Image:
    """The bytes of an image file → an RGB image. Raises BadImage, naming `where`, if it is damaged in any way."""
    return _decode(raw, where, reduced=False)[0]


def check(raw: bytes, *, where: str) -> tuple[int, int]:
    """(width, height) of an image file that `decode` will accept; raises BadImage for any other.

    The whole file is decoded, since a header does not show a truncated body; a JPEG at an eighth of its size, which
    reads its whole stream at a fraction of the cost.
    """
    return _decode(raw, where, reduced=True)[1]


def header_size(raw: bytes) -> tuple[int, int] | None:
    """(width, height) from the header alone, for most formats before any rotation; None if there is none."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return image.size
    except Exception:  # damage is reported by `check` and `decode`; here it only means that the size is unknown
        return None


def fit(image: Image.Image, side: int, *, part: float = 1.0) -> Image.Image:
    """The central square of an image, `part` of its shorter side wide, scaled to `side` × `side` (antialiased).

    An image that is `side` × `side` already stays as it is.
    """
    if image.size == (side, side):
        return image
    width, height = image.size
    cut = min(width, height) * part
    left, top = (width - cut) / 2, (height - cut) / 2
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + cut, top + cut))
