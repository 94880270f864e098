"""Image files against Pillow: what a viewer shows, or an error that says why not."""

import io
import random
import re
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_hsakd.data import decoding

TEXT = tf.TensorSpec((), tf.string)
# Traced once: called as they are, they trace all their branches each time.
decode = tf.function(decoding.decode, input_signature=[TEXT])
decode_file = tf.function(decoding.decode_file, input_signature=[TEXT, TEXT])
HEIGHT, WIDTH = 18, 26
RNG = np.random.default_rng(0)
# Smooth, so that little is lost in a JPEG, and without any symmetry.
PHOTO = Image.fromarray(RNG.integers(0, 256, (3, 5, 3), "uint8"))
PHOTO = PHOTO.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
GREY, PALETTE = PHOTO.convert("L"), PHOTO.quantize(200)
CLEAR = PHOTO.convert("RGBA")
CLEAR.putalpha(GREY)
DARK = Image.new("RGB", PHOTO.size, (9, 9, 9))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(content):
    image = Image.open(io.BytesIO(content))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def animated(kind, image, other=DARK, **options):
    return encoded(image, kind, save_all=True, append_images=[other], **options)


def replaced(content, **bytes_at):
    content = bytearray(content)
    for position, value in bytes_at.items():
        content[int(position[1:])] = value
    return bytes(content)


