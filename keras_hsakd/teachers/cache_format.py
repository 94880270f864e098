"""The files of a teacher cache: what is in them, and whether it is as it was written.

The folder has a header, `header.json`, and a file for each variant, `variant-000.npy`:
NumPy's format, with a row for each image in the order of the data set, and a field for
each output.
"""

import os
import zlib
from collections.abc import Mapping

import numpy as np

from keras_hsakd import digests, views
from keras_hsakd.files import read_json

FORMAT = 1
HEADER = "header.json"
CHECKSUMS = ("digest", "files")
_LARGEST_OF_8_BITS = 255


def num_bytes(
    num_images: int,
    variants: int,
    num_views: int,
    outputs: Mapping[str, int],
    dtype: str = "float16",
) -> int:
    """Returns the size of a cache.

    Args:
        num_images: Int.
        variants: Int, the number of augmentations of each image.
        num_views: Int, the number of views of each of them.
        outputs: Dict from the names of the outputs to their widths.
        dtype: As in `TeacherCache.write`. Defaults to `"float16"`.

    Example:
    >>> num_bytes(50_000, 8, 4, {"logits": 100, "aux_1": 400, "aux_2": 400})
    2880000000
    """
    return num_images * variants * row_dtype(outputs, num_views, dtype).itemsize


def read_header(path):
    """Returns the header of a whole cache."""
    file = os.path.join(path, HEADER)
    if not os.path.isfile(file):
        partial = f"{path}.partial"
        raise FileNotFoundError(
            "Expected a teacher cache, which `keras-hsakd cache` or "
            f"`TeacherCache.write` wrote. Received: '{path}', "
            + (
                f"of which '{partial}' is a part; the command that began it goes on"
                if os.path.isdir(partial)
                else f"which has no {HEADER}"
            )
        )
    header = read_json(file)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"Expected '{file}' to be of format {FORMAT}. "
            f"Received: format {header.get('format')}"
        )
    content = {name: value for name, value in header.items() if name != "digest"}
    found = digests.of_json(content)
    if header.get("digest") != found:
        raise changed(file, f"checksum {found}, and not {header.get('digest')}")
    return header


def changed(path, received):
    """Returns the error of a file that is not as it was written."""
    return ValueError(
        f"Expected '{path}' of a teacher cache to be as it was written. "
        f"Received: {received}"
    )


def checksum(path):
    """Returns a checksum of a file; of a missing one, that it is."""
    checksum = 0
    if not os.path.isfile(path):
        return "of no file"
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def file_name(variant):
    """Returns the name of the file of a variant."""
    return f"variant-{variant:03}.npy"


def row_dtype(outputs, num_views, dtype):
    """Returns the dtype of what is kept of an image."""
    fields = [(name, dtype, (num_views, width)) for name, width in outputs.items()]
    if dtype == "uint8":
        fields += [
            (f"{name}_{part}", "float32", (num_views,))
            for name in outputs
            for part in ("scale", "offset")
        ]
    return np.dtype(fields)


def rows_of(outputs, row):
    """Returns a teacher's outputs as rows of a file.

    Raises:
        ValueError: If one is not finite, or too large for the dtype.
    """
    first, *_ = outputs.values()
    rows = np.empty(len(first), row)
    for name, values in outputs.items():
        dtype = row[name].base
        largest = np.abs(values).max()
        # Eight bits stand for parts of a range that is kept in float32.
        if not largest <= np.finfo("float32" if dtype == "uint8" else dtype).max:
            hint = "; dtype='float32' holds larger ones" if dtype == "float16" else ""
            raise ValueError(
                f"Expected finite outputs that {dtype} can hold{hint}. "
                f"Received: {largest:g} in '{name}'"
            )
        if dtype == "uint8":
            low, high = values.min(axis=-1), values.max(axis=-1)
            scale = (high - low) / _LARGEST_OF_8_BITS
            rows[f"{name}_offset"], rows[f"{name}_scale"] = low, scale
            steps = (values - low[..., None]) / np.where(scale, scale, 1)[..., None]
            values = np.rint(steps)
        rows[name] = values
    return rows


def restored(read, name):
    """Returns an output as floats."""
    values = read[name]
    if values.dtype != "uint8":
        return values
    scale, offset = (read[f"{name}_{part}"][..., None] for part in ("scale", "offset"))
    return values * scale + offset


def write_file_header(file, row, num_images):
    """Writes the header of a `.npy` file, and returns its length."""
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(row),
            "fortran_order": False,
            "shape": (num_images,),
        },
    )
    file.flush()
    return file.tell()


def differences(expected, received, without=()):
    """Returns pairs of what differs in two headers, by names."""
    differing = {}
    for name in expected.keys() | received.keys():
        one, other = expected.get(name), received.get(name)
        same = views.are_same(one, other) if name == "views" else one == other
        if same or name in without:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            differing |= differences(one, other)
        else:
            differing[name] = one, other
    return dict(sorted(differing.items()))


def listed(differing, which):
    """Returns one side of `differences` as text."""
    return ", ".join(f"{name} {shown(pair[which])}" for name, pair in differing.items())


def shown(value):
    """Returns a value as text."""
    return f"'{value}'" if isinstance(value, str) else str(value)
