"""Image files to pixels.

JPEG and PNG are TensorFlow's everywhere, turned as the camera was held; other formats
are Pillow's in the pipelines, and TensorFlow's where they are served, without Python.
"""

import functools
import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_PILLOW_MODES = ("1", "L", "P", "PA", "RGB", "RGBA", "RGBX", "LA", "CMYK")
# What else files may be, by their beginnings.
_OTHERS = {
    rb"\Z": "an empty file",
    rb"....ftypavi": "AVIF",
    rb"....ftyphe": "HEIC",
    rb"....ftyp(mif1|msf1)": "HEIC or AVIF",
    rb"....ftyp": "a video",
    rb"\xff\n|\0\0\0\x0cJXL ": "JPEG XL",
    rb"\0\0\0\x0cjP  ": "JPEG 2000",
    rb"8BPS": "Photoshop",
    rb"%PDF": "PDF",
    rb"PK\x03\x04": "ZIP",
    rb"version https:/": "a pointer of Git LFS",
    rb"\0{16}": "nothing but zeros",
    rb"(?i)\s*<(.*<)?svg": "SVG",
    rb"(?i)\s*<(!doctype|html|head|body)": "HTML",
    rb"[\s\x20-\x7e\x80-\xff]*\Z": "text",
    rb"II|MM|BM|GIF8|RIFF": "one that is broken",
}

_STRING = tf.TensorSpec((), tf.string)
_graph = functools.partial(tf.function, autograph=False)


def _apart(function):
    """Makes a branch a function of its own: not inlined, it costs nothing uncalled."""
    attributes = {"_noinline": True}
    in_graph = _graph(function, experimental_attributes=attributes)
    return lambda: function() if tf.executing_eagerly() else in_graph()


@_graph(input_signature=[_STRING])
def decode(content: tf.Tensor) -> tf.Tensor:
    """Decodes an image file in graph operations, which a SavedModel can have.

    A JPEG is turned as its EXIF orientation says. Grey images get three equal channels,
    and transparency is dropped.

    Args:
        content: Scalar string tensor, a file in a format of `tf.io.decode_image`, which
            is told from the content. Of BMP those of 24 or 32 bits that are not
            compressed, of WebP those that are not animated; of an animated GIF it is
            the first frame, without what is around it.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: If it is another format, has more than
            `MAX_PIXELS` by its header, or cannot be decoded.

    Example:
    >>> decode(tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))).shape
    TensorShape([9, 7, 3])
    """
    content = _checked(content)
    image = tf.case(
        [
            (_begins(content, _JPEG), lambda: _decode_jpeg(content)),
            (_begins(content, _PNG), lambda: _native(content)),
        ],
        # Of BMP and WebP TensorFlow drops no transparency itself.
        default=lambda: _native(content, channels=0),
    )
    return tf.ensure_shape(image, (None, None, 3))


@_graph(input_signature=[_STRING, _STRING])
def decode_file(content: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
    """Decodes an image file in a pipeline to what a viewer shows.

    JPEG and PNG are decoded as by `decode`, others by Pillow: of an animation the first
    frame, at its place in the whole, of several pages the first.

    Args:
        content: Scalar string tensor, a file in the format JPEG, PNG, GIF, BMP, WebP or
            TIFF, which is told from the content.
        path: Scalar string tensor, which errors name; it may be empty.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Raises:
        tf.errors.OpError: As `decode`, with the path; see `why`.

    Example:
    >>> content = tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))
    >>> decode_file(content, "black.png").shape
    TensorShape([9, 7, 3])
    """
    size = _size(content)

    def by_pillow():
        # As stateful, it would keep a pipeline from reading in parallel where
        # operations are deterministic.
        arguments = [content, path, size]
        return tf.numpy_function(_by_pillow, arguments, tf.uint8, stateful=False)

    @_apart
    def turned():
        return _decode_jpeg(content)

    # EXIF data come near the beginning, and may be without an orientation.
    head = tf.strings.substr(content, 0, 2**16)
    has_exif = tf.strings.regex_full_match(head, r"(?s)\C*Exif\x00\x00\C*")
    is_jpeg = _begins(content, _JPEG)
    pixels = tf.reduce_prod(size)
    is_native = (is_jpeg | _begins(content, _PNG)) & (pixels > 0)
    is_native &= pixels <= MAX_PIXELS
    branch = tf.where(is_native, tf.cast(is_jpeg & has_exif, tf.int32), 2)
    image = tf.switch_case(branch, [lambda: _native(content), turned, by_pillow])
    return tf.ensure_shape(image, (None, None, 3))


def _by_pillow(content, path, size):
    """Decodes any file, with the path in errors."""
    try:
        _check_pixels(*size)
        with Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS) as image:
            _check_pixels(image.height, image.width)
            if image.mode not in _PILLOW_MODES:
                raise ValueError(
                    f"Expected an image of one of the modes {_PILLOW_MODES}. "
                    f"Received: {image.mode}"
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        kind = next(
            (
                kind
                for start, kind in _OTHERS.items()
                if re.match(start, content[:1024], re.DOTALL)
            ),
            "an unknown format",
        )
        reason = f"Expected a JPEG, PNG, GIF, BMP, WebP or TIFF file. Received: {kind}"
    except Exception as error:  # a plugin of Pillow may raise any
        reason = str(error)
    name = path.decode(errors="backslashreplace")
    raise ValueError(f"{reason} in '{name}'" if name else reason)


def _check_pixels(height, width):
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"Expected an image of at most {MAX_PIXELS} pixels. "
            f"Received: {height} x {width}"
        )


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


