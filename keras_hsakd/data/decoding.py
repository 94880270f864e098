"""Image files to pixels, in graph operations: what is served needs no code of ours.

The formats are those of `tf.io.decode_image`. What it leaves out of them is done here:
the orientation in which a camera was held, palettes of BMP files, the place of an
animation's first frame, and a limit on the number of pixels. Most files need none of
it, and the pipelines, where each operation costs, decode them without: see
`decode_file`.
"""

import functools
import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
# Endings of the one format that is told by them, and needs Pillow.
TIFF_ENDINGS = (".tif", ".tiff")

# The first bytes of files, "?" for any; the formats that are read come first.
_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF8"),
    ("BMP", b"BM" + b"?" * 13 + b"\0\0\0"),
    ("WebP", b"RIFF????WEBP"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
    ("AVIF", b"????ftypavi"),
    ("HEIC", b"????ftyphe"),
    ("HEIC or AVIF", b"????ftypmif1"),
    ("HEIC or AVIF", b"????ftypmsf1"),
    ("a video", b"????ftyp"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\0\0\0\x0cJXL "),
    ("JPEG 2000", b"\0\0\0\x0cjP  "),
    ("Photoshop", b"8BPS"),
    ("PDF", b"%PDF"),
    ("ZIP", b"PK\x03\x04"),
    ("a pointer of Git LFS", b"version https:/"),
    ("nothing but zeros", b"\0" * 16),
)
# What else text may be, by a regular expression of its beginning; the last is any text.
_TEXTS = (
    ("SVG", r"(?is)\s*<.*<svg.*|\s*<svg.*"),
    ("HTML", r"(?is)\s*<(!doctype|html|head|body).*"),
    ("text", r"[\s\x{20}-\x{7e}\x{80}-\x{10ffff}]*\C{0,3}"),
)
_SIGNATURE_LENGTH = 18
_PILLOW_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK")

_STRING = tf.TensorSpec((), tf.string)


_graph = functools.partial(tf.function, autograph=False)


def _apart(function):
    """Makes a branch a function of its own: not inlined, it costs nothing uncalled."""
    attributes = {"_noinline": True}
    in_graph = _graph(function, experimental_attributes=attributes)
    return lambda: function() if tf.executing_eagerly() else in_graph()


@_graph(input_signature=[_STRING])
def decode(content: tf.Tensor) -> tf.Tensor:
    """Decodes an image file to what a viewer shows: three channels, upright.

    A JPEG is turned as its EXIF orientation says. Of an animation it is the first
    frame, at its place in the whole. Grey images get three equal channels, and
    transparency is dropped.

    Args:
        content: Scalar string tensor, a file in the format JPEG, PNG, GIF, BMP or WebP,
            which is told from the content.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: If it is another format, has more than
            `MAX_PIXELS` by its header, or cannot be decoded.

    Example:
    >>> decode(tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))).shape
    TensorShape([9, 7, 3])
    """
    return _decoded(content)


@_graph(input_signature=[_STRING, _STRING])
def decode_file(content: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
    """Decodes as `decode`, in a pipeline, with the path in errors; TIFF by Pillow.

    Args:
        content: Scalar string tensor, the content of the file.
        path: Scalar string tensor. Of a path that ends in `.tif` or `.tiff`, the
            content may be TIFF: the first page, by Pillow.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Example:
    >>> content = tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))
    >>> decode_file(content, "black.png").shape
    TensorShape([9, 7, 3])
    """

    def through_python():
        # As stateful, it would keep a pipeline from reading in parallel where
        # operations are deterministic.
        return tf.numpy_function(
            _decode_file, [content, path], tf.uint8, stateful=False
        )

    def natively():
        return tf.io.decode_image(content, channels=3, expand_animations=False)

    @_apart
    def turned():
        return _decode_jpeg(content)

    # With all of `decode` in its graph, a pass would take long to begin.
    image = tf.switch_case(_difficulty(content), [natively, turned, through_python])
    return tf.ensure_shape(image, (None, None, 3))


def _difficulty(content):
    """Returns 0 for a file that TensorFlow decodes right, 1 for one to turn, else 2."""
    is_jpeg = tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(content, 0, 8) == b"\x89PNG\r\n\x1a\n"
    eighth = tf.minimum(8, tf.strings.length(content))
    is_webp = tf.strings.substr(content, eighth, 8) == b"WEBPVP8 "  # still and opaque
    size = tf.case(
        [
            (is_jpeg, lambda: _jpeg_size(content)),
            (is_png, lambda: _png_size(content)),
            (is_webp, lambda: _webp_size(content)),
        ],
        default=lambda: tf.zeros(2, tf.int64),
    )
    pixels = tf.reduce_prod(size)
    # EXIF data come near the beginning, and may be without an orientation.
    head = tf.strings.substr(content, 0, 2**16)
    has_exif = tf.strings.regex_full_match(head, r"(?s)\C*Exif\x00\x00\C*")
    easy = tf.cast(is_jpeg & has_exif, tf.int32)
    return tf.where((pixels > 0) & (pixels <= MAX_PIXELS), easy, 2)


def _decode_file(content, path):
    """Decodes any file, with the path in errors."""
    name = path.decode(errors="backslashreplace")
    with tf.device("CPU"):
        if name.lower().endswith(TIFF_ENDINGS) and _is_tiff(content):
            return _decode_tiff(content, name)
        try:
            # Not `decode`: as a function of TensorFlow it waits for one of the threads
            # that may all be waiting here.
            return _decoded(tf.constant(content)).numpy()
        except tf.errors.OpError as error:
            raise ValueError(f"{why(error)} in '{name}'") from None


def why(error: tf.errors.OpError) -> str:
    """Returns what is wrong with a file, of an error of `decode` or `decode_file`."""
    lines = error.message.splitlines()
    # The line before what TensorFlow, or Python within it, says of the place.
    places = ("\t [[", "Traceback", "The error could be from a previous operation")
    ends = [n for n, x in enumerate(lines) if x.startswith(places)]
    reason = lines[ends[0] - 1] if ends else lines[0]
    reason = re.sub(r"^\{\{.*?\}\} *| *\[Op:\w+\].*$", "", reason)
    reason = reason.removeprefix("Collective ops is aborted by: ")
    reason = re.sub(r"^Error in user-defined function .*? iterator: \S+: ", "", reason)
    reason = re.sub(r"^\{\{.*?\}\} *", "", reason)
    for prefix in ("assertion failed: [", "ValueError: ", "ImportError: "):
        reason = reason.removeprefix(prefix)
    return reason.removesuffix("]")


def read(path: tf.Tensor) -> tf.Tensor:
    """Reads an image file, see `decode_file`.

    Args:
        path: Scalar string tensor.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Example:
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/black.png"
    >>> tf.io.write_file(path, tf.io.encode_png(tf.zeros((9, 7, 3), tf.uint8)))
    >>> read(path).shape
    TensorShape([9, 7, 3])
    """
    return decode_file(tf.io.read_file(path), path)


@_graph(input_signature=[_STRING])
def image_size(content: tf.Tensor) -> tf.Tensor:
    """Returns height and width as the header of an image file has them.

    Nothing is decoded, and a JPEG not turned by its EXIF orientation.

    Args:
        content: Scalar string tensor, as for `decode`.

    Returns:
        An int64 tensor of shape `(2,)`; zeros for other formats.

    Example:
    >>> image_size(tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))).numpy()
    array([9, 7])
    """
    sizes = [functools.partial(size, content) for size, _ in _formats().values()]
    nothing = functools.partial(tf.zeros, 2, tf.int64)
    size = tf.switch_case(_format_index(content), [*sizes, nothing])
    return tf.ensure_shape(size, (2,))


def _decoded(content):
    """Returns the image."""

    def branch(size_of, decoder):
        @_apart
        def limited():
            size = size_of(content)
            height, width = tf.unstack(size)
            allowed = _ensured(
                content,
                height * width <= MAX_PIXELS,
                lambda: [
                    f"Expected an image of at most {MAX_PIXELS} pixels. Received: ",
                    *(tf.strings.as_string(height), " x ", tf.strings.as_string(width)),
                ],
            )
            return decoder(allowed, size)

        return limited

    @_apart
    def unknown():
        read = [*_formats()]
        expected = f"{', '.join(read[:-1])} or {read[-1]}"
        message = [f"Expected a {expected} file. Received: ", _name(content)]
        return _error(tf.zeros((0, 0, 3), tf.uint8), message)

    branches = [branch(*functions) for functions in _formats().values()]
    image = tf.switch_case(_format_index(content), [*branches, unknown])
    return tf.ensure_shape(image, (None, None, 3))


def _formats():
    """Returns, for each format that is read, functions for its size and its pixels."""
    return {
        "JPEG": (_jpeg_size, _decode_jpeg),
        "PNG": (_png_size, _decode_png),
        "GIF": (_gif_size, _decode_gif),
        "BMP": (_bmp_size, _decode_bmp),
        "WebP": (_webp_size, _decode_webp),
    }


def _native(content, channels=3):
    image = tf.io.decode_image(content, channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, None))[..., :3]


def _ensured(value, condition, message):
    """Returns `value`; where `condition` is false, an error of the parts of a message.

    As `value` passes through it, what is made of it comes after the check.
    """
    return tf.cond(
        condition, lambda: tf.identity(value), lambda: _error(value, message())
    )


def _error(value, message):
    """Fails with the parts of a message, in the place of something like `value`."""
    text = tf.strings.join(message)
    with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=[text])]):
        return tf.identity(value)