def bmp(bits, header=40, compression=0, masks=(), colors=0, down=False):
    """Returns a BMP file of random pixels, with what Pillow writes nothing of."""
    width, height = 7, 5
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sizes = width, -height if down else height, 1, bits, compression, 0, 0, 0
        head = struct.pack("<IiiHHIIiiII", header, *sizes, colors, 0)
    masks = struct.pack(f"<{len(masks)}I", *masks)
    head += masks.ljust(max(header - 40, len(masks)), b"\0") if header > 12 else b""
    per_color = 3 if header == 12 else 4
    palette = RNG.bytes((colors or 2**bits) * per_color) if bits <= 8 else b""
    # Pixels within a palette that has fewer colors.
    most = colors or 256
    rows = RNG.integers(0, most, height * ((width * bits + 31) // 32 * 4), "uint8")
    start = 14 + len(head) + len(palette)
    file = b"BM" + struct.pack("<IHHI", start + rows.size, 0, 0, start)
    return file + head + palette + rows.tobytes()


FRAME = b",\0\0\0\0"  # of a GIF file, at its top left


def gif_with_a_small_frame(**control):
    frame = Image.new("P", (4, 3))
    frame.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    frame.putdata([*range(4)] * 3)
    content = encoded(frame, "GIF", **control)
    at = content.index(FRAME)
    return replaced(content, _6=8, _8=6, **{f"_{at + 1}": 2, f"_{at + 3}": 1})


def webp_with_a_small_frame(**options):
    content = animated("WEBP", CLEAR, **options)
    at = content.index(b"ANMF")
    larger = {"_24": WIDTH + 9, "_27": HEIGHT + 7}
    return replaced(content, **larger, **{f"_{at + 8}": 3, f"_{at + 11}": 2})


RGB = (0xF800, 0x7E0, 0x1F)
EXACT = {
    **{
        f"png {mode}": encoded(PHOTO.convert(mode), "PNG") for mode in ("1", "L", "RGB")
    },
    "png palette": encoded(PALETTE, "PNG"),
    "png palette of 16": encoded(PHOTO.quantize(16), "PNG", bits=4),
    "png alpha": encoded(CLEAR, "PNG"),
    "png grey alpha": encoded(CLEAR.convert("LA"), "PNG"),
    "apng": animated("PNG", PHOTO),
    "gif": encoded(PALETTE, "GIF"),
    "gif interlaced": encoded(PALETTE, "GIF", interlace=1),
    "gif transparent": encoded(PALETTE, "GIF", transparency=3),
    "gif animated": animated("GIF", PALETTE),
    "gif small frame": gif_with_a_small_frame(),
    "gif small transparent frame": gif_with_a_small_frame(transparency=2),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "webp alpha": encoded(CLEAR, "WEBP", lossless=True, exact=True),
    "webp lossy": encoded(PHOTO, "WEBP"),
    "webp lossy alpha": encoded(CLEAR, "WEBP"),
    "webp animated": animated("WEBP", PHOTO, lossless=True),
    "webp animated lossy alpha": animated("WEBP", CLEAR),
    "webp small frame": webp_with_a_small_frame(lossless=True, exact=True),
    **{
        f"bmp {mode}": encoded(PHOTO.convert(mode), "BMP") for mode in ("1", "L", "RGB")
    },
    "bmp palette": encoded(PALETTE, "BMP"),
    "bmp alpha": encoded(CLEAR, "BMP"),
    "bmp top down": bmp(24, down=True),
    "bmp of OS/2": bmp(24, header=12),
    "bmp version 5": bmp(24, header=124),
    "bmp 1 bit": bmp(1),
    "bmp 4 bits": bmp(4),
    "bmp 4 bits of OS/2": bmp(4, header=12),
    "bmp 8 bits, few colors": bmp(8, colors=20),
    "bmp 16 bits": bmp(16),
    "bmp 16 bits, masks": bmp(16, compression=3, masks=RGB),
    "bmp 16 bits, masks, version 4": bmp(16, 108, compression=3, masks=RGB),
    "bmp 32 bits": bmp(32),
    "bmp 32 bits, masks": bmp(
        32, 56, compression=3, masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_those_of_pillow(name):
    expected = by_pillow(EXACT[name])
    image = decode_file(EXACT[name], "").numpy()
    # The conversion of colors that were lost rounds in more than one way.
    np.testing.assert_allclose(image, expected, atol=2 if "lossy" in name else 0)


# What a SavedModel decodes as well, without Python.
SERVED = [
    *("png 1", "png palette", "png alpha", "png grey alpha", "apng"),
    *("gif", "gif animated", "webp", "webp alpha", "webp lossy alpha"),
    *("bmp RGB", "bmp alpha", "bmp top down", "bmp version 5", "bmp 32 bits"),
]


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_has_the_same_pixels(name):
    image = decode(EXACT[name])
    np.testing.assert_array_equal(image, decode_file(EXACT[name], ""))


def exif(orientation, order="<", kind=3):
    value = struct.pack(
        f"{order}I" if kind == 4 else f"{order}HH", *[orientation, 0][: 5 - kind]
    )
    entries = struct.pack(f"{order}HHI4s", 0x010F, 2, 3, b"ab\0\0")
    entries += struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 2) + entries + bytes(4)


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(10))
def test_jpegs_are_turned(orientation, order, kind):
    content = encoded(PHOTO, "JPEG", exif=exif(orientation, order, kind))
    raw = Image.fromarray(tf.io.decode_jpeg(content).numpy())
    raw.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(raw))
    np.testing.assert_array_equal(decode(content), expected)
    np.testing.assert_array_equal(decode_file(content, ""), expected)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_nearly_those_of_pillow(mode, options):
    content = encoded(PHOTO.convert(mode), "JPEG", quality=98, **options)
    np.testing.assert_allclose(decode(content), by_pillow(content).astype(int), atol=12)


def test_damaged_exif_is_no_error():
    content = encoded(PHOTO, "JPEG", exif=exif(6))
    start, randomly = content.index(b"Exif"), random.Random(0)
    for _ in range(200):
        at = {
            f"_{start + randomly.randrange(44)}" for _ in range(randomly.choice((1, 3)))
        }
        damaged = replaced(content, **dict.fromkeys(at, randomly.choice((0, 255, 77))))
        assert sorted(decode(damaged).shape) == [3, HEIGHT, WIDTH]


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "Received: an empty file"),
        (b"BMW is a make of cars, and not of images.", "Truncated"),
        ("gr\u00fc\u00dfe".encode(), "Received: text"),
        (b" <!DOCTYPE html><html>404</html>", "Received: HTML"),
        (b'<?xml version="1.0"?>\n<svg width="8">', "Received: SVG"),
        (b"\0\0\0\x20ftypavif", "Received: AVIF"),
        (b"\0\0\0\x20ftypheic", "Received: HEIC"),
        (b"%PDF-1.7", "Received: PDF"),
        (b"\x9a\xff\0zz", "Received: an unknown format"),
        (b"II*\0", "Received: one that is broken"),
        (bmp(24)[:-5], "truncated"),
        (EXACT["gif"][:-20], "truncated"),
        (EXACT["webp animated"][:80], "WebP|webp|decoder"),
        (EXACT["png RGB"][:60], "PNG"),
        (encoded(PHOTO, "JPEG")[:300], "JPEG"),
    ],
)
def test_what_cannot_be_decoded_is_named(content, error):
    with pytest.raises(tf.errors.OpError) as raised:
        decode_file(content, "")
    assert re.search(error, decoding.why(raised.value))


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "[Ee]mpty"),
        (b"no image", "One of JPEG, .* WebP required"),
        (encoded(PHOTO, "TIFF"), "One of JPEG, .* WebP required"),
        (bmp(8), "of 24 or 32 bits. Received: palette, masks or less"),
        (bmp(24, header=12), "of 24 or 32 bits"),
        (EXACT["bmp 32 bits, masks"], "of 24 or 32 bits"),
        (EXACT["webp animated"], "WebP file of one image. Received: an animation"),
        (EXACT["webp animated lossy alpha"], "WebP file of one image"),
    ],
)
def test_what_is_not_served_is_refused(content, error):
    with pytest.raises(tf.errors.InvalidArgumentError, match=error):
        decode(content)


