"""Networks that the command line is told of: applications, files, functions."""

import inspect
import re
import sys
import time
import types

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

from keras_hsakd import cli, data, runs
from keras_hsakd.graph import ancestors, operation_of
from keras_hsakd.heads import head_names
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    Distill,
    ExecutionSettings,
    Linear,
    Mutual,
    Run,
    Teacher,
    TrainingSettings,
    applications,
    compare,
    evaluate,
    images,
    import_keras,
    kinds,
    networks,
    sources,
    train,
)

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=2, limit=20)
SHAPE = (8, 8, 3)
PREPROCESS = {
    "tf": lambda x: x / 127.5 - 1,
    "torch": lambda x: (x / 255 - data.IMAGENET_MEAN) / data.IMAGENET_STD,
    "caffe": lambda x: x[..., ::-1] - [103.939, 116.779, 123.68],
}


def application(mode, own=()):
    """Returns a function like those of `keras.applications`, and its module."""

    def TinyNet(  # noqa: N802, as Keras names them
        include_top=True,
        weights="imagenet",
        input_shape=None,
        classes=1000,
        classifier_activation="softmax",
    ):
        if weights == "imagenet":
            raise Exception("URL fetch failure on https://x.y/tiny_notop.h5: None")
        x = start = keras.Input(input_shape)
        for layer in own:
            x = type(layer).from_config(layer.get_config())(x)
        for number, filters in enumerate((4, 6)):
            x = layers.Conv2D(filters, 3, 2, padding="same", name=f"conv{number}")(x)
            x = layers.BatchNormalization(name=f"bn{number}")(x)
            x = layers.ReLU(name=f"relu{number}")(x)
        if include_top:
            x = layers.GlobalAveragePooling2D(name="pool")(x)
            x = layers.Dense(
                classes, activation=classifier_activation, name="predictions"
            )(x)
        return keras.Model(start, x, name="tiny")

    module = types.ModuleType("tiny_application")
    module.preprocess_input = PREPROCESS.get(mode, lambda x: x)
    module.TinyNet = TinyNet
    TinyNet.__module__ = module.__name__
    return TinyNet, module


@pytest.fixture
def tiny_application(monkeypatch):
    """Puts a small classifier among those of Keras, and returns its maker."""

    def put(mode="tf", own=()):
        function, module = application(mode, own)
        monkeypatch.setattr(keras.applications, "TinyNet", function, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return function

    return put


def trained(function, classes=10, **arguments):
    """Returns a network with weights that are nobody's initial ones."""
    model = function(
        weights=None, input_shape=SHAPE, classes=classes, classifier_activation=None
    )
    rng = np.random.default_rng(classes)
    for variable in model.weights:
        variable.assign(rng.uniform(0.1, 0.5, variable.shape))
    return model


def save(model, path):
    """Writes weights as today, or as the files that Keras downloads."""
    write = model.save_weights if path.name.endswith(".weights.h5") else model.save
    write(path)


def pixels(size=8):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype("float")


OWN = {
    "rescaling": [layers.Rescaling(1 / 127.5, -1.0)],
    "normalized": [
        layers.Rescaling(1 / 255),
        layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.04, 0.09, 0.16]),
    ],
}


@pytest.mark.parametrize(
    "mode, own", [*((m, ()) for m in PREPROCESS), *(("", o) for o in OWN)]
)
def test_weights_of_a_file_see_what_they_were_trained_on(
    tiny_application, tmp_path, mode, own
):
    function = tiny_application(mode, OWN.get(own, ()))
    model = trained(function)
    expected = model(PREPROCESS.get(mode, lambda x: x)(pixels()))
    for name in ("tiny.weights.h5", "tiny.h5"):
        save(model, tmp_path / name)
        made = applications.create("TinyNet", SHAPE, 10, tmp_path / name)
        # One layer in float32 for their two, over values up to 255.
        np.testing.assert_allclose(made.model(pixels()), expected, rtol=1e-5)
        assert made.loaded == {"conv0", "bn0", "conv1", "bn1", "predictions"}


def test_efficient_nets_files_have_deviations_for_variances(tiny_application, tmp_path):
    mean, std = np.array(data.IMAGENET_MEAN), np.array(data.IMAGENET_STD)
    own = [layers.Rescaling(1 / 255), layers.Normalization(mean=mean, variance=std)]
    function = tiny_application("", own)
    trained(function).save_weights(tmp_path / "tiny.weights.h5")
    made = applications.create("TinyNet", SHAPE, 10, tmp_path / "tiny.weights.h5")
    front = made.model.get_layer("preprocessing")
    np.testing.assert_allclose(
        front(pixels()), PREPROCESS["torch"](pixels()), atol=1e-5
    )


