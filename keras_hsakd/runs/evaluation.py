"""What the network of a run is worth, and how it leaves its folder."""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import checkpoints, export, lock
from keras_hsakd.export.serving import as_pixels
from keras_hsakd.files import without_folders
from keras_hsakd.heads import is_plain, strip_heads
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.images import (
    Images,
    changed,
    check_same,
    is_test_alone,
    load,
    load_to_measure,
    without_foreign,
)
from keras_hsakd.runs.settings import OF_THE_NETWORK, OF_TRAINING
from keras_hsakd.sizes import in_words, written
from keras_hsakd.trainers import BaselineTrainer, TeacherTrainer

# Training images that artefacts are checked on, and 8-bit ranges are found on.
_EXPORTED_IMAGES = 128


def evaluate(
    run: str | os.PathLike,
    checkpoint: str = "last",
    heads: bool = False,
    verbose: int = 1,
    **data_changes,
) -> dict[str, float]:
    """Evaluates the network of a run.

    Args:
        run: Run folder.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.
        heads: Whether to add the accuracies of the heads on views of the images.
            Defaults to `False`.
        verbose: As in `keras.Model.evaluate`. Defaults to 1, a progress bar.
        **data_changes: Attributes of `DataSettings` that differ from the run's, such
            as `validation=False`.

    Returns:
        A dict of `accuracy`, `loss` (cross-entropy of the classes) and, with `heads`,
        `aux_1_joint_accuracy`, `aux_1_class_accuracy` and so on.

    Raises:
        FileNotFoundError: If `run` is not a run folder with a finished epoch.
        ValueError: If the data has other classes than the run, a setting is given that
            the network has fixed, or heads are asked for where there are none.

    Example:
    >>> sorted(evaluate("student"))  # doctest: +SKIP
    ['accuracy', 'loss']
    """
    opened = Run.open(run)
    network = opened.network(checkpoint)
    if heads and is_plain(network):
        raise ValueError(
            "Expected the run of a network with auxiliary heads for `heads`. "
            f"Received: '{run}', a {opened.describe()}"
        )
    images = images_measured_on(opened, data_changes)
    with images.errors_named():
        return measure(network, images.test, opened.views, heads, verbose)


def images_measured_on(run: Run, changes: Mapping) -> Images:
    """Returns the images that a run is measured on, with changed settings.

    Args:
        run: The run.
        changes: Attributes of `DataSettings` that differ from the run's.

    Raises:
        ValueError: If the data has other classes than the run, or a setting is given
            that the network has fixed.
    """
    for name in OF_THE_NETWORK:
        if name in changes:
            raise ValueError(
                f"Expected no `{name}`, which the network of a run has fixed. "
                f"Received: {name}={changes[name]!r}"
            )
    of_training = dict.fromkeys(set(OF_TRAINING) - {"crop", "flip"})
    settings = changed(run, of_training | changes)
    if "data" in changes and is_test_alone(settings):  # of which none is held out
        settings = dataclasses.replace(settings, validation=False)
    training = run.training_settings()
    images = load_to_measure(
        settings,
        training.batch_size,
        training.seed,
        _checked(run, settings),
        run.class_names,
    )
    check_same(run, images, "run")
    known = run.record.get("fingerprint", {}).get("test")
    is_part = settings.validation == run.data_settings().validation
    if is_part and known not in (None, images.test.fingerprint()):
        warnings.warn(
            f"'{settings.data}' has other images to measure on than the run "
            f"'{run.path}' was measured on when it was trained",
            stacklevel=3,
        )
    return images


def _checked(run, settings):
    """Returns what a run knows of a folder's images, if it decoded those measured on.

    With `validation`, it has not looked at the test images.
    """
    known = run.data_settings()
    same = settings.data == known.data and settings.validation >= known.validation
    record = run.record["images"]
    return record if same and "skipped" in record else None


