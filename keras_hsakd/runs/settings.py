"""Settings of a run: dataclasses that are flags, arguments and record in one.

The type of a field says what its flag takes, the docstring of the class what it means.
"""

import dataclasses
import os
import typing
from typing import Annotated, Literal

from keras_hsakd.names import CacheDtype, Checkpoint, Head, Preprocessing
from keras_hsakd.sizes import ImageSize, checked
from keras_hsakd.validation import (
    Count,
    MismatchError,
    NonNegative,
    Positive,
    Range,
    converted,
    fields,
)
from keras_hsakd.zoo import COSTS

LARGEST_SEED = 2**32 - 1  # that NumPy takes
Seed = Annotated[int, Range(at_least=0, at_most=LARGEST_SEED)]
# From 0 to 1, with and without them.
Part = Annotated[float, Range(above=0, at_most=1)]
Share = Annotated[float, Range(at_least=0, below=1)]
Brightness = Annotated[float, Range(at_least=0, at_most=1)]
Fraction = Annotated[float, Range(above=0, below=1)]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
PRECISIONS = typing.get_args(Precision)


class Settings:
    """Base class of dataclasses whose values are of the types of their fields.

    Example:
    >>> @dataclasses.dataclass
    ... class Lengths(Settings):
    ...     epochs: Count = 240
    >>> Lengths(epochs=0)
    Traceback (most recent call last):
    ValueError: Expected `--epochs` to be at least 1. Received: epochs=0
    """

    def __post_init__(self):
        for name, hint in fields(type(self))[0].items():
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            try:
                object.__setattr__(self, name, converted(value, hint))
            except MismatchError as error:
                flag = f"`--{name.replace('_', '-')}`"
                raise ValueError(
                    f"Expected {'each of ' * bool(error.place)}{flag} to be "
                    f"{error.expected}. Received: {name}={value!r}"
                ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which images are trained on and measured on, and how they are fed.

    Attributes:
        data: cifar10, cifar100, digits, stl10, tfds:NAME for one of
            tensorflow-datasets, or a folder of images.
        data_dir: Data set with a name: folder of tensorflow-datasets. Defaults to
            ~/tensorflow_datasets.
        train_split: tfds: split to train on, for example train[:1000]. Defaults to
            train.
        test_split: tfds: split to measure on. Defaults to test, else validation, else
            a fifth of each class of the training split.
        image_size: Height and width of the images, or HEIGHTxWIDTH. Defaults to the
            named data set's; 32 for tfds: and a folder.
        examples_per_class: Keep this many training images of each class, chosen by the
            seed. Defaults to all.
        label_fraction: Keep this part of the training images of each class, from 0 to
            1, chosen by the seed. Defaults to all.
        limit: Keep at most this many training images, and as many test images, to try
            things out. Defaults to all.
        validation: Measure on a fixed fifth of the training images, not on the test
            images.
        augment: Augment training images more strongly: rand_augment. Defaults to no.
        crop: Crop of training images: padded, by an eighth of their size, or resized,
            a random part as for ImageNet. Defaults to padded.
        center_crop: Keep this part of a test image, at its centre: a square, measured
            by the shorter side; or, where --image-size is not square, a rectangle of
            its shape. Defaults to the whole image, resized.
        flip: Folder, tfds: mirror training images at random. Defaults to yes.
        mean: Folder, tfds: mean of each channel, from 0 to 1. Defaults to ImageNet's.
        std: Folder, tfds: standard deviation of each channel. Defaults to ImageNet's.
        corrupt: Folder: refuse or skip files that cannot be decoded, or leave them
            unchecked. Defaults to refuse.
        unlabeled: Folder of training images without labels, at any depth; or rest: the
            images that --examples-per-class or --label-fraction leave out. Defaults to
            none.
    """

    data: str
    data_dir: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    image_size: ImageSize | None = None
    examples_per_class: Count | None = None
    label_fraction: Part | None = None
    limit: Count | None = None
    validation: bool = False
    augment: str | None = None
    crop: Literal["padded", "resized"] | None = None
    center_crop: Part | None = None
    flip: bool | None = None
    mean: tuple[Brightness, Brightness, Brightness] | None = None
    std: tuple[Part, Part, Part] | None = None
    corrupt: Literal["refuse", "skip", "unchecked"] | None = None
    unlabeled: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None:
            object.__setattr__(self, "image_size", checked(self.image_size))


# Of data settings: what a trained network has fixed.
OF_THE_NETWORK = ("image_size", "mean", "std")
# What chooses some of the training images, by the seed.
CHOOSING = ("limit", "examples_per_class", "label_fraction")
# What matters to training images alone.
OF_TRAINING = (
    "examples_per_class",
    "label_fraction",
    "augment",
    "crop",
    "flip",
    "unlabeled",
)

# Of settings of a training: what networks without heads have not.
OF_THE_HEADS = ("head", "taps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Which network is trained, and how; the defaults are the paper's on CIFAR.

    Attributes:
        model: Network to train: one of `keras-hsakd models`, applications/NAME of
            keras.applications, a .keras file, or package.module:function, which makes
            a keras.Model of (height, width, channels) and the number of classes.
        weights: applications: imagenet, or a file of weights, .weights.h5 or .h5.
            Defaults to random ones.
        preprocessing: File or function: inside, it takes images of 0 to 255, or
            normalize, by --mean and --std before it. Defaults to inside, where it
            begins with layers for that.
        head: Auxiliary heads: light, which cost a small part of the network, or copy,
            a copy of the layers after each stage, as in the paper. Defaults to copy for
            the networks of `keras-hsakd models`, light for others.
        taps: Names of the layers whose outputs the heads take. Defaults to those that
            keras_hsakd.find_taps finds.
        freeze_backbone: Freeze the weights that were loaded; train the heads and a new
            classifier.
        epochs: Passes over the training images.
        batch_size: Images in a batch, before views are made of them.
        optimizer: sgd, as PyTorch has it, or adamw, as Keras has it.
        learning_rate: Largest learning rate; adamw needs a smaller one.
        schedule: Lower the learning rate in steps, or as a cosine to zero.
        milestones: steps: fractions of the epochs at which the learning rate drops to
            a tenth.
        warmup_epochs: Epochs over which the learning rate rises from zero.
        momentum: Momentum of sgd.
        nesterov: Nesterov momentum of sgd.
        weight_decay: Weight decay of all trained variables: coupled (L2) with sgd,
            decoupled with adamw.
        label_smoothing: Probability that moves from an image's label to all classes
            alike.
        ema: Momentum of a moving average of the weights, for example 0.999, which is
            measured and saved in their place. Defaults to no average.
        gradient_accumulation: Number of batches whose gradients are averaged for one
            update of the weights.
        clip_norm: Scale the gradients down to this norm, over all variables together.
            Defaults to no limit.
        drop_remainder: Leave out the images of an epoch that do not fill a batch.
        patience: Stop after this many epochs without improvement. Defaults to never.
        seed: Seed of the weights, the order of the images and their augmentation.
        precision: Dtype policy of the network.
        synchronize_batch_norm: Normalize over the batch of all devices, not over each
            device's part of it.
        deterministic: Use operations that give the same bits each time; slower on GPUs.
    """

    model: str
    weights: str | None = None
    preprocessing: Preprocessing | None = None
    head: Head | None = None
    taps: tuple[str, ...] | None = None
    freeze_backbone: bool = False
    epochs: Count = 240
    batch_size: Count = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.05
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    warmup_epochs: NonNegative = 0.0
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    label_smoothing: Share = 0.0
    ema: Fraction | None = None
    gradient_accumulation: Count = 1
    clip_norm: Positive | None = None
    drop_remainder: bool = False
    patience: Count | None = None
    seed: Seed = 0
    precision: Precision = "float32"
    synchronize_batch_norm: bool = False
    deterministic: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.head is None:
            object.__setattr__(self, "head", "copy" if self.model in COSTS else "light")
        if not self.warmup_epochs < self.epochs:
            raise ValueError(
                f"Expected `--warmup-epochs` to be below {self.epochs}, all epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}"
            )
        self._check_together()

    def _check_together(self):
        """Raises a ValueError where a setting has no effect beside the others."""
        defaults = type(self)  # where a dataclass keeps them
        for name, others in _ONLY_FOR.items():
            choice = getattr(self, name)
            if choice == getattr(defaults, name):
                continue
            for other in others:
                if (value := getattr(self, other)) != getattr(defaults, other):
                    raise ValueError(
                        f"Expected no `{other}` with {name}={choice!r}, which has "
                        f"none. Received: {other}={value}"
                    )
        default = defaults.learning_rate
        if self.optimizer == "adamw" and self.learning_rate == default:
            raise ValueError(
                "Expected a `learning_rate` for optimizer='adamw', for example 0.001. "
                f"Received: learning_rate={default}, the default, which is for 'sgd'"
            )


# What the first choice alone has, by the name of the setting.
_ONLY_FOR = {"optimizer": ("momentum", "nesterov"), "schedule": ("milestones",)}

# Settings that go together, of a training and of its kind, by the word for them. What
# `distill` alone has is left out of other commands.
PRESETS = {
    "finetune": {
        "epochs": 20,
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
    },
    "lean": {"head": "light", "sampled_views": 2, "cached_variants": 4},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """Which outputs of a teacher a cache keeps.

    Attributes:
        teacher: Run folder of the teacher, or of several; a cache to --check has its
            own.
        checkpoint: The teacher's checkpoint: of the last epoch, or of the epoch with
            the best val_accuracy.
        variants: Augmentations of each image; epoch e is trained on number e mod
            variants.
        dtype: Dtype of an output in the files; uint8 has a scale for each row.
        batch_size: Images that the teacher sees at once.
        seed: Seed of the augmentation, and of the choice of images.
    """

    teacher: tuple[str, ...] | None = None
    checkpoint: Checkpoint = "last"
    variants: Count = 8
    dtype: CacheDtype = "float16"
    batch_size: Count = 64
    seed: Seed = 0

    def __post_init__(self):
        """Takes a single folder, too."""
        object.__setattr__(self, "teacher", one_or_more(self.teacher))
        super().__post_init__()


def one_or_more(folders) -> tuple[str, ...] | None:
    """Returns run folders as a tuple, also of one."""
    if isinstance(folders, str | os.PathLike):
        return (os.fspath(folders),)
    return folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings(Settings):
    """On which devices a training runs, and what happens when it stops.

    None of them changes the results, except `jit_compile`, which changes rounding.

    Attributes:
        strategy: mirrored: all GPUs of this machine; multiworker: the processes of
            TF_CONFIG. Defaults to one device.
        resume: Continue the run in the output folder at the step where it stopped; a
            finished run stays as it is.
        snapshot_steps: Steps between two snapshots. Defaults to snapshots by time
            alone.
        snapshot_seconds: Seconds between two snapshots.
        snapshots: Number of snapshots that are kept.
        steps_per_execution: Steps in a row, during which signals and snapshots wait.
            Defaults to 1 on a CPU, up to 50 on an accelerator.
        augment_on_device: Crop and flip training images on the device; faster where
            the CPU is the bottleneck.
        jit_compile: Compile steps by XLA. Defaults to yes on an accelerator, where XLA
            can compile them.
        stream: Folder, tfds: read the images in each epoch, even if they fit into a
            quarter of the free memory.
        max_hours: Stop after this many hours, with a snapshot and exit code 75;
            --resume continues for as many hours. Defaults to no limit.
        tensorboard_images: Epochs between two pictures for TensorBoard: views with the
            heads' predictions, confusion matrices. Each takes a pass over the test
            images under all views. Defaults to none.
        plan: File of `keras-hsakd plan --output`; run.json then has its estimate beside
            what the training took. Defaults to none.
    """

    strategy: Literal["mirrored", "multiworker"] | None = None
    resume: bool = False
    snapshot_steps: Count | None = None
    snapshot_seconds: NonNegative = 600.0
    snapshots: Count = 2
    steps_per_execution: Count | None = None
    augment_on_device: bool = False
    jit_compile: bool | None = None
    stream: bool = False
    max_hours: Positive | None = None
    tensorboard_images: Count | None = None
    plan: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.jit_compile and self.strategy is not None:
            raise ValueError(
                "Expected no `jit_compile` with `strategy`, whose steps Keras does not "
                f"compile by XLA. Received: strategy={self.strategy!r}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """What the demo trains; chosen on the validation split, see `docs/demo.md`.

    Attributes:
        teacher: Network of the teacher.
        student: Network of the students.
        examples_per_class: Labelled training images of each digit.
        image_size: Height and width of the images.
        batch_size: Images in a batch.
        teacher_epochs: Epochs of the teacher.
        student_steps: Steps of each student.
        learning_rate: Learning rate before its three drops.
        evaluate_every: Steps between two points of a curve.
    """

    teacher: str = "resnet14"
    student: str = "resnet8"
    examples_per_class: Count = 3
    image_size: int = 12
    batch_size: Count = 25
    teacher_epochs: Count = 8
    student_steps: Count = 160
    learning_rate: Positive = 0.05
    evaluate_every: Count = 40