@pytest.mark.parametrize("include_top", [True, False])
@pytest.mark.parametrize("name", ["tiny.weights.h5", "tiny.h5"])
def test_other_classes_have_a_new_classifier(
    tiny_application, tmp_path, capsys, name, include_top
):
    function = tiny_application()
    model = trained(function, classes=7)
    if not include_top:
        model = keras.Model(model.input, model.get_layer("relu1").output)
    save(model, tmp_path / name)
    made = applications.create("TinyNet", SHAPE, 10, tmp_path / name)
    assert made.model.output_shape == (None, 10)
    assert made.loaded == {"conv0", "bn0", "conv1", "bn1"}
    features = keras.Model(made.model.input, made.model.get_layer("relu1").output)
    expected = keras.Model(model.input, model.get_layer("relu1").output)
    np.testing.assert_allclose(
        features(pixels()), expected(PREPROCESS["tf"](pixels())), rtol=1e-5
    )
    classifier = made.model.layers[-1]
    assert not np.any(classifier.bias) and np.abs(classifier.kernel).max() > 0


def test_weights_that_do_not_suit_are_never_random(tiny_application, tmp_path):
    function = tiny_application()
    other = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3, name="conv0")])
    save(other, tmp_path / "other.weights.h5")
    save(other, tmp_path / "other.h5")
    (tmp_path / "damaged.weights.h5").write_bytes(b"\x89HDF")
    trained(function).save(tmp_path / "whole.keras")
    for name, message in (
        ("other.weights.h5", "which has none that suit"),
        ("other.h5", "which has none that suit"),
        ("damaged.weights.h5", "to be a whole file"),
        ("whole.keras", "a whole network, .keras, is given as `model`"),
    ):
        with pytest.raises(ValueError, match=message):
            applications.create("TinyNet", SHAPE, 10, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="Expected `weights` to be a file"):
        applications.create("TinyNet", SHAPE, 10, tmp_path / "none.h5")
    with pytest.raises(RuntimeError, match="https://x.y/tiny_notop.h5.* as `weights`"):
        applications.create("TinyNet", SHAPE, 10, "imagenet")
    with pytest.raises(ValueError, match="did you mean 'TinyNet'"):
        applications.create("TinyNett", SHAPE, 10)


def mine(shape, classes, preprocessing=True, activation="softmax"):
    x = start = keras.Input(shape)
    if preprocessing:
        x = layers.Rescaling(1 / 255)(x)
    for name, filters in (("first", 4), ("second", 6)):
        x = layers.Conv2D(filters, 3, 2, "same", activation="relu", name=name)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(start, layers.Dense(classes, activation=activation)(x))


def bare(shape, classes):
    return mine(shape, classes, preprocessing=False)


def of_three_classes(shape, classes):
    return mine(shape, 3)


def of_other_images(shape, classes):
    return mine((16, 16, 3), classes)


def no_model(shape, classes):
    return "a model"


def without_arguments():
    return mine(SHAPE, 10)


def settings(model, **changes):
    return TrainingSettings(model=model, epochs=1, batch_size=10, **changes)


def made(model, **changes):
    loaded = images.load(DIGITS, 10, 0)
    return networks.create(settings(model, **changes), loaded)[0]


def named(function):
    return f"{__name__}:{function.__name__}"


def test_a_function_makes_the_network(capsys):
    network = made(named(mine), head="light")
    assert "heads at `--taps first second`" in capsys.readouterr().out
    assert head_names(network) == ["aux_1", "aux_2"]
    assert network.output["logits"].shape == (None, 10)


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ("resnet9", {}, "did you mean 'resnet8'"),
        ("MobileNetV2", {}, "or 'applications/MobileNetV2'"),
        (
            "applications/MobilNetV2",
            {},
            "did you mean 'MobileNetV2'|applications/Mobile",
        ),
        ("resnet8", {"weights": "imagenet"}, "Expected `weights` only for"),
        ("resnet8", {"preprocessing": "inside"}, "Expected `preprocessing` only for"),
        ("resnet8", {"freeze_backbone": True}, "random weights are not to be frozen"),
        ("no_such_module:net", {}, "module that can be imported"),
        (f"{__name__}:mime", {}, "did you mean 'mine'"),
        (named(no_model), {}, "to return a keras.Model. Received: 'a model'"),
        (named(without_arguments), {}, "to take the shape .* too many"),
        (named(of_three_classes), {}, "10 classes, as it was told. Received: 3"),
        (named(of_other_images), {}, "16 x 16 with 3 .*`--image-size`.* 8 x 8"),
        (named(bare), {}, "Expected `preprocessing`, for"),
        (named(mine), {"freeze_backbone": True}, "Expected `weights`, or a .keras"),
        (named(mine), {"taps": ("conv2",)}, "Expected `taps` to name layers"),
    ],
)
def test_a_network_that_does_not_suit_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        made(model, **changes)


