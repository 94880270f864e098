"""How near the formats of export come to the Keras student, and what 8 bits cost.

    pip install 'keras_hsakd[export]'
    tar xJf cifar10.tar.xz -C /tmp
    python benchmarks/formats.py [--data-dir /tmp/cifar10]

Of each network the largest difference of a logit from the Keras student's, as a part of
the largest logit: untrained, with statistics that were moved, on random images. With
`--data-dir`, which has `train/` and `test/` with folders of classes, two networks are
trained briefly, exported, and measured on test images, of one seed.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_hsakd
from keras_hsakd.export import FORMATS
from keras_hsakd.export.serving import Served
from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, versions

OURS = ("wrn_40_2", "resnet56", "resnet32x4", "vgg8_bn", "mobilenet_v2")
OURS += ("shufflenet_v1", "shufflenet_v2")
APPLICATIONS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50V2")
LARGE = 96  # edge of an image of keras.applications


def application(name, image_size, classes, **options):
    model = getattr(keras.applications, name)(
        input_shape=(image_size, image_size, 3),
        weights=None,
        classes=classes,
        classifier_activation=None,
        **options,
    )
    if name == "MobileNetV2":  # the others have their preprocessing inside
        images = keras.Input((image_size, image_size, 3))
        scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
        model = keras.Model(images, model(scaled), name=name)
    return model


def move_statistics(network, rng):
    """Gives batch normalization and biases other values than an untrained one has."""
    for variable in network.variables:
        if variable.path.rpartition("/")[2] in (
            *("gamma", "beta", "bias", "moving_mean", "moving_variance"),
        ):
            variable.assign(variable + rng.uniform(0, 0.2, variable.shape))


def differences(network, preprocessing, rng):
    size = network.input_shape[1:]
    images = rng.integers(0, 256, (32, *size), "uint8")
    served = Served(student=network, preprocessing=preprocessing, images=images)
    shown, logits = served.sample
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, format in FORMATS.items():
            path = os.path.join(folder, f"1{format.suffix}")
            format.write(served, path)
            received = np.asarray(format.load(path)(shown)["logits"])
            found[name] = float(np.abs(received - logits).max() / np.abs(logits).max())
    return found


def photographs(data_dir, epochs):
    """Trains two networks, and returns what each format of them is worth."""
    results = {}
    for name, make, rate in (
        ("resnet8", lambda classes: ours("resnet8", classes), 0.1),
        (
            "keras.applications.MobileNetV2, alpha 0.35",
            lambda classes: application("MobileNetV2", 32, classes, alpha=0.35),
            0.05,
        ),
    ):
        keras.utils.set_random_seed(0)
        train, test = keras_hsakd.data.image_folder(
            data_dir, batch_size=64, image_size=32, normalize=False, limit=5000
        )
        network = make(len(train.class_names))
        schedule = keras.optimizers.schedules.CosineDecay(
            rate, epochs * len(train), warmup_target=rate, warmup_steps=len(train)
        )
        network.compile(
            keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        network.fit(train, epochs=epochs, verbose=2)
        parts = zip(*test.take(2000 // 64), strict=True)
        images, labels = (np.concatenate(part) for part in parts)
        shown = np.concatenate([np.asarray(x) for x, _ in train.take(2)])
        with tempfile.TemporaryDirectory() as folder:
            shipped = keras_hsakd.export.ship(
                network,
                folder,
                list(FORMATS),
                images=np.rint(shown).astype("uint8"),
                trial=keras_hsakd.export.Trial(test=(images, labels)),
            )
            results[name] = {}
            for format, result in shipped.items():
                if result.error is not None:
                    raise result.error
                report = pathlib.Path(result.report, "report.json").read_text()
                measured = json.loads(report)["measured"]
                results[name]["student"] = {"top1": measured["student"]["top1"]}
                results[name][format] = {
                    figure: measured["artefact"][figure]
                    for figure in ("top1", "agreement", "bytes")
                }
    return results


def ours(name, classes):
    """Returns a network of the zoo that takes images of 0 to 255."""
    network = keras_hsakd.models.create(name, classes, heads=False)
    preprocessing = keras_hsakd.data.info("cifar10").preprocessing()
    return keras_hsakd.graph.with_preprocessing(network, preprocessing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", help="folder of photographs")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of training")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    options = parser.parse_args()
    results = {
        "machine": machine(),
        "versions": versions(
            *("keras", "tensorflow", "ai-edge-litert", "onnx", "onnxruntime", "tf2onnx")
        ),
        "differences": {},
    }
    rng = np.random.default_rng(0)
    preprocessing = keras_hsakd.data.info("cifar100").preprocessing()
    for name in OURS:
        keras.utils.set_random_seed(0)
        network = keras_hsakd.models.create(name, 100, heads=False)
        move_statistics(network, rng)
        results["differences"][name] = differences(network, preprocessing, rng)
        print(name, results["differences"][name], flush=True)
    for name in APPLICATIONS:
        keras.utils.set_random_seed(0)
        network = application(name, LARGE, 100)
        move_statistics(network, rng)
        name = f"keras.applications.{name}"
        results["differences"][name] = differences(network, None, rng)
        print(name, results["differences"][name], flush=True)
    if options.data_dir:
        results["photographs"] = photographs(options.data_dir, options.epochs)
        for name, formats in results["photographs"].items():
            for format, figures in formats.items():
                print(name, format, figures)
    if options.output:
        write_json(options.output, results)


if __name__ == "__main__":
    main()
