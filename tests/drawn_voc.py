"""Pascal VOC as TensorFlow Datasets builds it, of shapes drawn on noise."""

import hashlib
import io
import pathlib
import tarfile
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras import layers
from tensorflow_datasets.core.download.checksums import UrlInfo

# Names of VOC for what is drawn: the builder knows no others.
SHAPES = {"bird": "disc", "boat": "bar", "cat": "frame"}
SPLITS = {"trainval": ("train", "val"), "test": ("test",)}


def shape(kind, size):
    """Returns where a square of some pixels is filled."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.maximum(abs(x), abs(y))
    filled = {
        "disc": x**2 + y**2 <= (size / 2) ** 2,
        "bar": abs(x) <= size / 4,
        "frame": radius >= size / 4,
    }
    return filled[kind]


def draw(rng, image, name, top, left, size):
    """Draws a shape into an image, in a color of its own."""
    window = image[top : top + size, left : left + size]
    window[shape(SHAPES[name], size)] = rng.integers(0, 256, 3)


def noise(rng, size):
    return rng.integers(60, 200, (size, size, 3)).astype("uint8")


def image_with_objects(rng, size):
    """Returns an image and its objects, a name and (left, top, right, bottom) each."""
    image, objects = noise(rng, size), []
    for left in rng.permutation([0, size // 2])[: rng.integers(1, 3)]:
        edge = int(rng.integers(2 * size // 5, size // 2 + 1))
        top = int(rng.integers(0, size - edge + 1))
        name = str(rng.choice(list(SHAPES)))
        draw(rng, image, name, top, left, edge)
        inside = abs(np.argwhere(shape(SHAPES[name], edge)))
        (y, x), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
        objects.append((name, (left + x, top + y, left + right, top + bottom)))
    return image, objects


def classes(count, size, seed):
    """Returns images of one shape each, and the numbers of their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SHAPES), count)
    images = np.empty((count, size, size, 3), "float32")
    for number, label in enumerate(labels):
        image, edge = noise(rng, size), int(rng.integers(2 * size // 5, size // 2 + 1))
        top, left = rng.integers(0, size - edge + 1, 2)
        draw(rng, image, list(SHAPES)[label], top, left, edge)
        images[number] = image
    return images, labels


def annotation(size, objects):
    """Returns the XML file that VOC has of an image."""
    found = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    )
    edges = f"<size><width>{size}</width><height>{size}</height></size>"
    return f"<annotation>{edges}{found}</annotation>".encode()


def archive(year, part, counts, size, rng):
    """Returns an archive as VOC publishes it, in bytes."""
    folder = f"VOCdevkit/VOC{year}"
    files = {}
    for split in SPLITS[part]:
        names = [f"{split}{number:05}" for number in range(counts[split])]
        files[f"{folder}/ImageSets/Main/{split}.txt"] = "\n".join(names).encode()
        for name in names:
            image, objects = image_with_objects(rng, size)
            files[f"{folder}/JPEGImages/{name}.jpg"] = tf.io.encode_jpeg(image).numpy()
            files[f"{folder}/Annotations/{name}.xml"] = annotation(size, objects)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def build(data_dir, year="2007", train=32, val=8, test=16, size=64, seed=0):
    """Has the builder of TFDS prepare `voc/<year>` in a folder, offline."""
    tfds.disable_progress_bar()
    data_dir = pathlib.Path(data_dir)
    downloads = data_dir / "downloads" / "manual"
    downloads.mkdir(parents=True, exist_ok=True)
    builder = tfds.builder(f"voc/{year}", data_dir=str(data_dir))
    module = tfds.object_detection.voc
    rng = np.random.default_rng(seed)
    counts = {"train": train, "val": val, "test": test}
    urls = {}
    for part, name in builder.builder_config.filenames.items():
        content = archive(year, part, counts, size, rng)
        (downloads / name).write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        urls[module._VOC_DATA_URL + name] = UrlInfo(len(content), checksum, name)
    with mock.patch.object(type(builder), "url_infos", urls):
        builder.download_and_prepare(
            download_dir=str(data_dir / "downloads"),
            download_config=tfds.download.DownloadConfig(manual_dir=str(downloads)),
        )
    return builder


def classifier(width, size):
    """Returns a network that takes images of 0 to 255 and has strides up to 32."""
    x = images = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    for number in range(5):
        x = layers.Conv2D(width * min(2**number, 4), 3, 2, padding="same")(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(len(SHAPES))(x))
