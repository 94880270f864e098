"""The main job on real data in minutes: teacher, students, table, picture, export."""

import dataclasses
import json
import os
import platform
import shutil
import time

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import data, export, models
from keras_hsakd.heads import strip_heads
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.trainers import Distiller, TeacherTrainer


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the demo trains; chosen on the validation split, see `docs/demo.md`.

    Attributes:
        teacher: Name of the teacher's network.
        student: Name of the student's network.
        examples_per_class: Labelled training images of each digit.
        image_size: Height and width of the images.
        batch_size: Images in a batch.
        teacher_epochs: Epochs of the teacher.
        student_epochs: Epochs of each student.
        learning_rate: Before the first of the three drops.
        evaluate_every: Epochs between two points of a curve; divides all epochs.
    """

    teacher: str = "resnet14"
    student: str = "resnet8"
    examples_per_class: int = 10
    image_size: int = 16
    batch_size: int = 25
    teacher_epochs: int = 40
    student_epochs: int = 20
    learning_rate: float = 0.05
    evaluate_every: int = 4


METHODS = {
    "teacher": "teacher with heads",
    "plain": "student, labels alone",
    "logits": "student, keras.distillation",
    "hsakd": "student, HSAKD",
}


def run(
    output: str | os.PathLike = "demo",
    seeds: int = 3,
    validation: bool = False,
    overwrite: bool = False,
    settings: Settings | None = None,
) -> dict:
    """Runs the demo on handwritten digits and writes what came out.

    For each seed: a teacher with auxiliary heads, and the same small student three
    times, trained on labels alone, by `keras.distillation` (logits), and by HSAKD. The
    last seed's HSAKD student is exported, loaded again, and classifies test images.

    Args:
        output: Folder for `results.json`, `curves.png` and the SavedModel
            `serving/student/1`. Defaults to `"demo"`.
        seeds: Number of repetitions. Defaults to 3.
        validation: Whether to measure on a held-out part of the training images
            instead of the test images, to choose settings. Defaults to `False`.
        overwrite: Whether to replace an existing folder. Defaults to `False`.
        settings: What is trained. Defaults to `Settings()`.

    Returns:
        The content of `results.json`.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is not set.
        ValueError: If `seeds` is not positive.

    Example:
    >>> results = run("demo")
    >>> results["methods"]["hsakd"]["accuracy_mean"]
    """
    output = os.fspath(output)
    settings = settings or Settings()
    if seeds < 1:
        raise ValueError(f"Expected `seeds` to be at least 1. Received: seeds={seeds}")
    if os.path.exists(output) and not overwrite:
        raise FileExistsError(
            "Expected `output` to be a folder that does not exist, or `--overwrite`. "
            f"Received: '{output}'"
        )
    # Missing packages are to be reported before minutes of training.
    _import_pyplot()
    data.load("digits")

    began = time.perf_counter()
    curves = {method: [] for method in METHODS}
    for seed in range(seeds):
        student, histories, test = _train_all(settings, seed, validation)
        for method, accuracies in histories.items():
            curves[method].append(accuracies)
    results = {
        "data": "digits",
        "measured_on": "validation images" if validation else "test images",
        "settings": dataclasses.asdict(settings),
        "seeds": list(range(seeds)),
        "methods": {
            method: _summary(np.array(values)) for method, values in curves.items()
        },
        "parameters": {
            name: strip_heads(models.create(getattr(settings, name), 10)).count_params()
            for name in ("teacher", "student")
        },
        "seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }

    temporary = f"{output}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    with open(os.path.join(temporary, "results.json"), "w") as file:
        json.dump(results, file, indent=2)
    _draw(results, os.path.join(temporary, "curves.png"))
    served = os.path.join(temporary, "serving", "student", "1")
    export.saved_model(student, served, data.info("digits").preprocessing())
    shutil.rmtree(output, ignore_errors=True)
    os.rename(temporary, output)

    print(table(results))
    _classify(os.path.join(output, "serving", "student", "1"), test)
    print(f"Wrote {output}/results.json, {output}/curves.png and {output}/serving.")
    return results


def table(results: dict) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        f"Accuracy on {results['measured_on']} of '{results['data']}', mean and "
        f"standard deviation of {len(results['seeds'])} seeds, "
        f"{results['settings']['examples_per_class']} labelled images a class",
        "",
        "| network | parameters | last epoch | best epoch* |",
        "| --- | --- | --- | --- |",
    ]
    for method, row in results["methods"].items():
        role = "teacher" if method == "teacher" else "student"
        lines.append(
            f"| {METHODS[method]} ({results['settings'][role]}) "
            f"| {results['parameters'][role]:,} "
            f"| {row['accuracy_mean']:.2%} ± {row['accuracy_std']:.2%} "
            f"| {row['best_mean']:.2%} |"
        )
    lines += [
        "",
        f"* chosen on the {results['measured_on']} themselves, as in the paper.",
        f"{results['seconds']:.0f} seconds on {results['machine']}.",
    ]
    return "\n".join(lines)


def _train_all(settings, seed, validation):
    """Returns the HSAKD student, the accuracies by method and epoch, and test data."""

    def load():
        # Loaded anew, so that each method sees the same batches in the same order.
        return data.load(
            "digits",
            batch_size=settings.batch_size,
            image_size=settings.image_size,
            examples_per_class=settings.examples_per_class,
            validation=validation,
            seed=seed,
        )

    def fit(method, model, epochs, **compile_arguments):
        keras.utils.set_random_seed(seed)
        train, test = load()
        rate = step_decay(settings.learning_rate, epochs, len(train))
        optimizer = SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        model.compile(optimizer=optimizer, metrics=["accuracy"], **compile_arguments)
        print(f"Seed {seed}: {METHODS[method]}, {epochs} epochs ... ", end="")
        history = model.fit(
            train,
            validation_data=test,
            validation_freq=settings.evaluate_every,
            epochs=epochs,
            verbose=0,
            shuffle=False,
        ).history
        print(f"{history['val_accuracy'][-1]:.2%}", flush=True)
        histories[method] = history["val_accuracy"]

    def create(name):
        keras.utils.set_random_seed(seed)
        size = settings.image_size
        return models.create(name, num_classes=10, input_shape=(size, size, 3))

    histories = {}
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = create(settings.teacher)
    fit("teacher", TeacherTrainer(teacher), settings.teacher_epochs)

    plain = strip_heads(create(settings.student))
    fit("plain", plain, settings.student_epochs, loss=cross_entropy)

    logits = keras.distillation.Distiller(
        strip_heads(teacher),
        strip_heads(create(settings.student)),
        # The default, loss="kl_divergence", divides logits instead of probabilities
        # in Keras 3.15: it turns negative and nothing is learned.
        keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence()),
    )
    fit("logits", logits, settings.student_epochs, loss=cross_entropy)

    student = create(settings.student)
    fit("hsakd", Distiller(teacher, student), settings.student_epochs)
    return student, histories, load()[1]


def _summary(accuracies):
    """Returns statistics of accuracies of shape (seeds, epochs)."""
    return {
        "accuracy_mean": float(accuracies[:, -1].mean()),
        "accuracy_std": float(accuracies[:, -1].std(ddof=1))
        if len(accuracies) > 1
        else 0,
        "best_mean": float(accuracies.max(axis=1).mean()),
        "accuracy_by_seed_and_epoch": accuracies.tolist(),
    }


def _import_pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "The demo's picture needs matplotlib: pip install 'keras_hsakd[demo]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(results, path):
    pyplot = _import_pyplot()
    settings = results["settings"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method, row in results["methods"].items():
        accuracies = 100 * np.array(row["accuracy_by_seed_and_epoch"])
        epochs = settings["evaluate_every"] * np.arange(1, accuracies.shape[1] + 1)
        style = "--" if method == "teacher" else "-"
        label = f"{METHODS[method]}: {row['accuracy_mean']:.1%}"
        (line,) = axes.plot(epochs, accuracies.mean(axis=0), style, label=label)
        axes.fill_between(
            epochs,
            accuracies.min(axis=0),
            accuracies.max(axis=0),
            color=line.get_color(),
            alpha=0.15,
        )
    axes.set(
        xlabel="epoch",
        ylabel=f"accuracy on {results['measured_on']}, %",
        title=f"{settings['examples_per_class']} labelled images a class, "
        f"mean and range of {len(results['seeds'])} seeds",
    )
    axes.legend(title="last epoch", loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _classify(path, test):
    """Shows what a SavedModel says of test images as a camera would give them."""
    rescaling = data.info("digits").preprocessing()
    images, labels = (
        np.concatenate(part) for part in zip(*test.as_numpy_iterator(), strict=True)
    )
    raw = (images - np.array(rescaling.offset)) / np.array(rescaling.scale)
    raw = np.clip(np.round(raw), 0, 255).astype("uint8")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    probabilities = serve(images=tf.constant(raw))["probabilities"].numpy()
    predictions = probabilities.argmax(axis=1)
    print(
        f"\nThe SavedModel, on {len(raw)} raw uint8 images: "
        f"{np.mean(predictions == labels):.2%}. The first five:"
    )
    for row, label in zip(probabilities[:5], labels, strict=False):
        print(f"  a {label} is a {row.argmax()} with probability {row.max():.3f}")
