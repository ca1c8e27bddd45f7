from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from drawn_boxes import as_held
from reldistill.core.checks import UserError
from reldistill.data.decode import BadImage, check, decode, fit, header_size, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def corner(raw: bytes) -> tuple[int, ...]:
    image = decode(raw, where="here")
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def grey_array(value: float, dtype: type) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, dtype=dtype))


def test_rgb_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(pixels)), where="x")), pixels)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 90), (90, 90, 90)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("1", (4, 4), 0), (0, 0, 0)),
        (Image.new("LA", (4, 4), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (4, 4), (100, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 255, 0, 51)), (204, 255, 204)),
        (Image.new("RGB", (4, 4), (200, 30, 40)).quantize(4), (200, 30, 40)),
    ],
)
def test_every_png_mode_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert corner(encoded(image)) == expected


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert corner(encoded(image)) == (9, 8, 7)
    assert corner(encoded(image, transparency=1)) == (255, 255, 255)
    assert corner(encoded(image, "GIF", transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_colour_is_white(mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4), colour)
    image.putpixel((3, 3), 8 if mode == "L" else (8, 8, 8))
    raw = encoded(image, transparency=colour)
    assert corner(raw) == (255, 255, 255)
    assert decode(raw, where="x").getpixel((3, 3)) == (8, 8, 8)


def test_a_transparent_grey_of_16_bits_is_white() -> None:
    assert corner(encoded(grey_array(300, np.uint16), transparency=300)) == (255, 255, 255)
    assert corner(encoded(grey_array(300, np.uint16), transparency=301)) == (1, 1, 1)


def test_cmyk_jpeg() -> None:
    raw = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95)
    red, green, blue = corner(raw)
    assert red < 10
    assert green > 245
    assert blue > 245


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32768, 128), (257, 1), (128, 0), (129, 1)])
def test_16_bit_greys_use_their_full_range(value: int, expected: int) -> None:
    assert corner(encoded(grey_array(value, np.uint16))) == (expected,) * 3
    stream = io.BytesIO()
    stream.write(b"P5 4 4 65535\n" + np.full(16, value, dtype=">u2").tobytes())  # Pillow gives it 32 bits
    assert corner(stream.getvalue()) == (expected,) * 3


def test_integers_beyond_16_bits_are_clipped() -> None:
    assert corner(encoded(grey_array(-5, np.int32), "TIFF")) == (0, 0, 0)
    assert corner(encoded(grey_array(1 << 20, np.int32), "TIFF")) == (255, 255, 255)


@pytest.mark.parametrize(
    ("largest", "value", "expected"),
    [(1, 0.5, 128), (0.25, 0.25, 64), (255, 100, 100), (128, 100, 100), (1.5, 1.5, 2), (256, 256, 1),
     (65535, 32768, 128), (65535, 100, 0), (70000, 70000, 255), (1, -3, 0), (255, float("nan"), 0),
     (1, float("inf"), 255), (255, float("inf"), 255), (255, float("-inf"), 0)],
)  # fmt: skip
def test_floats_are_scaled_by_the_range_their_largest_is_within(largest: float, value: float, expected: int) -> None:
    values = np.full((4, 4), value, dtype=np.float32)
    values[3, 3] = largest
    assert corner(encoded(Image.fromarray(values), "TIFF")) == (expected,) * 3


@pytest.mark.parametrize(
    ("largest", "value", "expected"),
    [(1, 1, 1), (255, 100, 100), (100, 100, 100), (256, 256, 1), (65535, 32768, 128), (65535, 100, 0), (255, -7, 0)],
)
def test_so_are_integers_of_32_bits(largest: int, value: int, expected: int) -> None:
    values = np.full((4, 4), value, dtype=np.int32)
    values[3, 3] = largest
    assert corner(encoded(Image.fromarray(values), "TIFF")) == (expected,) * 3


def test_big_endian_16_bit_tiff() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 257 * 3, dtype=">u2")).save(stream, "TIFF")
    assert corner(stream.getvalue()) == (3, 3, 3)


def test_premultiplied_alpha() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 255, 0, 51)).convert("RGBa")).getpixel((0, 0)) == (204, 255, 204)
    assert to_rgb(Image.new("LA", (1, 1), (50, 0)).convert("La")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # top left is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(as_held(upright, orientation)), kind, exif=exif)
    found = np.asarray(decode(raw, where="x")).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 3
    assert check(raw, where="x") == (32, 16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_unreadable_exif_block_is_no_fault() -> None:
    raw = encoded(Image.new("RGB", (8, 8), (200, 200, 200)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert decode(raw, where="x").size == (8, 8)


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("function", [decode, check])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_named(function: object, kind: str) -> None:
    raw = encoded(noise(), kind)
    with pytest.raises(UserError, match=r"bad image pets/cat\.jpg: .*--skip-bad-images"):
        function(raw[: len(raw) // 2], where="pets/cat.jpg")  # type: ignore[operator]


@pytest.mark.parametrize("function", [decode, check])
@pytest.mark.parametrize(("raw", "reason"), [(b"", "empty file"), (b"<html>", "not in an image format")])
def test_what_is_no_image_is_said(function: object, raw: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        function(raw, where="a.png")  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_png_with_a_wrong_checksum_is_bad() -> None:
    raw = bytearray(encoded(noise()))
    raw[200] ^= 0xFF
    with pytest.raises(BadImage, match="wrong checksum of its IDAT data"):
        check(bytes(raw), where="x")


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("function", [decode, check])
def test_a_decompression_bomb_is_refused_by_its_header(function: object) -> None:
    with pytest.raises(BadImage, match="decompression bomb"):
        function(bomb(100_000, 100_000), where="x")  # type: ignore[operator]


def test_header_size() -> None:
    assert header_size(encoded(Image.new("L", (5, 9)))) == (5, 9)
    assert header_size(b"nothing") is None


def test_check_tells_the_whole_size_of_a_reduced_jpeg() -> None:
    assert check(encoded(noise(100), "JPEG"), where="x") == (100, 100)


def test_fit_takes_the_central_square() -> None:
    image = noise(30).crop((0, 0, 30, 10))
    whole = image.resize((15, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(fit(image, 5)), np.asarray(whole)[:, 5:10])


def test_fit_leaves_an_image_of_the_right_size_alone() -> None:
    image = noise(16)
    assert fit(image, 16, part=0.5) is image


def test_fit_takes_only_a_part() -> None:
    whole = noise(32).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(fit(noise(32), 8, part=0.5)), np.asarray(whole)[4:12, 4:12])


def test_others_are_counted() -> None:
    assert "(1 more bad image)" in str(BadImage("a", "b", others=1))
    assert "(2 more bad images)" in str(BadImage("a", "b", others=2))
