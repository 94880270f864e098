"""Settings of a run: dataclasses that are flags, arguments and record in one."""

import dataclasses

from keras_hsakd.names import DTYPES
from keras_hsakd.results import CHECKPOINTS


def setting(default=dataclasses.MISSING, help: str = "", **metadata):
    """Returns a dataclass field that the command line turns into a flag.

    Args:
        default: Default value. Without one the field must be given.
        help: What the flag's help says.
        **metadata: `choices` or `metavar` of the flag.

    Returns:
        A `dataclasses.field`.

    Example:
    >>> @dataclasses.dataclass
    ... class Settings:
    ...     epochs: int = setting(240, "epochs of the training")
    >>> Settings()
    Settings(epochs=240)
    """
    metadata["help"] = help
    if isinstance(default, dict):  # a copy for each instance
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images are trained on and measured on, and how they are fed.

    Attributes:
        data: A name as `keras_hsakd.data.load` takes it, also `tfds:NAME`, or the path
            of a folder as `keras_hsakd.data.image_folder` reads it.
        data_dir: As in `keras_hsakd.data.load`; for a data set with a name.
        train_split: As in `keras_hsakd.data.load`; for `tfds:`.
        test_split: As in `keras_hsakd.data.load`; for `tfds:`.
        image_size: Height and width of the images.
        examples_per_class: Number of training images kept of each class.
        label_fraction: Part of each class of the training images that is kept.
        limit: Most training images, and test images, that are kept.
        validation: Whether to measure on held-out training images.
        augment: Stronger augmentation, see `keras_hsakd.data.load`.
        crop: How training images are cropped, see `keras_hsakd.data.load`.
        center_crop: How test images are cropped, see `keras_hsakd.data.load`.
        flip: Whether training images are mirrored at random; for a folder or `tfds:`.
        mean: Mean per channel, from 0 to 1; for a folder or `tfds:`.
        std: Standard deviation per channel, from 0 to 1; for a folder or `tfds:`.
        corrupt: What to do about corrupt files; for a folder, or `unlabeled`.
        unlabeled: Folder of more training images, at any depth, without labels; or
            `"rest"`, those that are left out of the labelled ones.
    """

    data: str = setting(
        help="named data set (see README), tfds:NAME for one of tensorflow-datasets, "
        "or a folder of images"
    )
    data_dir: str | None = setting(
        None,
        "data set with a name: folder of tensorflow-datasets "
        "(default: ~/tensorflow_datasets)",
    )
    train_split: str | None = setting(
        None, "tfds: split to train on, for example train[:1000] (default: train)"
    )
    test_split: str | None = setting(
        None,
        "tfds: split to measure on (default: test, else validation, else a fifth of "
        "each class of the training split)",
    )
    image_size: int | None = setting(
        None,
        "height and width of the images (default: the named data set's; 32 for tfds: "
        "and a folder)",
    )
    examples_per_class: int | None = setting(
        None, "training images kept of each class, chosen by the seed (default: all)"
    )
    label_fraction: float | None = setting(
        None,
        "part of the training images of each class that is kept, from 0 to 1, chosen "
        "by the seed (default: all)",
    )
    limit: int | None = setting(
        None,
        "most training images, and test images, that are kept, to try things out "
        "(default: all)",
    )
    validation: bool = setting(
        False, "measure on a fixed fifth of the training images, not on the test images"
    )
    augment: str | None = setting(
        None, "stronger augmentation of training images: rand_augment (default: none)"
    )
    crop: str | None = setting(
        None,
        "crop of training images: padded, by an eighth of their size, or resized, a "
        "random part as for ImageNet (default: padded)",
        choices=("padded", "resized"),
    )
    center_crop: float | None = setting(
        None,
        "part of a test image's shorter side that is kept, in a square at its centre "
        "(default: the whole image is resized)",
    )
    flip: bool | None = setting(
        None, "folder, tfds: mirror training images at random (default: yes)"
    )
    mean: tuple[float, float, float] | None = setting(
        None, "folder, tfds: mean of each channel, from 0 to 1 (default: ImageNet's)"
    )
    std: tuple[float, float, float] | None = setting(
        None, "folder, tfds: standard deviation of each channel (default: ImageNet's)"
    )
    corrupt: str | None = setting(
        None,
        "folder: refuse or skip files that cannot be decoded, or leave them "
        "unchecked (default: refuse)",
        choices=("refuse", "skip", "unchecked"),
    )
    unlabeled: str | None = setting(
        None,
        "folder of more training images, at any depth, that have no label; or rest, "
        "those that --examples-per-class or --label-fraction leave out (default: none)",
    )


# Of data settings: what a trained network has fixed.
OF_THE_NETWORK = ("image_size", "mean", "std")
# What matters to training images alone.
OF_TRAINING = (
    "examples_per_class",
    "label_fraction",
    "augment",
    "crop",
    "flip",
    "unlabeled",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Which network is trained, and how; the defaults are the paper's on CIFAR.

    Attributes:
        model: A name of `keras_hsakd.models.names()`.
        head: `"copy"` or `"light"`, which auxiliary heads it has, see
            `keras_hsakd.attach_heads`.
        epochs: Number of passes over the training images.
        batch_size: Images in a batch; each is seen under four rotations.
        learning_rate: Before its drops.
        milestones: Fractions of the epochs at which it drops to a tenth.
        momentum: Of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled (L2), on all trained variables.
        seed: Of the initial weights, the order of the images and the augmentation.
        precision: Name of a Keras dtype policy.
        synchronize_batch_norm: Whether batch normalization uses the batch of all
            devices, which then train as one does.
        deterministic: Whether TensorFlow keeps to operations that give the same bits
            each time.
    """

    model: str = setting(help="network to train, see `keras-hsakd models`")
    head: str = setting(
        "copy",
        "its auxiliary heads: a copy of what follows each stage, as in the paper, or "
        "light, two convolutions each, which cost less",
        choices=("copy", "light"),
    )
    epochs: int = setting(240, "passes over the training images")
    batch_size: int = setting(64, "images in a batch, each seen under four rotations")
    learning_rate: float = setting(0.05, "learning rate before its drops")
    milestones: tuple[float, ...] = setting(
        (0.625, 0.75, 0.875),
        "fractions of the epochs at which the learning rate drops to a tenth",
    )
    momentum: float = setting(0.9, "momentum of SGD")
    nesterov: bool = setting(True, "Nesterov momentum")
    weight_decay: float = setting(5e-4, "coupled weight decay (L2)")
    seed: int = setting(0, "seed of weights, order of images and augmentation")
    precision: str = setting(
        "float32",
        "dtype policy of the network",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    synchronize_batch_norm: bool = setting(
        False, "batch normalization over the batch of all devices, not each its part"
    )
    deterministic: bool = setting(
        False, "operations that give the same bits each time; slower on GPUs"
    )

    def __post_init__(self):
        """Checks the numbers that nothing else checks before training."""
        for name, minimum, strict in (
            ("epochs", 1, False),
            ("batch_size", 1, False),
            ("learning_rate", 0, True),
            ("momentum", 0, False),
            ("weight_decay", 0, False),
            ("seed", 0, False),
        ):
            value = getattr(self, name)
            if not (value > minimum if strict else value >= minimum):
                raise ValueError(
                    f"Expected `{name}` to be {'above' if strict else 'at least'} "
                    f"{minimum}. Received: {name}={value}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Which outputs of a teacher are kept.

    Attributes:
        teacher: Run folder of the teacher; of a cache that is there, its own.
        checkpoint: `"last"` or `"best"`, which of the run's networks.
        variants: Number of augmentations of each image.
        dtype: How an output is kept, see `keras_hsakd.TeacherCache.write`.
        batch_size: Images that the teacher sees at once.
        seed: Of the augmentation.
    """

    teacher: str | None = setting(
        None, "run folder of the teacher (default, of a cache to --check: its own)"
    )
    checkpoint: str = setting(
        "last",
        "network of the teacher: after the last epoch, or after that of the best "
        "val_accuracy",
        choices=CHECKPOINTS,
    )
    variants: int = setting(
        8, "augmentations of each image; epoch e is trained on number e mod variants"
    )
    dtype: str = setting(
        "float16", "how an output is kept; uint8 with a scale a row", choices=DTYPES
    )
    batch_size: int = setting(64, "images that the teacher sees at once")
    seed: int = setting(0, "seed of the augmentation, and of the choice of images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """On what a training runs, and what becomes of it when it is stopped.

    Attributes:
        strategy: `"mirrored"`, the GPUs of this machine, or `"multiworker"`, the
            processes that `TF_CONFIG` names; see `keras_hsakd.distribution`.
        resume: Whether to go on with a run that was stopped, or to leave one as it is
            that has finished.
        snapshot_steps: Steps between two snapshots.
        snapshot_seconds: Seconds between two snapshots.
        snapshots: Number of snapshots kept while training.
        steps_per_execution: Steps in a row, between which nothing is read from the
            device, see `keras.Model.compile`. They change nothing in the results.
        augment_on_device: Whether training images are cropped and flipped in the step,
            see `fit` of the trainers. It changes nothing in the results.
        tensorboard_images: Epochs between two pictures for TensorBoard: test images
            under their views with the heads' predictions, confusion matrices. Each
            takes a pass over the test images under all views. It changes nothing in the
            results.
        plan: JSON file of `keras_hsakd.runs.plan`; what it foretold stands in
            `run.json` beside what the training took.
    """

    strategy: str | None = setting(
        None,
        "mirrored: all GPUs of this machine; multiworker: the processes of TF_CONFIG "
        "(default: one device)",
        choices=("mirrored", "multiworker"),
    )
    resume: bool = setting(
        False, "go on with the run in that folder, at the step where it was stopped"
    )
    snapshot_steps: int | None = setting(
        None, "steps between two snapshots (default: by time)"
    )
    snapshot_seconds: float = setting(600.0, "seconds between two snapshots")
    snapshots: int = setting(2, "snapshots kept while training")
    steps_per_execution: int | None = setting(
        None,
        "steps in a row, during which signals and snapshots wait (default: 1 on a "
        "CPU, up to 50 on an accelerator)",
    )
    augment_on_device: bool = setting(
        False, "crop and flip training images on the device, where the processor lags"
    )
    tensorboard_images: int | None = setting(
        None,
        "epochs between two pictures for TensorBoard: views with the heads' "
        "predictions, confusion matrices (default: none)",
    )
    plan: str | None = setting(
        None,
        "file of `keras-hsakd plan --output`; run.json has what it foretold beside "
        "what the training took (default: none)",
    )

    def __post_init__(self):
        """Checks what nothing else checks before training."""
        for name in ("steps_per_execution", "tensorboard_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"Expected `{name}` to be at least 1. Received: {name}={value}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo trains; chosen on the validation split, see `docs/demo.md`."""

    teacher: str = setting("resnet14", "network of the teacher")
    student: str = setting("resnet8", "network of the students")
    examples_per_class: int = setting(3, "labelled training images of each digit")
    image_size: int = setting(12, "height and width of the images")
    batch_size: int = setting(25, "images in a batch")
    teacher_epochs: int = setting(8, "epochs of the teacher")
    student_steps: int = setting(160, "steps of each student")
    learning_rate: float = setting(0.05, "learning rate before its three drops")
    evaluate_every: int = setting(40, "steps between two points of a curve")