# Bytes


def _bytes(content, position, count):
    """Returns `count` bytes as int64, zeros where the file has ended."""
    length = tf.cast(tf.strings.length(content), tf.int64)
    position = tf.minimum(length, position)
    part = tf.strings.substr(content, position, tf.cast(count, tf.int64))
    values = tf.io.decode_raw(part, tf.uint8, fixed_length=tf.cast(count, tf.int32))
    return tf.cast(values, tf.int64)


def _numbers(values, positions, count, big_endian=False):
    """Returns the numbers that `count` bytes are, from each of several positions."""
    places = np.arange(count)[:: -1 if big_endian else 1]
    values = tf.gather(values, np.add.outer(positions, places), axis=-1)
    return tf.reduce_sum(values * 256 ** np.arange(count, dtype="int64"), axis=-1)


def _four_bytes(number):
    """Returns a number as a string of four bytes, the lowest first."""
    characters = tf.constant([bytes([value]) for value in range(256)])
    digits = tf.cast(number, tf.int64) // np.array([1, 2**8, 2**16, 2**24]) % 256
    return tf.strings.reduce_join(tf.gather(characters, digits))


def _where(condition, first, second):
    """Returns one or the other, as int64."""
    first, second = (tf.convert_to_tensor(x, tf.int64) for x in (first, second))
    return tf.where(condition, first, second)


