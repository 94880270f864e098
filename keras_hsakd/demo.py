"""The main job on real data in minutes: teacher, students, table, picture, export."""

import dataclasses
import os
import platform
import shutil
import time

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import data, export, lock, models
from keras_hsakd.data.subsets import REST
from keras_hsakd.drawings import drawn
from keras_hsakd.files import write_json
from keras_hsakd.heads import strip_heads
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.runs.intervals import paired_difference, spread
from keras_hsakd.runs.settings import DemoSettings
from keras_hsakd.trainers import Distiller, TeacherTrainer

_RESULTS = "results.json"

METHODS = {
    "teacher": "teacher with heads, all labels",
    "plain": "student, few labels alone",
    "logits": "student, keras.distillation",
    "hsakd": "student, HSAKD",
    "unlabeled": "student, HSAKD, and images without labels",
}
_, *STUDENTS = METHODS
_, *HELPED = STUDENTS  # by the teacher


def run(
    output: str | os.PathLike = "demo",
    seeds: int = 5,
    validation: bool = False,
    overwrite: bool = False,
    settings: DemoSettings = DemoSettings(),
) -> dict:
    """Runs the demo on handwritten digits and writes what came out.

    A teacher with auxiliary heads learns from all training images. Then, for each seed,
    a few of them are chosen that keep their labels, and the same small student learns
    four ways, in as many steps: from those labels alone, by `keras.distillation`
    (logits), by HSAKD, and by HSAKD with all other training images, without their
    labels. The last seed's last student is exported, loaded again, and classifies test
    images.

    Args:
        output: Folder for `results.json`, `curves.png` and the SavedModel
            `serving/student/1`. Defaults to `"demo"`.
        seeds: Number of repetitions. Defaults to 5.
        validation: Whether to measure on a held-out part of the training images
            instead of the test images, to choose settings. Defaults to `False`.
        overwrite: Whether to replace an existing folder. Defaults to `False`.
        settings: What is trained. Defaults to `DemoSettings()`.

    Returns:
        The content of `results.json`.

    Raises:
        BlockingIOError: If another process writes there; says which.
        FileExistsError: If `output` exists and `overwrite` is not set.
        ImportError: If scikit-learn or matplotlib is missing.
        ValueError: If a setting is outside its range.

    Example:
    >>> results = run("demo")  # doctest: +SKIP
    >>> results["methods"]["unlabeled"]["gain"]["low"] > 0  # doctest: +SKIP
    True
    """
    output = os.path.abspath(output)
    for name, value in (("seeds", seeds), *dataclasses.asdict(settings).items()):
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"Expected `{name}` to be at least 1. Received: {name}={value}"
            )
    if settings.student_steps % settings.evaluate_every:
        raise ValueError(
            "Expected `student_steps` to be a multiple of "
            f"evaluate_every={settings.evaluate_every}. "
            f"Received: student_steps={settings.student_steps}"
        )
    with lock.held_beside(output):
        _check_output(output, overwrite)
        return _run(output, seeds, validation, settings)