def measure(
    network: keras.Model,
    test,
    views: str = "rotations",
    heads: bool = False,
    verbose: int = 1,
) -> dict[str, float]:
    """Returns loss and accuracies of a network, with heads or without.

    Args:
        network: A functional model.
        test: Batches of (image, label).
        views: Name of the views that its heads were trained on.
        heads: Whether to add their accuracies.
        verbose: As in `keras.Model.evaluate`.
    """
    if is_plain(network):
        trainer, options = BaselineTrainer(network), {}
    else:
        trainer, options = TeacherTrainer(network, views=views), {"heads": heads}
    trainer.compile(metrics=["accuracy"])
    results = trainer.evaluate(test, verbose=verbose, return_dict=True, **options)
    return {name: float(value) for name, value in results.items()}


def export_run(
    run: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str = "last",
    formats: Sequence[str] = ("saved_model",),
    top_k: int | None = None,
    temperature: float | str = 1.0,
    features: str | None = None,
    report: bool = False,
    max_drop: float | None = None,
    teacher: str | os.PathLike | None = None,
    plain: str | os.PathLike | None = None,
    card: Mapping[str, str] | None = None,
) -> dict[str, export.Shipped]:
    """Exports the network of a run, in formats that are each whole or absent.

    The network has its preprocessing inside; class names and the crop of image files
    are the run's. Each artefact is compared with the network on training images of the
    run, on which `litert-int8` finds its ranges; where they are not there any more, on
    random ones, with a warning.

    Args:
        run: Run folder.
        output: Folder of versions, or a version to make, see `keras_hsakd.export.ship`.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.
        formats: Names of formats. Defaults to a SavedModel alone.
        top_k: As in `keras_hsakd.export.saved_model`.
        temperature: As in `keras_hsakd.export.saved_model`; or `"fit"`, that which
            `keras_hsakd.export.fit_temperature` finds on the run's validation images.
        features: As in `keras_hsakd.export.saved_model`.
        report: Whether to measure each artefact on the run's test images, and to write
            what comes out beside it, see `keras_hsakd.export.Trial`. Defaults to
            `False`, unless one of the arguments below is given.
        max_drop: Float, the most accuracy that an artefact may lose against the
            network of the run. Defaults to `None`, any.
        teacher: Run folder of its teacher, to be measured beside it.
        plain: Run folder of such a network without a teacher, the same way.
        card: Texts for the model card, as in `keras_hsakd.export.Trial`. What is not
            given of data and training is taken from the record of the run.

    Returns:
        A dict from the names of the formats to what became of each, a
        `keras_hsakd.export.Shipped`.

    Raises:
        FileNotFoundError: If `run` is not a run folder with a finished epoch.
        ValueError: If a format is unknown, an argument does not suit the network, the
            run held no images out for `"fit"`, or `teacher` or `plain` takes other
            images or has other classes.

    Example:
    >>> export_run("student", "serving/student")  # doctest: +SKIP
    {'saved_model': Shipped(path='serving/student/1', error=None, report=None)}
    """
    opened = Run.open(run)
    network = opened.network(checkpoint)
    if temperature == "fit":
        temperature = _fitted_temperature(opened, network)
    others = {"teacher": teacher, "plain": plain}
    beside = {name: folder for name, folder in others.items() if folder is not None}
    trial = None
    if report or max_drop is not None or beside or card is not None:
        trial = export.Trial(
            test=images_measured_on(opened, {"validation": False}).test,
            max_drop=max_drop,
            beside={
                name: export.serving_model(
                    network_beside(opened, name, folder, checkpoint)
                )
                for name, folder in beside.items()
            },
            card=_card(opened) | dict(card or {}),
        )
    return export.ship(
        network,
        output,
        formats,
        class_names=opened.class_names,
        images=_training_images(opened),
        top_k=top_k,
        temperature=temperature,
        center_crop=opened.data_settings().center_crop,
        features=features,
        trial=trial,
    )


