import gc
import hashlib
import io
import os
import random
import signal
import tarfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from keras_hsakd import attach_heads, layers, models, strip_heads
from keras_hsakd.sizes import edges

# Tests send signals. A process that was started by `nohup`, or with `&` in a script,
# ignores some of them, as our commands then do, too: here none is ignored.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def clean_keras():
    # What weights begin with; `keras.utils.set_random_seed` would have TensorFlow drop
    # what it has compiled.
    random.seed(0)
    np.random.seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keeps the user's cache folder out of tests, also in processes that they start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def freeze_modules():
    """Spares the garbage collector what was imported: a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def collect_garbage():
    """Gives back what a module made: graphs and the variables in them go in circles."""
    yield
    gc.collect()


@pytest.fixture
def float64():
    """Runs a test in double precision, where the backend has it."""
    if keras.backend.backend() == "jax":
        pytest.skip("Keras promotes to float32 at most on JAX")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture(scope="session")
def tiny_network():
    """Returns a maker of the smallest networks with two heads, by hand."""

    def make(
        name="tiny",
        num_classes=3,
        size=8,
        width=4,
        heads=2,
        batch_norm=True,
        dropout=0,
        num_views=4,
    ):
        def block(x, stride, name):
            x = keras.layers.Conv2D(
                width, 3, strides=stride, padding="same", name=f"{name}_conv"
            )(x)
            if batch_norm:
                x = layers.BatchNormalization(name=f"{name}_bn")(x)
            if dropout:
                x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
            return keras.layers.ReLU(name=f"{name}_relu")(x)

        def classify(x, units, name):
            x = keras.layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
            dtype = keras.backend.result_type(keras.config.floatx(), "float32")
            return keras.layers.Dense(units, dtype=dtype, name=name)(x)

        images = keras.Input((*edges(size), 3), name="images")
        x = images
        outputs = {}
        for i in range(1, heads + 1):
            x = block(x, 1 if i == 1 else 2, f"{name}_stage{i}")
            head = block(x, 1, f"{name}_head{i}")
            outputs[f"aux_{i}"] = classify(head, num_views * num_classes, f"aux_{i}")
        outputs["logits"] = classify(x, num_classes, "logits")
        return keras.Model(images, outputs, name=name)

    return make


@pytest.fixture(scope="module")
def eager_trainers():
    """Spares trainings of a few steps the tracing, which takes longer than they do."""

    def compile(self, *arguments, **options):
        traced(self, *arguments, **{"run_eagerly": True, **options})

    traced = keras.Model.compile
    with pytest.MonkeyPatch.context() as patch:
        if keras.backend.backend() == "tensorflow":  # JAX is slow without tracing
            patch.setattr(keras.Model, "compile", compile)
        yield


def _stand_ins(tiny_network, eager_trainers):
    """Puts tiny networks with as many heads in the place of the zoo's."""

    def create(name, num_classes, input_shape, num_views=4, head="copy"):
        if name not in models.names():
            return zoo(name, num_classes)  # which says so
        four = name.startswith(("vgg", "mobilenet", "resnet50"))
        network = tiny_network(
            name,
            num_classes=num_classes,
            size=input_shape[:2],
            heads=4 if four or name.endswith("_imagenet") else 3,
            num_views=num_views,
            batch_norm=False,
        )
        if head == "copy":
            return network
        return attach_heads(strip_heads(network), head=head, num_views=num_views)

    zoo = models.create
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", create)
        yield


stand_ins = pytest.fixture(_stand_ins, scope="module")
stand_ins_once = pytest.fixture(_stand_ins)  # where others of the module need the zoo


@pytest.fixture
def batch():
    """Returns 12 images of 3 classes, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(12, dtype="int32") % 3
    images = rng.normal(size=(12, 8, 8, 3)) + labels[:, None, None, None]
    return images.astype("float32"), labels


@pytest.fixture(scope="session")
def cifar100():
    """Returns few random images and labels of the shape of CIFAR-100."""
    rng = np.random.default_rng(0)

    def examples(count):
        images = rng.integers(0, 256, (count, 32, 32, 3), "uint8")
        return images, np.arange(count, dtype="uint8")

    return types.SimpleNamespace(train=examples(96), test=examples(32))


@pytest.fixture(scope="session")
def cifar100_data_dir(cifar100, tmp_path_factory):
    """Returns a folder in which TFDS' own builder prepared `cifar100`, offline."""
    builders = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download.checksums import UrlInfo

    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    archive = folder / "downloads" / "manual" / "cifar-100-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    files = {
        "coarse_label_names.txt": "\n".join(f"coarse {i}" for i in range(20)).encode(),
        "fine_label_names.txt": "\n".join(f"fine {i}" for i in range(100)).encode(),
    }
    for name in ("train", "test"):
        images, labels = getattr(cifar100, name)
        # A row is coarse label, fine label, and the channels one after the other.
        rows = [labels // 5, labels, *images.transpose(0, 3, 1, 2).reshape(-1, 3072).T]
        files[f"{name}.bin"] = np.stack(rows, axis=1).astype("uint8").tobytes()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    builder = builders.builder("cifar100", data_dir=str(folder))
    url = builder._cifar_info.url
    content = archive.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    info = UrlInfo(size=len(content), checksum=checksum, filename=archive.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(builder), "url_infos", {url: info})
        builder.download_and_prepare(
            download_dir=str(folder / "downloads"),
            download_config=builders.download.DownloadConfig(
                manual_dir=str(archive.parent)
            ),
        )
    return str(folder)