def test_a_file_brings_its_weights(tmp_path, capsys):
    model = mine(SHAPE, 10)
    model.layers[2].trainable = False
    path = str(tmp_path / "mine.keras")
    model.save(path)
    network = made(path, head="light")
    expected = keras.ops.log(model(pixels()))
    logits = network(pixels())["logits"]
    difference = np.ptp(logits - expected, axis=1)  # logits are up to a constant
    np.testing.assert_allclose(difference, 0, atol=1e-5)
    assert [x.name for x in network.layers if not x.trainable] == []
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: its weights"

    frozen = made(path, head="light", freeze_backbone=True)
    of_heads = {v.path for v in frozen.trainable_variables}
    assert all(name.startswith("aux_") for name in of_heads) and of_heads
    with pytest.raises(ValueError, match="Expected something to train beside"):
        loaded = images.load(DIGITS, 10, 0)
        networks.create(settings(path, freeze_backbone=True), loaded, with_heads=False)


def test_a_file_of_other_classes_gets_a_new_classifier(tmp_path, capsys):
    path = str(tmp_path / "mine.keras")
    mine(SHAPE, 7).save(path)
    network = made(path, head="light", freeze_backbone=True)
    assert network.output["logits"].shape == (None, 10)
    assert "; a new classifier of 10 classes" in capsys.readouterr().out
    names = {v.path for v in network.trainable_variables}
    assert {"logits/kernel", "logits/bias"} <= names
    assert not any(name.startswith(("first", "second")) for name in names)


def test_a_file_with_heads_keeps_them(tmp_path):
    path = str(tmp_path / "heads.keras")
    network = made(named(mine), head="light")
    network.save(path)
    again = made(path)
    for name, expected in network(pixels()).items():
        np.testing.assert_array_equal(again(pixels())[name], expected)
    assert head_names(made(path, taps=("second",), head="light")) == ["aux_1"]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "float32"])
def test_loaded_layers_have_the_precision_that_is_asked_for(precision, tmp_path):
    other = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}[precision]
    path, strategy = str(tmp_path / "mine.keras"), tf.distribute.get_strategy()
    with networks.construction(other, strategy):
        model = mine(SHAPE, 10)
        model.save(path)
    run = import_keras(tmp_path / "run", settings(path), DIGITS, verbose=0)
    asked = settings(
        path, precision=precision, head="light", synchronize_batch_norm=True
    )
    loaded = images.load(DIGITS, 10, 0)
    with networks.construction(precision, strategy):
        found = [
            made(path, precision=precision, head="light"),
            networks.on_backbone(run, "last", asked, loaded, "rotations"),
            networks.linear_classifier(run.network(), asked, loaded),
        ]
    dtype = precision.removeprefix("mixed_")
    for network in found:
        first = network.get_layer("first")
        assert (first.compute_dtype, first.variable_dtype) == (dtype, "float32")
        dtypes = {operation_of(x): x.dtype for x in ancestors(network.outputs)}
        assert dtypes[first] == dtype
        assert {tensor.dtype for tensor in network.outputs} == {"float32"}
        np.testing.assert_array_equal(first.kernel, model.get_layer("first").kernel)
    norms = [x for x in found[1].layers if isinstance(x, layers.BatchNormalization)]
    assert norms and all(norm.synchronized for norm in norms)