def network_beside(
    run: Run, argument: str, folder: str | os.PathLike, checkpoint: str
) -> keras.Model:
    """Returns the network of another run, on the same images of the same classes.

    Args:
        run: The run.
        argument: What the user called the other one.
        folder: Run folder of the other one.
        checkpoint: Which of its networks.

    Raises:
        FileNotFoundError: If it is not a run folder with a finished epoch.
        ValueError: If it takes other images or has other classes.
    """
    other = Run.open(folder)
    for what, received, expected in (
        ("classes", other.class_names, run.class_names),
        (
            "image size",
            *(written(r.record["images"]["image_size"]) for r in (other, run)),
        ),
    ):
        if received != expected:
            raise ValueError(
                f"Expected `{argument}` to be a run with the {what} of '{run.path}', "
                f"{expected}. Received: '{folder}', with {received}"
            )
    return other.network(checkpoint)


def _card(run):
    """Returns what the record of a run says for a model card."""
    images, source = run.record["images"], without_folders(run.data_settings().data)
    unlabeled = images.get("unlabeled") or 0
    data = (
        f"Trained on {images['train'] - unlabeled:,} labelled "
        + (f"and {unlabeled:,} unlabelled " if unlabeled else "")
        + f"images of '{source}', {in_words(images['image_size'])} pixels, "
        f"{len(run.class_names)} classes."
    )
    training = f"A {run.describe()}."
    if run.record["origin"]:
        training += f" It started from a run of {run.record['origin']['model']}."
    return {"data": data, "training": training}


def _fitted_temperature(run, network):
    """Returns the temperature that suits the validation images of a run best."""
    settings = run.data_settings()
    if not settings.validation:
        raise ValueError(
            "Expected a run with held-out images (`--validation`) for "
            f"temperature='fit'. Received: '{run.path}', measured on "
            f"{run.record['images']['measured_on']}"
        )
    training = run.training_settings()
    images = load_to_measure(
        settings, training.batch_size, training.seed, run.record["images"]
    )
    plain = strip_heads(network)
    batches = ((plain(pixels, training=False), y) for pixels, y in images.test)
    logits, labels = zip(*batches, strict=True)
    return export.fit_temperature(np.concatenate(logits), np.concatenate(labels))


def _training_images(run):
    """Returns some training images of a run as uint8, or `None`."""
    # As they are, but for the crop, which is a part of what the network has seen.
    settings = without_foreign(changed(run, {"augment": None, "unlabeled": None}))
    training = run.training_settings()
    try:
        images = load(
            settings,
            training.batch_size,
            training.seed,
            run.record["images"],
            stream=True,  # some of them are read once
        )
        batches = images.train.take(math.ceil(_EXPORTED_IMAGES / training.batch_size))
        pixels = np.concatenate([np.asarray(batch) for batch, _ in batches])
    except (ImportError, OSError, ValueError, tf.errors.OpError) as error:
        warnings.warn(
            f"Checked on random images, for those of '{run.path}' cannot be read: "
            f"{error}",
            stacklevel=3,
        )
        return None
    return as_pixels(pixels[:_EXPORTED_IMAGES])


def export_torch(
    run: str | os.PathLike, output: str | os.PathLike, checkpoint: str = "last"
) -> None:
    """Writes the network of a run as the authors' scripts save theirs.

    Args:
        run: Run folder of a network of `keras_hsakd.models`.
        output: File as `keras_hsakd.checkpoints.save_torch` writes it.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.

    Raises:
        BlockingIOError: If another process writes there; says which.
        FileNotFoundError: If `run` is not a run folder with a finished epoch.
        ImportError: If PyTorch is not installed.

    Example:
    >>> export_torch("student", "wrn_16_2_aux.pth.tar")  # doctest: +SKIP
    """
    with lock.held_beside(output):
        checkpoints.save_torch(Run.open(run).network(checkpoint), output)