def png_header(height, width):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)


LARGE = {
    "png": png_header(10_000, 10_001),
    "gif": replaced(EXACT["gif"], _7=255, _9=255),
    "bmp": b"BM" + bytes(8) + struct.pack("<IIII", 54, 40, 10_000, 10_001) + b"\1\0\1",
    "webp": replaced(EXACT["webp lossy alpha"], _25=255, _28=255),
    "jpeg": encoded(Image.new("L", (10_001, 10_000)), "JPEG"),
}
LARGE["bmp"] = replaced(LARGE["bmp"], _26=1, _28=24).ljust(54, b"\0")


@pytest.mark.parametrize("name", LARGE)
def test_images_of_too_many_pixels_are_refused_by_their_header(name):
    error = "at most 100000000 pixels|exceeds limit of"
    if name != "bmp":  # of which TensorFlow looks for the pixels first
        with pytest.raises(tf.errors.InvalidArgumentError, match=error):
            decode(LARGE[name])
    with pytest.raises(tf.errors.OpError, match=error):
        decode_file(LARGE[name], "large")


def test_errors_name_the_file():
    path = "/some/H\u00fcndin/1.png".encode()
    for name, shown in ((path, path.decode()), (b"caf\xe9.png", r"caf\xe9.png")):
        for content, what in ((b"text", "text"), (LARGE["png"], "10001")):
            with pytest.raises(tf.errors.OpError) as error:
                decode_file(content, name)
            assert decoding.why(error.value).endswith(f"{what} in '{shown}'")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_tiff(mode):
    content = encoded((CLEAR if "A" in mode else PHOTO).convert(mode), "TIFF")
    image = decode_file(content, "scan")
    np.testing.assert_array_equal(image, by_pillow(content))


def test_tiff_of_another_mode():
    deep = encoded(Image.fromarray(np.zeros((4, 5), "uint16")), "TIFF")
    with pytest.raises(tf.errors.OpError, match=r"Received: I;16 in .scan.tiff"):
        decode_file(deep, "scan.tiff")


def test_a_saved_model_decodes_the_same(tmp_path):
    module = tf.Module()
    module.decode = tf.function(
        lambda files: tf.map_fn(decoding.decode, files, fn_output_signature=tf.uint8),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    served = tf.saved_model.load(str(tmp_path)).decode
    files = [
        encoded(PHOTO, "JPEG", exif=exif(3)),
        EXACT["webp alpha"],
        EXACT["bmp RGB"],
    ]
    expected = [decode(file) for file in files]
    np.testing.assert_array_equal(served(tf.constant(files)), expected)
