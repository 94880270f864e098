"""Options of a training, against plain Keras doing the same, and through a stop."""

import dataclasses
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import cli, commands, data, drawings, runs, terms
from keras_hsakd.resume import OutOfTime, Preempted, list_snapshots
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    ExecutionSettings,
    Run,
    TrainingSettings,
    networks,
    optimization,
    tensorboard,
    train,
    training,
)
from keras_hsakd.runs.images import load
from keras_hsakd.runs.kinds import Job
from keras_hsakd.runs.settings import PRESETS
from keras_hsakd.trainers import BaselineTrainer

DIGITS = DataSettings(data="digits", image_size=8, limit=44)
RESUME = ExecutionSettings(resume=True, snapshot_steps=1)
STEPS = 5

pytestmark = [
    pytest.mark.usefixtures("stand_ins", "eager_trainers"),
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="runs are TensorFlow's"
    ),
]


def settings(**changes):
    chosen = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, **changes}
    return TrainingSettings(model="wrn_10_1", **chosen)


def train_baseline(output, execution=RESUME, **changes):
    return train(Baseline(), output, settings(**changes), DIGITS, execution, verbose=0)


def linear_network():
    images = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(images))
    return keras.Model(images, outputs)


@pytest.fixture(autouse=True, scope="module")
def without_curves():
    """Spares the runs their pictures."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "training_curves", lambda *_: None)
        yield


# Against plain Keras.

PLAIN = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
SGD, AdamW = keras.optimizers.SGD, keras.optimizers.AdamW
schedules = keras.optimizers.schedules


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        ({**PLAIN}, lambda: SGD(0.1)),
        (
            {"optimizer": "adamw", "weight_decay": 0.05},
            lambda: AdamW(0.1, weight_decay=0.05),
        ),
        (
            {**PLAIN, "schedule": "cosine"},
            lambda: SGD(schedules.CosineDecay(0.1, STEPS)),
        ),
        (
            {**PLAIN, "schedule": "cosine", "warmup_epochs": 0.4},
            lambda: SGD(
                schedules.CosineDecay(0.0, 3, warmup_target=0.1, warmup_steps=2)
            ),
        ),
        (
            {**PLAIN, "warmup_epochs": 0.4},
            lambda: SGD(schedules.PiecewiseConstantDecay([0, 1], [0.0, 0.05, 0.1])),
        ),
        ({**PLAIN, "ema": 0.5}, lambda: SGD(0.1, use_ema=True, ema_momentum=0.5)),
        (
            {**PLAIN, "schedule": "cosine", "gradient_accumulation": 2},
            lambda: SGD(
                schedules.CosineDecay(0.1, STEPS), gradient_accumulation_steps=2
            ),
        ),
        ({**PLAIN, "clip_norm": 0.05}, lambda: SGD(0.1, global_clipnorm=0.05)),
        ({**PLAIN, "label_smoothing": 0.3}, lambda: SGD(0.1)),
    ],
    ids=lambda value: (
        "-".join(sorted(value.keys() - PLAIN)) if type(value) is dict else ""
    ),
)
def test_an_option_is_what_plain_keras_does(changes, optimizer):
    chosen = settings(**changes)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(40, 8, 8, 3)), np.arange(40) % 10
    pair = [linear_network() for _ in range(2)]
    before = [rng.normal(0, 0.05, w.shape) for w in pair[0].get_weights()]
    for network in pair:
        network.set_weights(before)
    term = terms.CrossEntropy(label_smoothing=chosen.label_smoothing)
    job = Job(BaselineTrainer(pair[0], terms=[term]), pair[0])
    steps = types.SimpleNamespace(train=range(STEPS), image_size=8)
    training.compile_job(job, chosen, steps, ExecutionSettings())
    fitting = {"batch_size": 8, "shuffle": False, "verbose": 0}
    job.trainer.fit(images, labels, **fitting)

    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=chosen.label_smoothing
    )
    pair[1].compile(optimizer(), loss)
    pair[1].fit(images, np.eye(10)[labels], **fitting)
    after = pair[0].get_weights()
    for a, b in zip(after, pair[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(after, before, strict=True)) > 1e-4


def test_an_average_counts_updates_however_many_batches_they_take():
    averages = []
    for batches in (1, 3):
        chosen = settings(**PLAIN, ema=0.5, epochs=60, gradient_accumulation=batches)
        optimizer = optimization.optimizer(chosen, 2)
        variable = keras.Variable([1.0])
        optimizer.build([variable])
        for gradient in (1.0, 2.0, 3.0):
            for _ in range(batches):
                optimizer.apply([keras.ops.convert_to_tensor([gradient])])
        for _ in range(batches - 1):  # until the last update counts for all of its own
            optimizer.apply([keras.ops.convert_to_tensor([0.0])])
        optimizer.finalize_variable_values([variable])
        averages.append(variable.numpy().item())
    assert averages[0] == pytest.approx(averages[1], rel=1e-5)


def test_steps_of_the_learning_rate_count_epochs_of_images():
    chosen = settings(
        **PLAIN, epochs=4, milestones=(0.5,), warmup_epochs=1, gradient_accumulation=3
    )
    optimizer = optimization.optimizer(chosen, 2)
    variable = keras.Variable([0.0])
    optimizer.build([variable])
    rates = []
    for _ in range(8):
        rates.append(float(optimizer.learning_rate))
        optimizer.apply([keras.ops.convert_to_tensor([1.0])])
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.1, *[0.01] * 4], rtol=1e-6)


def test_what_the_optimizer_cannot_do_is_said():
    with pytest.raises(ValueError, match="`gradient_accumulation` to be at most 5"):
        optimization.optimizer(settings(gradient_accumulation=6), 5)


# In a run.


def everything(**changes):
    return {
        "epochs": 2,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "label_smoothing": 0.1,
        "ema": 0.9,
        "gradient_accumulation": 2,
        "clip_norm": 0.5,
        "drop_remainder": True,
        "patience": 3,
        **changes,
    }


@pytest.fixture(scope="module")
def never_stopped(stand_ins, eager_trainers, tmp_path_factory):
    return train_baseline(tmp_path_factory.mktemp("whole") / "run", **everything())


def test_the_average_is_measured_and_saved(never_stopped):
    run, chosen = never_stopped, settings(**everything())
    # Keras gives a network its average when `fit` ends, and what is trained on before.
    images = load(DIGITS, 8, chosen.seed, drop_remainder=True)
    with networks.construction("float32", tf.distribute.get_strategy()):
        keras.utils.set_random_seed(chosen.seed)
        job = Baseline().job(chosen, images, None)
    training.compile_job(job, chosen, images, ExecutionSettings())
    logs = job.trainer.fit(images.train, epochs=2, shuffle=False, verbose=0).history
    last = run.record["last"]
    assert last["loss"] == pytest.approx(logs["loss"][-1], rel=1e-5)
    for a, b in zip(run.network().weights, job.network.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    measured = job.trainer.evaluate(images.test, verbose=0, return_dict=True)
    assert last["val_loss"] == pytest.approx(measured["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "event",
    [
        "on_train_batch_end",
        pytest.param("on_test_batch_end", marks=pytest.mark.slow),
    ],
)
def test_a_training_with_all_options_goes_on_bit_identical(
    event, never_stopped, tmp_path, monkeypatch
):
    left = iter(range(3))

    def stop(*arguments):
        if next(left, None) is None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tensorboard.TensorBoard, event, stop, raising=False)
    with pytest.raises(Preempted):
        train_baseline(tmp_path / "run", **everything())
    monkeypatch.undo()
    run = train_baseline(tmp_path / "run", **everything())
    assert run.weights_digest() == never_stopped.weights_digest()
    for results in (run.record["last"], never_stopped.record["last"]):
        results.pop("images_per_second", None)
    assert run.record["last"] == never_stopped.record["last"]


def test_a_training_without_progress_ends(tmp_path, monkeypatch):
    changes = {"epochs": 5, "learning_rate": 1e-9, "patience": 1}
    run = train_baseline(tmp_path / "run", **changes)
    assert run.is_finished
    assert run.record["epochs_done"] == 2


def test_a_training_that_is_out_of_time_goes_on(tmp_path, capsys):
    output = tmp_path / "run"
    execution = dataclasses.replace(RESUME, max_hours=1e-9)
    with pytest.raises(OutOfTime) as end:
        train_baseline(output, execution)
    assert end.value.code == 75
    assert "After 3.6e-06 seconds: wrote" in capsys.readouterr().err
    run = Run.open(output)
    assert run.record["status"] == "out of time"
    assert "error" not in run.record
    assert "step-0000001" in list_snapshots(run.snapshots)[0]
    assert train_baseline(output).is_finished


# What does not go.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adam"}, "`--optimizer` to be one of.*'sgd', 'adamw'"),
        ({"schedule": "linear"}, "`--schedule` to be one of"),
        ({"optimizer": "adamw", "learning_rate": 0.05}, "a `learning_rate` for"),
        (
            {"optimizer": "adamw", "momentum": 0.8},
            "no `momentum` with optimizer='adamw",
        ),
        ({"schedule": "cosine", "milestones": [0.5]}, "no `milestones` with schedule="),
        ({"warmup_epochs": 1}, "`--warmup-epochs` to be below 1"),
        ({"label_smoothing": 1.0}, "`--label-smoothing` to be at least 0 and below 1"),
        ({"ema": 1.0}, "`--ema` to be above 0 and below 1"),
        ({"learning_rate": 0.0}, "`--learning-rate` to be above 0"),
        ({"milestones": (2,)}, "each of `--milestones` to be above 0"),
        ({"momentum": 1}, "`--momentum` to be at least 0 and below 1"),
        ({"learning_rate": float("nan")}, "`--learning-rate` to be a finite number"),
        ({"weight_decay": float("inf")}, "`--weight-decay` to be a finite number"),
        ({"seed": 2**32}, "`--seed` to be .* at most 4294967295"),
    ],
)
def test_settings_that_do_not_go_together(wrong, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        settings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (123.68, 116.78, 103.94)},
        {"std": (58.4, 57.1, 57.4)},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (float("nan"), 0.5, 0.5)},
        {"limit": 0},
        {"label_fraction": 1.5},
        {"center_crop": 0.0},
        {"corrupt": "ignore"},
    ],
)
def test_images_on_another_scale(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Expected .*`--{name.replace('_', '-')}` to"):
        DataSettings(data="photos", **wrong)


def test_execution_that_does_not_go(tmp_path):
    for name in ("snapshot_steps", "snapshots", "snapshot_seconds", "max_hours"):
        flag = f"`--{name.replace('_', '-')}` to be"
        for value in (-1, float("nan")):
            with pytest.raises(ValueError, match=f"{flag}.*{name}={value}"):
                ExecutionSettings(**{name: value})
    with pytest.raises(ValueError, match="no `jit_compile` with `strategy`"):
        ExecutionSettings(jit_compile=True, strategy="mirrored")
    with pytest.raises(ValueError, match="no `jit_compile` with `deterministic`"):
        train_baseline(
            tmp_path / "run", ExecutionSettings(jit_compile=True), deterministic=True
        )
    with pytest.raises(ValueError, match="a batch of training images with `drop_rem"):
        train_baseline(tmp_path / "run", drop_remainder=True, batch_size=64)
    assert not (tmp_path / "run").exists()


def test_what_several_devices_cannot_do(monkeypatch, tmp_path):
    several = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(training.distribution, "make_strategy", lambda name: several)
    for changes in ({"gradient_accumulation": 2}, {"clip_norm": 1.0}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"no `{name}` on several devices"):
            train_baseline(tmp_path / "run", **changes)


# The command line.


@pytest.fixture
def received(monkeypatch):
    """Returns what `train` was called with last, in place of training."""
    options = {}
    monkeypatch.setattr(commands, "_report", lambda run: None)
    monkeypatch.setattr(
        runs, "train", lambda kind, **others: options.update(others, kind=kind)
    )
    return options


def test_flags_win_over_a_preset(received):
    line = "baseline --data photos --model resnet8 --output x --preset finetune"
    assert cli.main(line.split()) == 0
    preset = TrainingSettings(model="resnet8", **PRESETS["finetune"])
    assert received["training"] == preset
    assert cli.main([*line.split(), "--epochs", "3", "--clip-norm", "2"]) == 0
    assert received["training"] == dataclasses.replace(preset, epochs=3, clip_norm=2.0)


def test_presets_together(received):
    line = "distill --teacher t --model resnet8 --output x --preset finetune lean"
    assert cli.main([*line.split(), "--sampled-views", "3"]) == 0
    assert received["kind"].sampled_views == 3
    assert received["kind"].cached_variants == PRESETS["lean"]["cached_variants"]
    settings = {**PRESETS["finetune"], "head": "light"}
    assert received["training"] == TrainingSettings(model="resnet8", **settings)
    line = "teacher --data photos --model resnet8 --output x --preset lean"
    assert cli.main(line.split()) == 0  # without a teacher to cache
    assert received["kind"].sampled_views == 2


def test_flags_of_a_training_reach_it(received):
    line = (
        "linear --data photos --model resnet8 --output x --backbone y "
        "--optimizer adamw --learning-rate 0.001 --schedule cosine --warmup-epochs 2.5 "
        "--label-smoothing 0.1 --ema 0.99 --gradient-accumulation 4 --clip-norm 1 "
        "--drop-remainder --patience 5 --no-jit-compile --max-hours 1.5"
    )
    assert cli.main(line.split()) == 0
    assert received["training"] == TrainingSettings(
        model="resnet8",
        optimizer="adamw",
        learning_rate=0.001,
        schedule="cosine",
        warmup_epochs=2.5,
        label_smoothing=0.1,
        ema=0.99,
        gradient_accumulation=4,
        clip_norm=1.0,
        drop_remainder=True,
        patience=5,
    )
    assert received["execution"] == ExecutionSettings(jit_compile=False, max_hours=1.5)


# Of the trainers and the data.


def test_whole_batches_alone():
    train, test = data.load(
        "digits", 8, image_size=8, limit=44, with_indices=True, drop_remainder=True
    )
    assert len(train) == train.epoch_counter.num_steps == 5
    assert len(test) == 6
    passes = [[x["indices"].numpy().tolist() for x, _ in train] for _ in range(2)]
    for batches in passes:
        assert [len(set(batch)) for batch in batches] == [8] * 5
    first, second = ({i for batch in batches for i in batch} for batches in passes)
    assert len(first) == len(second) == 40
    assert first != second  # others are left out
    read = train.stream(0, 3).take(4)
    read = [x["indices"].numpy().tolist() for x, _ in read]
    assert read == passes[0][3:] + passes[1][:2]