# Formats


def _hits(content):
    """Returns which of `_SIGNATURES` a file begins with, as booleans."""
    patterns = [pattern.ljust(_SIGNATURE_LENGTH, b"?") for _, pattern in _SIGNATURES]
    table = np.frombuffer(b"".join(patterns), "uint8").reshape(len(patterns), -1)
    head = _bytes(content, 0, _SIGNATURE_LENGTH)
    return tf.reduce_all((head == table.astype("int64")) | (table == ord("?")), axis=1)


def _format_index(content):
    """Returns the index of a file's format in `_formats`, or their number."""
    hits = _hits(content)[: len(_formats())]
    return tf.argmax(tf.pad(hits, [[0, 1]], constant_values=True), output_type=tf.int32)


def _name(content):
    """Returns what a file is, in words."""
    head = tf.strings.substr(content, 0, 1024)
    name = tf.constant("an unknown format")
    for text, pattern in reversed(_TEXTS):
        name = tf.where(tf.strings.regex_full_match(head, pattern), text, name)
    hits = tf.pad(_hits(content), [[0, 1]], constant_values=True)
    name = tf.stack([*(name for name, _ in _SIGNATURES), name])[tf.argmax(hits)]
    return tf.where(content == "", "an empty file", name)


# JPEG


def _jpeg_size(content):
    return tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64)


def _decode_jpeg(content, size=None):
    return _upright(_native(content), _orientation(content))