def _run(output, seeds, validation, settings):
    # What is misspelt is to be reported before minutes of training.
    _load(settings, seed=0, validation=validation)
    parameters = {
        role: strip_heads(_create(settings, role)).count_params()
        for role in ("teacher", "student")
    }

    began = time.perf_counter()
    teacher, accuracies = _train_teacher(settings, validation)
    curves = {"teacher": {0: accuracies}}
    for method in STUDENTS:
        student, curves[method] = _train_students(
            method, teacher, settings, range(seeds), validation
        )
    results = {
        "data": "digits",
        "measured_on": "validation images" if validation else "test images",
        "settings": dataclasses.asdict(settings),
        "seeds": list(range(seeds)),
        "methods": {
            method: _summary(values, curves["plain"] if method in HELPED else None)
            for method, values in curves.items()
        },
        "parameters": parameters,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }

    # Written aside: nothing half-written is ever at `output`.
    parent, name = os.path.split(output)
    temporary = os.path.join(parent, f".{name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a demo that was killed
    os.mkdir(temporary)
    try:
        written = os.path.join(temporary, "demo")
        os.mkdir(written)
        write_json(os.path.join(written, _RESULTS), results)
        with open(os.path.join(written, "curves.png"), "wb") as file:
            file.write(drawn(_draw, results, size=(8, 5), dpi=120))
        served = os.path.join(written, "serving", "student", "1")
        export.saved_model(student, served, data.info("digits").preprocessing())
        if os.path.exists(output):
            os.rename(output, os.path.join(temporary, "replaced"))
        os.rename(written, output)
    finally:
        shutil.rmtree(temporary)

    print(f"\n{table(results)}")
    _, test = _load(settings, 0, validation)
    _classify(os.path.join(output, "serving", "student", "1"), test)
    print(f"Wrote {output}: {_RESULTS}, curves.png and serving.")
    return results


def _check_output(output, overwrite):
    if os.path.exists(output) and not (overwrite and _is_demo(output)):
        raise FileExistsError(
            "Expected `output` to be a folder that does not exist, or that an earlier "
            f"demo wrote and `--overwrite` may replace. Received: '{output}'"
        )


def _is_demo(path):
    return os.path.isfile(os.path.join(path, _RESULTS))


def table(results: dict) -> str:
    """Returns the results as a Markdown table."""
    settings = results["settings"]
    lines = [
        f"Accuracy on {results['measured_on']} of '{results['data']}' after the last "
        f"step, in percent: mean and standard deviation of {len(results['seeds'])} "
        f"seeds, {settings['examples_per_class']} labelled images a class for the "
        "students",
        "",
        "| network | parameters | accuracy | more than few labels alone |",
        "| --- | --- | --- | --- |",
    ]
    for method, row in results["methods"].items():
        role = "teacher" if method == "teacher" else "student"
        name = f"{METHODS[method]} ({settings[role]})"
        cells = name, f"{results['parameters'][role]:,}", _accuracy(row)
        lines.append(f"| {' | '.join(cells)} | {_gain(row)} |")
    lines += ["", f"{results['seconds']:.0f} seconds on {results['machine']}. "]
    lines[-1] += _verdict(results)
    return "\n".join(lines)


def _accuracy(row):
    deviation = row["accuracy_deviation"]
    shown = f"{100 * row['accuracy_mean']:.1f}"
    return shown if deviation is None else f"{shown} ± {100 * deviation:.1f}"


def _gain(row):
    gain = row["gain"]
    if gain is None:
        return ""
    shown = f"{100 * gain['mean']:+.1f}"
    if gain["low"] is None:
        return shown
    return f"{shown} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def _verdict(results):
    """Returns what can be said of the students that a teacher helped."""
    if len(results["seeds"]) < 2:
        return "One seed tells nothing of how far accuracies spread."
    told = ["In brackets the 95 % interval of the difference, seed by seed."]
    for method in HELPED:
        sure = results["methods"][method]["gain"]["low"] > 0
        told.append(
            f"{METHODS[method]}: the gain is "
            + ("more than the spread." if sure else "NOT more than the spread.")
        )
    return "\n".join(told)


def _load(settings, seed, validation, few=True, unlabeled=None):
    return data.load(
        "digits",
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        examples_per_class=settings.examples_per_class if few else None,
        unlabeled=unlabeled,
        validation=validation,
        seed=seed,
    )


def _create(settings, role, seed=0):
    keras.utils.set_random_seed(seed)
    size = settings.image_size
    return models.create(getattr(settings, role), 10, input_shape=(size, size, 3))


def _optimizer(settings, steps, scale=1.0):
    rate = step_decay(settings.learning_rate / scale, steps, 1)
    return SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4 * scale)


def _train_teacher(settings, validation):
    """Returns the teacher, and its accuracy after the last epoch."""
    teacher = _create(settings, "teacher")
    train, test = _load(settings, 0, validation, few=False)
    epochs = settings.teacher_epochs
    _say(f"{METHODS['teacher']}, {epochs} epochs of {train.num_examples} images")
    trainer = TeacherTrainer(teacher)
    trainer.compile(_optimizer(settings, epochs * len(train)), metrics=["accuracy"])
    trainer.fit(train, epochs=epochs, verbose=0)
    accuracy = trainer.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    print(f"{accuracy:.1%}", flush=True)
    return teacher, [accuracy]