def _native(content, channels=3):
    image = tf.io.decode_image(content, channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, None))[..., :3]


def _begins(content, start):
    return tf.strings.substr(content, 0, len(start)) == start


def _size(content):
    """Returns height and width by the header; zeros where that is not known."""

    def png():
        return _numbers(_bytes(content, 16, 8), (4, 0), 4, big_endian=True)

    def gif():
        return _numbers(_bytes(content, 6, 4), (2, 0), 2)

    def webp():
        head = _bytes(content, 12, 18)
        lossy = _numbers(head, (16, 14), 2) % 2**14
        lossless = _numbers(head, 9, 4) // np.array([2**14, 1]) % 2**14 + 1
        canvas = _numbers(head, (15, 12), 3) + 1
        size = tf.where(head[3] == ord("L"), lossless, lossy)
        return tf.where(head[3] == ord("X"), canvas, size)

    def jpeg():
        return tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64)

    formats = ((_JPEG, jpeg), (_PNG, png), (b"GIF8", gif), (b"RIFF", webp))
    return tf.ensure_shape(
        tf.case(
            [(_begins(content, start), size) for start, size in formats],
            default=lambda: tf.zeros(2, tf.int64),
        ),
        (2,),
    )


def _checked(content):
    """Returns a file that TensorFlow decodes right, or fails."""
    height, width = tf.unstack(_size(content))
    head = _bytes(content, 0, 34)
    # TensorFlow takes palettes for shades of grey, and masks for what they are mostly.
    header, bits, compression = _numbers(head, 14, 4), _numbers(head, 28, 2), head[30]
    plain = (header > 12) & ((bits == 24) | (bits == 32)) & (compression == 0)
    # Of an animated WebP it writes past the end of its memory.
    animated = (head[15] == ord("X")) & (head[20] // 2 % 2 == 1)
    for fault, message in (
        (
            height * width > MAX_PIXELS,
            [
                f"Expected an image of at most {MAX_PIXELS} pixels. Received: ",
                *(tf.strings.as_string(height), " x ", tf.strings.as_string(width)),
            ],
        ),
        (
            _begins(content, b"BM") & ~plain,
            ["Expected a BMP file of 24 or 32 bits. Received: palette, masks or less"],
        ),
        (
            _begins(content, b"RIFF") & animated,
            ["Expected a WebP file of one image. Received: an animation"],
        ),
    ):
        text = tf.strings.join(message)
        # What is made of it comes after the check.
        with tf.control_dependencies(
            [tf.raw_ops.Assert(condition=~fault, data=[text])]
        ):
            content = tf.identity(content)
    return content


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


def _where(condition, first, second):
    """Returns one or the other, as int64."""
    first, second = (tf.convert_to_tensor(x, tf.int64) for x in (first, second))
    return tf.where(condition, first, second)


# JPEG


def _decode_jpeg(content):
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