def _orientation(content):
    """Returns the EXIF orientation of a JPEG file, 1 to 8; 1 where there is none."""

    def at_segment(position):
        return _bytes(content, position, 10)

    def is_exif(head):
        return (head[1] == 0xE1) & tf.reduce_all(head[4:] == [*b"Exif\0\0"])

    def goes_on(position, head):
        # EXIF comes among the segments of applications and comments, the first.
        passed = (head[1] // 16 == 0xE) | (head[1] == 0xFE) | (head[1] == 0xFF)
        return (head[0] == 0xFF) & passed & ~is_exif(head)

    def next_segment(position, head):
        length = _numbers(head, 2, 2, big_endian=True)
        # A marker may have any number of fill bytes before it.
        position += _where(head[1] == 0xFF, 1, 2 + length)
        return position, at_segment(position)

    @_apart
    def found():
        size = tf.maximum(_numbers(head, 2, 2, big_endian=True) - 8, 0)
        return _orientation_entry(tf.strings.substr(content, position + 10, size))

    start = tf.constant(2, tf.int64)
    position, head = tf.while_loop(goes_on, next_segment, (start, at_segment(start)))
    return tf.cond(is_exif(head), found, lambda: tf.constant(1, tf.int64))


def _orientation_entry(exif):
    """Returns the orientation in EXIF data, a TIFF structure; 1 where there is none."""
    head = _bytes(exif, 0, 8)
    big_endian = tf.reduce_all(head[:4] == [*b"MM\0*"])
    valid = big_endian | tf.reduce_all(head[:4] == [*b"II*\0"])

    def numbers(values, positions, count):
        both = (_numbers(values, positions, count, order) for order in (True, False))
        return tf.where(big_endian, *both)

    directory = numbers(head, 4, 4)
    count = numbers(_bytes(exif, directory, 2), 0, 2)
    # A segment has no place for more than these.
    count = tf.clip_by_value(count, 1, 2**16 // 12)
    entries = tf.reshape(_bytes(exif, directory + 2, 12 * count), (-1, 12))
    tags, types, values = tf.unstack(numbers(entries, (0, 2, 8), 2), axis=1)
    values = tf.where(types == 4, numbers(entries, 8, 4), values)
    found = valid & (tags == 0x0112) & (values >= 1) & (values <= 8)
    return tf.reduce_max(_where(found, values, 1))


def _upright(image, orientation):
    """Turns an image by its EXIF orientation."""

    def is_one_of(*values):
        return tf.reduce_any(orientation == values)

    def turned():
        transposed = tf.cond(
            orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image
        )
        rows = tf.where(is_one_of(3, 4, 7, 8), -1, 1)
        columns = tf.where(is_one_of(2, 3, 6, 7), -1, 1)
        return transposed[::rows, ::columns]

    return tf.cond(orientation > 1, turned, lambda: image)


# PNG


def _png_size(content):
    return _numbers(_bytes(content, 0, 24), (20, 16), 4, big_endian=True)


def _decode_png(content, size):
    return _native(content)


# BMP


def _bmp_size(content):
    head = _bytes(content, 14, 12)
    size = _where(head[0] == 12, _numbers(head, (6, 4), 2), _numbers(head, (8, 4), 4))
    # With a negative height the rows go down.
    return tf.where(size >= 2**31, 2**32 - size, size)


def _decode_bmp(content, size):
    height, width = tf.unstack(size)
    head = _bytes(content, 0, 66)
    fields = _numbers(head, (10, 14, 22, 30, 46), 4)
    start, header_size, signed_height, compression, colors = tf.unstack(fields)
    short = header_size == 12  # the header of OS/2 and Windows 2
    down = ~short & (signed_height >= 2**31)
    bits = _where(short, *tf.unstack(_numbers(head, (24, 28), 2)))
    compression, colors = (_where(short, 0, x) for x in (compression, colors))
    masked = (compression == 3) | (compression == 6)
    bits = _ensured(
        bits,
        tf.reduce_any(bits == (1, 2, 4, 8, 16, 24, 32))
        & ((compression == 0) | (masked & ((bits == 16) | (bits == 32)))),
        lambda: [
            "Expected a BMP file of 1, 2, 4, 8, 16, 24 or 32 bits a pixel that is not "
            "compressed. Received: ",
            *(tf.strings.as_string(bits), " bits, compression "),
            tf.strings.as_string(compression),
        ],
    )
    row_size = (width * bits + 31) // 32 * 4
    # The last row may lack its padding.
    needed = start + (height - 1) * row_size + (width * bits + 7) // 8
    length = tf.strings.length(content)
    content = _ensured(
        content,
        (height > 0) & (width > 0) & (needed <= tf.cast(length, tf.int64)),
        lambda: [
            "Expected a BMP file as long as its header says. Received: ",
            *(tf.strings.as_string(length), " bytes of "),
            tf.strings.as_string(needed),
        ],
    )
    part = tf.strings.substr(content, start, height * row_size)
    pixels = tf.io.decode_raw(
        part, tf.uint8, fixed_length=tf.cast(height * row_size, tf.int32)
    )
    pixels = tf.reshape(pixels, (height, row_size))

    def by_palette():
        per_color = _where(short, 3, 4)
        most = 2 ** tf.minimum(bits, 8)
        count = tf.where((colors == 0) | (colors > most), most, colors)
        palette = _bytes(content, 14 + header_size, count * per_color)
        palette = tf.reshape(palette, (count, per_color))[:, 2::-1]
        palette = tf.pad(tf.cast(palette, tf.uint8), [[0, 256 - count], [0, 0]])
        shifts = tf.cast(tf.range(8 - bits, -1, -bits), tf.uint8)
        indices = tf.bitwise.right_shift(pixels[..., tf.newaxis], shifts)
        indices = tf.reshape(indices, (height, -1))[:, :width]
        indices = tf.bitwise.bitwise_and(indices, tf.cast(most - 1, tf.uint8))
        return tf.gather(palette, tf.cast(indices, tf.int32))

    def separate():
        channels = bits // 8
        rows = pixels[:, : width * channels]
        return tf.reshape(rows, (height, width, channels))

    def by_masks():
        values = tf.cast(separate(), tf.int64) * 256 ** tf.range(bits // 8)
        values = tf.reduce_sum(values, axis=-1, keepdims=True)
        masks = _numbers(head, (54, 58, 62), 4)
        masks = _where(masked, masks, [31 << 10, 31 << 5, 31])
        lowest = tf.maximum(tf.bitwise.bitwise_and(masks, -masks), 1)
        values = tf.bitwise.bitwise_and(values, masks) // lowest
        return tf.cast(values * 255 // tf.maximum(masks // lowest, 1), tf.uint8)

    image = tf.case(
        [(bits <= 8, by_palette), (masked | (bits == 16), by_masks)],
        default=lambda: separate()[..., 2::-1],
    )
    return image[:: tf.where(down, 1, -1)]


# GIF


def _after_blocks(content, position):
    """Returns the end of a chain of blocks, each length and data, the last empty."""

    def size(position):
        return _bytes(content, position, 1)[0]

    def next_block(position, of_this):
        position += 1 + of_this
        return position, size(position)

    position, _ = tf.while_loop(
        lambda _, size: size > 0, next_block, (position, size(position))
    )
    return position + 1


def _color_table_size(flags):
    """Returns the bytes of the color table that a flag announces."""
    return _where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _gif_image(content):
    """Returns where the first image is, its descriptor, and the transparent color."""

    def next_extension(position, block, color):
        is_control = (block[1] == 0xF9) & (block[3] % 2 == 1)
        position = _after_blocks(content, position + 2)
        color = tf.where(is_control, block[6], color)
        return position, _bytes(content, position, 10), color

    start = 13 + _color_table_size(_bytes(content, 10, 1)[0])
    return tf.while_loop(
        lambda position, block, color: block[0] == 0x21,
        next_extension,
        (start, _bytes(content, start, 10), tf.constant(0, tf.int64)),
    )


def _gif_size(content):
    _, block, _ = _gif_image(content)
    needed = _numbers(block, (3, 1), 2) + _numbers(block, (7, 5), 2)
    return tf.maximum(_numbers(_bytes(content, 6, 4), (2, 0), 2), needed)


def _decode_gif(content, size):
    """Decodes the first frame, by a file that has no other.

    TensorFlow would decode all, place the first at the top left, and make black what is
    transparent, with the colors of which other formats are left.
    """
    position, block, color = _gif_image(content)
    top, left = tf.unstack(_numbers(block, (3, 1), 2))
    local = _color_table_size(block[9])
    common = _color_table_size(_bytes(content, 10, 1)[0])
    end = _after_blocks(content, position + 10 + local + 1)

    def single():
        head = tf.strings.substr(content, 0, tf.cast(13 + common, tf.int32))
        frame = tf.strings.substr(content, position + 5, end - position - 5)
        return tf.strings.join([head, b",\0\0\0\0", frame, b";"])

    whole = (block[0] == ord(",")) & (
        end <= tf.cast(tf.strings.length(content), tf.int64)
    )
    image = _native(tf.cond(whole, single, lambda: content))
    palette = _where(local > 0, position + 10, 13)
    fill = _bytes(content, palette + 3 * color, 3) * tf.sign(local + common)
    return _placed(image, top, left, size, tf.cast(fill, tf.uint8))


def _placed(image, top, left, size, fill=0):
    """Returns an image of a size with another image at a place in it."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
    bottom, right = size[0] - top - height, size[1] - left - width
    paddings = [(top, bottom), (left, right), (0, 0)]
    # Unsigned numbers wrap around: the image comes out as it was.
    return tf.pad(image - fill, paddings) + fill


# WebP


def _webp_size(content):
    head = _bytes(content, 12, 18)
    kind = head[3]
    lossy = _numbers(head, (16, 14), 2) % 2**14
    lossless = _numbers(head, 9, 4) // np.array([2**14, 1]) % 2**14 + 1
    canvas = _numbers(head, (15, 12), 3) + 1
    size = tf.where(kind == ord("L"), lossless, lossy)
    return tf.where(kind == ord("X"), canvas, size)


def _decode_webp(content, size):
    head = _bytes(content, 12, 9)
    animated = (head[3] == ord("X")) & (head[8] // 2 % 2 == 1)
    return tf.cond(
        animated,
        lambda: _first_webp_frame(content, size),
        lambda: _native(content, channels=0),
    )


def _first_webp_frame(content, size):
    """Decodes the first frame of an animation, by a file of a still image."""

    def is_named(head, name):
        return tf.reduce_all(head[:4] == [*name])

    def at_chunk(position):
        return _bytes(content, position, 8)

    def after_chunk(position, head):
        size = _numbers(head, 4, 4)
        return position + 8 + size + size % 2

    def next_chunk(position, head):
        position = after_chunk(position, head)
        return position, at_chunk(position)

    end = tf.cast(tf.strings.length(content), tf.int64)
    start = tf.constant(30, tf.int64)
    position, _ = tf.while_loop(
        lambda position, head: ~is_named(head, b"ANMF") & (position < end),
        next_chunk,
        (start, at_chunk(start)),
    )
    top, left = tf.unstack(2 * _numbers(_bytes(content, position + 8, 6), (3, 0), 3))
    # Transparency, which is dropped, may come before the image.
    image = position + 24
    head = at_chunk(image)
    image = _where(is_named(head, b"ALPH"), after_chunk(image, head), image)
    image = tf.minimum(image, end)
    chunk = tf.strings.substr(
        content, image, after_chunk(image, at_chunk(image)) - image
    )
    still = tf.strings.join(
        [b"RIFF", _four_bytes(4 + tf.strings.length(chunk)), b"WEBP", chunk]
    )
    still = _ensured(
        still,
        tf.reduce_all(_webp_size(still) + tf.stack([top, left]) <= size),
        lambda: ["Expected a frame within its animation. Received: not so"],
    )
    return _placed(_native(still, channels=0), top, left, size)


# TIFF


def _is_tiff(content):
    rows = [name == "TIFF" for name, _ in _SIGNATURES]
    return tf.reduce_any(_hits(content) & rows)


def _decode_tiff(content, name):
    """Decodes the first page of a TIFF file by Pillow."""
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"Expected an image of at most {MAX_PIXELS} pixels. "
                f"Received: {image.height} x {image.width} in '{name}'"
            )
        if image.mode not in _PILLOW_MODES:
            raise ValueError(
                f"Expected a TIFF file of one of the modes {_PILLOW_MODES}. "
                f"Received: {image.mode} in '{name}'"
            )
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