def test_a_file_must_be_there_and_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected `model` to be a file"):
        made(str(tmp_path / "none.keras"))
    (tmp_path / "damaged.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match="to be a whole Keras file"):
        made(str(tmp_path / "damaged.keras"))


def test_layers_of_your_own_are_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, known in (("no_such_module", False), ("mylayers", True)):
        (tmp_path / "mylayers.py").write_text("KNOWN = True")
        assert cli.main(["models", "--import", name]) == 1 - known
    assert sys.modules.pop("mylayers").KNOWN
    assert "`--import` to name a module" in capsys.readouterr().err


def test_a_classifier_from_elsewhere_teaches_without_heads(tmp_path, eager_trainers):
    path = str(tmp_path / "mine.keras")
    model = mine(SHAPE, 10)
    model.save(path)
    run = import_keras(tmp_path / "teacher", settings(path), DIGITS, verbose=0)
    assert run.record["files"]["model"] and run.record["training"]["model"] == path
    assert (
        evaluate(run.path, verbose=0)["accuracy"] == run.record["last"]["val_accuracy"]
    )
    student = train(
        Distill(teacher=run.path, heads=False, views="half_turns"),
        tmp_path / "student",
        settings(named(mine)),
        verbose=0,
    )
    assert student.network().output_shape == (None, 10)
    assert student.record["views"] == "half_turns"
    with pytest.raises(ValueError, match="Expected weights for all layers"):
        mine(SHAPE, 7).save(path)
        import_keras(tmp_path / "other", settings(path), DIGITS, verbose=0)
    assert not (tmp_path / "other").exists()
    with pytest.raises(
        ValueError, match="Expected no `views`: heads learn from the views"
    ):
        train(
            Distill(teacher=run.path, views="half_turns"),
            tmp_path / "heads",
            settings(named(mine)),
            verbose=0,
        )


def test_a_run_goes_on_with_the_file_it_began_with(tmp_path):
    path = str(tmp_path / "mine.keras")
    mine(SHAPE, 10).save(path)
    record = {
        "kind": "baseline",
        "options": {},
        "data": {},
        "origin": None,
        "format": 3,
    }
    first, moved, other = (
        {
            **record,
            "training": vars(sources.absolute(settings(name))),
            "files": {"model": digest},
        }
        for name, digest in ((path, "1"), ("moved.keras", "1"), (path, "2"))
    )
    assert runs.folder.differences(first, moved) == {}
    assert runs.folder.differences(first, other) == {
        "files": ({"model": "1"}, {"model": "2"})
    }
    before = sources.digests(settings(path))
    mine(SHAPE, 10).save(path)
    assert sources.digests(settings(path)) != before


def test_a_teacher_that_is_no_better_than_chance_is_refused(tmp_path):
    record = {
        "monitor": "val_accuracy",
        "images": {
            "test": 250,
            "class_names": list("0123456789"),
            "measured_on": "test images",
        },
    }

    def check(accuracy, images=250):
        found = {**record, "last": {"val_accuracy": accuracy}}
        found["images"] = {**record["images"], "test": images}
        kinds.check_better_than_chance(kinds.Origin(Run("t", found), "last", "teacher"))

    for accuracy in (0.096, float(np.float32(0.1))):
        with pytest.raises(ValueError, match="chance, 10.00% of 10 .* val_accuracy"):
            check(accuracy)
    check(0.104)  # 26 of 250
    check(0.0, images=249)


REAL = ("EfficientNetB0", "MobileNetV3Small", "ResNet50V2", "VGG16")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_applications_of_keras_see_what_they_were_trained_on(name, tmp_path):
    function, shape = getattr(keras.applications, name), (32, 32, 3)
    model = function(
        weights=None, input_shape=shape, classes=7, classifier_activation=None
    )
    model.save_weights(tmp_path / "file.weights.h5")
    preprocess = sys.modules[function.__module__].preprocess_input
    expected = model(preprocess(pixels(32)))
    made = applications.create(name, shape, 7, tmp_path / "file.weights.h5")
    # Dozens of layers behind one that computes the same in another order.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(made.model(pixels(32)), expected, atol=1e-3 * scale)
    other = applications.create(name, shape, 5, tmp_path / "file.weights.h5")
    assert len(made.loaded - other.loaded) == 1


def write_digits(folder, digits):
    """Writes some classes of the embedded digits as a folder of pictures."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * 15).astype("uint8")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if label in digits:
            part = "test" if number % 5 == 0 else "train"
            to = folder / part / str(label)
            to.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(to / f"{number:04}.png", image, scale=False)


def mobilenet_of_digits():
    """Returns a classifier of `keras.applications`, trained on all embedded digits."""
    images, labels = load_digits(return_X_y=True)
    images = np.repeat(images[:800].reshape(-1, 8, 8, 1) / 8 - 1, 3, axis=-1)
    model = keras.applications.MobileNet(
        (32, 32, 3), weights=None, classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.8  # 0.99 is for longer trainings
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(0.003), loss)
    images = keras.ops.image.resize(images, (32, 32))
    model.fit(images, labels[:800], batch_size=32, epochs=8, verbose=0)
    return model


@pytest.mark.slow
def test_from_the_weights_of_an_application_to_a_served_student(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    source = f"import keras\nfrom keras import layers\n\n\n{inspect.getsource(mine)}"
    (tmp_path / "own_networks.py").write_text(source)
    write_digits(tmp_path / "digits", range(5))

    def run(line):
        assert cli.main([*line.split(), "--verbose", "0"]) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    network, common = "applications/MobileNet", "--preset finetune --batch-size 16"
    trained = mobilenet_of_digits()
    trained.save_weights("mobilenet.weights.h5")

    digits = f"--data {tmp_path / 'digits'} --image-size 32"
    heads = "--head light --taps conv_pw_5_relu conv_pw_11_relu"
    told = run(
        f"teacher --model {network} --weights mobilenet.weights.h5 --freeze-backbone "
        f"{heads} {digits} {common} --learning-rate 0.003 --epochs 4 --output teacher"
    )
    assert "weights of mobilenet.weights.h5; a new classifier of 5 classes" in told
    teacher = Run.open("teacher")
    assert teacher.record["last"]["val_accuracy"] > 0.5  # chance is 0.2
    kernels = [x.get_layer("conv1").kernel for x in (teacher.network(), trained)]
    np.testing.assert_array_equal(*kernels)

    distill = f"distill --teacher teacher --epochs 2 {common}"
    small = "applications/MobileNetV3Small"
    taps = "--head light --taps expanded_conv_5_add expanded_conv_9_add"
    run(f"{distill} --model {small} {taps} --output small --sampled-views 2")
    of_mine = f"{distill} --model own_networks:mine --deterministic --head light"
    run(f"{of_mine} --output whole")
    process = processes.start(
        cli.main, [*f"{of_mine} --output stopped --snapshot-steps 1".split()]
    )
    while not list(tmp_path.glob("stopped/snapshots/*")):
        time.sleep(0.05)
        assert process.is_alive(), processes.end_of(process)
    process.kill()
    processes.end_of(process, processes.KILLED)
    assert not (tmp_path / "stopped" / "last.keras").exists()
    run(f"{of_mine} --output stopped --resume")
    whole, stopped = map(Run.open, ("whole", "stopped"))
    assert whole.weights_digest() == stopped.weights_digest()

    for name in ("small", "stopped"):
        assert "accuracy 0." in run(f"evaluate {name}")
        assert cli.main(["export", name, f"serving/{name}"]) == 0
        assert (tmp_path / "serving" / name / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_all_kinds_of_training_take_somebodys_network(tmp_path, eager_trainers):
    light = settings(named(mine), head="light")

    def run(kind, name, training=light, data=None):
        return train(kind, tmp_path / name, training, data, verbose=0)

    alone = settings(named(mine))
    plain = run(Baseline(), "plain", alone, DIGITS)
    teacher = run(Teacher(backbone=plain.path), "teacher", light, DIGITS)
    kernels = [x.network().get_layer("first").kernel for x in (plain, teacher)]
    np.testing.assert_array_equal(*kernels)
    with pytest.raises(ValueError, match="`backbone` to be a run of .*:bare"):
        run(Teacher(backbone=plain.path), "x", settings(named(bare)), DIGITS)
    peers = ("resnet8", named(bare))
    with pytest.raises(ValueError, match="Expected `preprocessing`, for .*:bare"):
        run(Mutual(peers=peers), "x", light, DIGITS)
    mutual = run(Mutual(), "mutual", light, DIGITS)
    linear = run(Linear(backbone=mutual.path), "linear", alone, DIGITS)
    kernels = [x.network().get_layer("first").kernel for x in (mutual, linear)]
    np.testing.assert_array_equal(*kernels)
    assert linear.network().get_layer("logits").units == 10
    student = run(Distill(teacher=teacher.path), "student")
    found = compare([tmp_path])
    assert not re.search(r"\| – \| \d+ \|", found.markdown())  # multiply-adds
    again = train(
        *(Distill(teacher=teacher.path), tmp_path / "student", light),
        execution=ExecutionSettings(resume=True),
        verbose=0,
    )
    assert again.record["last"] == student.record["last"]