def _train_students(method, teacher, settings, seeds, validation):
    """Returns the last seed's student, and the accuracies by seed and evaluation."""
    student = _create(settings, "student")
    trainer, scale, options = _trainer(method, teacher, student)
    # Compiled once for all seeds: that takes longer than the steps.
    optimizer = _optimizer(settings, settings.student_steps, scale)
    trainer.compile(optimizer, weighted_metrics=["accuracy"], **options)
    found = {}
    for seed in seeds:
        _begin_again(student, optimizer, _create(settings, "student", seed))
        # Anew, so that each method sees the same batches in the same order.
        unlabeled = REST if method == "unlabeled" else None
        train, test = _load(settings, seed, validation, unlabeled=unlabeled)
        _say(f"Seed {seed}: {METHODS[method]}, {settings.student_steps} steps")
        history = trainer.fit(
            train.repeat(),
            steps_per_epoch=settings.evaluate_every,
            epochs=settings.student_steps // settings.evaluate_every,
            validation_data=test,
            verbose=0,
            shuffle=False,
        ).history
        found[seed] = history["val_accuracy"]
        print(f"{found[seed][-1]:.1%}", flush=True)
    return student, found


def _trainer(method, teacher, student):
    """Returns what trains a student, its scale of the loss, and what it compiles with.

    Its variables are the student's own.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if method == "plain":
        return strip_heads(student), 1.0, {"loss": loss}
    if method == "logits":
        logits = keras.distillation.Distiller(
            strip_heads(teacher),
            strip_heads(student),
            # The default, loss="kl_divergence", divides logits instead of probabilities
            # in Keras 3.15: it turns negative and nothing is learned.
            keras.distillation.LogitsDistillation(
                3.0, loss=keras.losses.KLDivergence()
            ),
        )
        # Keras halves the sum of its two losses; this step is as long as the others'.
        return logits, 0.5, {"loss": loss}
    return Distiller(teacher, student), 1.0, {}


def _begin_again(student, optimizer, initial):
    """Gives a student the weights of another, and its optimizer no memory."""
    student.set_weights(initial.get_weights())
    for variable in optimizer.variables:
        if variable is not optimizer.learning_rate:
            variable.assign(keras.ops.zeros_like(variable))


def _say(what):
    print(f"{what} ... ", end="", flush=True)


def _summary(accuracies, plain):
    """Returns statistics of accuracies by seed and evaluation, beside `plain` ones."""
    last = {seed: float(values[-1]) for seed, values in accuracies.items()}
    mean, deviation = spread(list(last.values()))
    gain = None
    if plain is not None:
        gain = paired_difference(last, {s: float(v[-1]) for s, v in plain.items()})
    return {
        "accuracy_mean": mean,
        "accuracy_deviation": deviation,
        "gain": gain and gain._asdict(),
        "accuracy_by_seed": [list(map(float, v)) for v in accuracies.values()],
    }


def _draw(figure, results):
    axes, settings = figure.add_subplot(), results["settings"]
    for number, (method, row) in enumerate(results["methods"].items()):
        accuracies = 100 * np.array(row["accuracy_by_seed"])
        look = {"color": f"C{number}", "label": f"{METHODS[method]}: {_accuracy(row)}"}
        if method == "teacher":
            axes.axhline(accuracies[0, -1], linestyle="--", **look)
            continue
        steps = settings["evaluate_every"] * np.arange(1, accuracies.shape[1] + 1)
        axes.plot(steps, accuracies.mean(axis=0), **look)
        low, high = accuracies.min(axis=0), accuracies.max(axis=0)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.15)
    axes.set(
        xlabel="step",
        ylabel=f"accuracy on {results['measured_on']}, %",
        title=f"{settings['examples_per_class']} labelled images a class, "
        f"mean and range of {len(results['seeds'])} seeds",
    )
    axes.legend(title="after the last step", loc="lower right")


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
