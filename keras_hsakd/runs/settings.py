"""Settings of a run: dataclasses that are flags, arguments and record in one."""

import dataclasses
import math
import numbers
import operator

from keras_hsakd.names import DATA_SETS, DTYPES, HEADS, PREPROCESSINGS
from keras_hsakd.results import CHECKPOINTS
from keras_hsakd.sizes import ImageSize, checked
from keras_hsakd.zoo import COSTS


def setting(default=dataclasses.MISSING, help: str = "", **metadata):
    """Returns a dataclass field that the command line turns into a flag.

    Args:
        default: Default value. Without one the field must be given.
        help: What the flag's help says.
        **metadata: `choices` or `metavar` of the flag; the range of a number, or of
            each in a tuple or dict: `at_least`, `above`, `at_most`, `below`.

    Returns:
        A `dataclasses.field`.

    Example:
    >>> @dataclasses.dataclass
    ... class Lengths(Settings):
    ...     epochs: int = setting(240, "epochs of the training", at_least=1)
    >>> Lengths(epochs=0)
    Traceback (most recent call last):
    ValueError: Expected `--epochs` to be at least 1. Received: epochs=0
    """
    metadata["help"] = help
    if isinstance(default, dict):  # a copy for each instance
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_RANGES = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


class Settings:
    """Base class of dataclasses whose values are in the ranges of their fields."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))


def _check(field, value):
    """Raises a ValueError unless a value is none, or what its field says."""
    if value is None:
        return
    told = field.metadata
    ranges = {name: told[name] for name in _RANGES if name in told}
    expected = " and ".join(f"{k.replace('_', ' ')} {v}" for k, v in ranges.items())
    values = value.values() if isinstance(value, dict) else value
    is_one = not isinstance(value, (dict, tuple, list))
    found = [
        number
        for number in ([value] if is_one else values)
        if isinstance(number, numbers.Real) and not isinstance(number, bool)
    ]
    suits = all(
        math.isfinite(number)
        and all(_RANGES[name](number, bound) for name, bound in ranges.items())
        for number in found
    )
    if (choices := told.get("choices")) and is_one:
        expected, suits = f"one of {tuple(choices)}", value in choices
    if not suits:
        flag = f"`--{field.name.replace('_', '-')}`"
        raise ValueError(
            f"Expected {flag if is_one else f'each number of {flag}'} to be "
            f"{expected or 'finite'}. Received: {field.name}={value!r}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which images are trained on and measured on, and how they are fed.

    Attributes:
        data: A name as `keras_hsakd.data.load` takes it, also `tfds:NAME`, or the path
            of a folder as `keras_hsakd.data.image_folder` reads it.
        data_dir: As in `keras_hsakd.data.load`; for a data set with a name.
        train_split: As in `keras_hsakd.data.load`; for `tfds:`.
        test_split: As in `keras_hsakd.data.load`; for `tfds:`.
        image_size: Height and width of the images, or (height, width).
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
        help=f"{', '.join(DATA_SETS)}, tfds:NAME for one of tensorflow-datasets, or a "
        "folder of images"
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
    image_size: ImageSize | None = setting(
        None,
        "height and width of the images, or HEIGHTxWIDTH (default: the named data "
        "set's; 32 for tfds: and a folder)",
    )
    examples_per_class: int | None = setting(
        None,
        "training images kept of each class, chosen by the seed (default: all)",
        at_least=1,
    )
    label_fraction: float | None = setting(
        None,
        "part of the training images of each class that is kept, from 0 to 1, chosen "
        "by the seed (default: all)",
        above=0,
        at_most=1,
    )
    limit: int | None = setting(
        None,
        "most training images, and test images, that are kept, to try things out "
        "(default: all)",
        at_least=1,
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
        "part of a test image's shorter side that is kept, in a square at its centre, "
        "or of each side of the largest part of the shape of --image-size (default: "
        "the whole image is resized)",
        above=0,
        at_most=1,
    )
    flip: bool | None = setting(
        None, "folder, tfds: mirror training images at random (default: yes)"
    )
    mean: tuple[float, float, float] | None = setting(
        None,
        "folder, tfds: mean of each channel, from 0 to 1 (default: ImageNet's)",
        at_least=0,
        at_most=1,
    )
    std: tuple[float, float, float] | None = setting(
        None,
        "folder, tfds: standard deviation of each channel (default: ImageNet's)",
        above=0,
        at_most=1,
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


LARGEST_SEED = 2**32 - 1  # that NumPy takes

# Of settings of a training: what networks without heads have not.
OF_THE_HEADS = ("head", "taps")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Which network is trained, and how; the defaults are the paper's on CIFAR.

    Attributes:
        model: A name of `keras_hsakd.models.names()`; `"applications/NAME"`, a
            classifier of `keras.applications`; the path of a `.keras` file; or
            `"package.module:function"`, a function from the shape of an image
            `(height, width, channels)` and the number of classes to a `keras.Model`.
        weights: Of a classifier of `keras.applications`: `"imagenet"`, or a file.
        preprocessing: Of a file or a function: `"inside"`, it takes images of 0 to 255,
            or `"normalize"`, these are to be normalised before it.
        head: `"copy"` or `"light"`, which auxiliary heads it has, see
            `keras_hsakd.attach_heads`. By default the paper's networks have copies,
            and others light ones.
        taps: Names of the layers that its heads are at, see `keras_hsakd.attach_heads`.
        freeze_backbone: Whether layers whose weights were loaded keep them.
        epochs: Number of passes over the training images.
        batch_size: Images in a batch, before views are made of them.
        optimizer: `"sgd"`, PyTorch's, or `"adamw"`, Keras'.
        learning_rate: The largest that the schedule has. AdamW needs one of its own.
        schedule: `"steps"`, drops of the learning rate, or `"cosine"`, down to zero.
        milestones: Fractions of the epochs at which it drops to a tenth.
        warmup_epochs: Epochs over which the learning rate comes in, from zero.
        momentum: Of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: On all trained variables; coupled (L2) of SGD, else decoupled.
        label_smoothing: Of the cross-entropy of the classes in training, see `compile`
            of the trainers.
        ema: Momentum of a moving average of the weights, an update; it is measured and
            saved in their place.
        gradient_accumulation: Batches whose gradients' mean makes an update.
        clip_norm: Largest norm of all gradients together.
        drop_remainder: Whether the images of each epoch that fill no batch are left
            out.
        patience: Epochs without a better one after which the training ends.
        seed: Of the initial weights, the order of the images and the augmentation.
        precision: Name of a Keras dtype policy.
        synchronize_batch_norm: Whether batch normalization uses the batch of all
            devices, which then train as one does.
        deterministic: Whether TensorFlow keeps to operations that give the same bits
            each time.
    """

    model: str = setting(
        help="network to train: one of `keras-hsakd models`, applications/NAME of "
        "keras.applications, a .keras file, or package.module:function, which makes a "
        "keras.Model of (height, width, channels) and the number of classes",
    )
    weights: str | None = setting(
        None,
        "applications: imagenet, or a file of weights, .weights.h5 or .h5 (default: "
        "random ones)",
    )
    preprocessing: str | None = setting(
        None,
        "file or function: inside, it takes images of 0 to 255, or normalize, by "
        "--mean and --std before it (default: inside, where it begins with layers for "
        "that)",
        choices=PREPROCESSINGS,
    )
    head: str | None = setting(
        None,
        "its auxiliary heads: light, which cost a small part of it, or a copy of what "
        "follows each stage, as in the paper (default: copy for the networks of "
        "`keras-hsakd models`, light for others)",
        choices=HEADS,
    )
    taps: tuple[str, ...] | None = setting(
        None,
        "names of the layers that its heads are at (default: those that "
        "keras_hsakd.find_taps finds)",
    )
    freeze_backbone: bool = setting(
        False, "keep the weights that were loaded; train heads and a new classifier"
    )
    epochs: int = setting(240, "passes over the training images", at_least=1)
    batch_size: int = setting(
        64, "images in a batch, before views are made of them", at_least=1
    )
    optimizer: str = setting(
        "sgd", "sgd, as PyTorch has it, or adamw", choices=("sgd", "adamw")
    )
    learning_rate: float = setting(
        0.05, "largest learning rate; adamw needs a smaller one", above=0
    )
    schedule: str = setting(
        "steps",
        "how the learning rate falls: in steps, or as a cosine to zero",
        choices=("steps", "cosine"),
    )
    milestones: tuple[float, ...] = setting(
        (0.625, 0.75, 0.875),
        "steps: fractions of the epochs at which the learning rate drops to a tenth",
        above=0,
        below=1,
    )
    warmup_epochs: float = setting(
        0.0, "epochs over which the learning rate comes in, from zero", at_least=0
    )
    momentum: float = setting(0.9, "momentum of sgd", at_least=0, below=1)
    nesterov: bool = setting(True, "Nesterov momentum of sgd")
    weight_decay: float = setting(
        5e-4, "weight decay: coupled (L2) of sgd, decoupled of adamw", at_least=0
    )
    label_smoothing: float = setting(
        0.0,
        "probability that is spread over all classes, of the labels of images",
        at_least=0,
        below=1,
    )
    ema: float | None = setting(
        None,
        "momentum of a moving average of the weights, for example 0.999, which is "
        "measured and saved in their place (default: no average)",
        above=0,
        below=1,
    )
    gradient_accumulation: int = setting(
        1, "batches whose gradients make an update of the weights together", at_least=1
    )
    clip_norm: float | None = setting(
        None,
        "largest norm of the gradients of all variables together (default: any)",
        above=0,
    )
    drop_remainder: bool = setting(
        False, "leave out the images of each epoch that fill no batch"
    )
    patience: int | None = setting(
        None,
        "epochs without a better one, by what is measured, after which the training "
        "ends (default: none ends it)",
        at_least=1,
    )
    seed: int = setting(
        0,
        "seed of weights, order of images and augmentation",
        at_least=0,
        at_most=LARGEST_SEED,
    )
    precision: str = setting(
        "float32",
        "dtype policy of the network",
        choices=PRECISIONS,
    )
    synchronize_batch_norm: bool = setting(
        False, "batch normalization over the batch of all devices, not each its part"
    )
    deterministic: bool = setting(
        False, "operations that give the same bits each time; slower on GPUs"
    )

    def __post_init__(self):
        if self.head is None:
            object.__setattr__(self, "head", "copy" if self.model in COSTS else "light")
        super().__post_init__()
        if not self.warmup_epochs < self.epochs:
            raise ValueError(
                f"Expected `--warmup-epochs` to be below {self.epochs}, all epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}"
            )
        self._check_together()

    def _check_together(self):
        """Raises a ValueError where a setting has no effect beside the others."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name, rivals in _ONLY_FOR.items():
            choice = getattr(self, name)
            for other in rivals:
                value, default = getattr(self, other), fields[other].default
                given = tuple(value) if type(default) is tuple else value
                if choice != fields[name].default and given != default:
                    raise ValueError(
                        f"Expected no `{other}` with {name}={choice!r}, which has "
                        f"none. Received: {other}={value}"
                    )
        default = fields["learning_rate"].default
        if self.optimizer == "adamw" and self.learning_rate == default:
            raise ValueError(
                "Expected a `learning_rate` for optimizer='adamw', for example 0.001. "
                f"Received: learning_rate={default}, the default, which is for 'sgd'"
            )


# What the first choice alone has, by the name of the setting.
_ONLY_FOR = {"optimizer": ("momentum", "nesterov"), "schedule": ("milestones",)}

# Settings that go together, of a training and of its kind, by the word for them.
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
    "lean": {"head": "light", "sampled_views": 2},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
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
        8,
        "augmentations of each image; epoch e is trained on number e mod variants",
        at_least=1,
    )
    dtype: str = setting(
        "float16", "how an output is kept; uint8 with a scale a row", choices=DTYPES
    )
    batch_size: int = setting(64, "images that the teacher sees at once", at_least=1)
    seed: int = setting(
        0,
        "seed of the augmentation, and of the choice of images",
        at_least=0,
        at_most=LARGEST_SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings(Settings):
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
        jit_compile: Whether steps are compiled by XLA, see `keras.Model.compile`. It
            changes nothing in the results but their rounding.
        stream: Whether images are read in each pass also where they fit into memory,
            see `keras_hsakd.data.image_folder`. It changes nothing in the results.
        max_hours: Hours after which a training ends with a snapshot, to be gone on
            with, for as many hours.
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
        None, "steps between two snapshots (default: by time)", at_least=1
    )
    snapshot_seconds: float = setting(
        600.0, "seconds between two snapshots", at_least=0
    )
    snapshots: int = setting(2, "snapshots kept while training", at_least=1)
    steps_per_execution: int | None = setting(
        None,
        "steps in a row, during which signals and snapshots wait (default: 1 on a "
        "CPU, up to 50 on an accelerator)",
        at_least=1,
    )
    augment_on_device: bool = setting(
        False,
        "crop and flip training images on the device, where the CPU is the bottleneck",
    )
    jit_compile: bool | None = setting(
        None, "compile steps by XLA (default: on an accelerator, where it can be done)"
    )
    stream: bool = setting(
        False,
        "folder, tfds: read images in each epoch, also where they fit into a quarter "
        "of the memory that is free",
    )
    max_hours: float | None = setting(
        None,
        "hours after which a training ends with a snapshot and exit code 75; --resume "
        "goes on, for as many (default: any)",
        above=0,
    )
    tensorboard_images: int | None = setting(
        None,
        "epochs between two pictures for TensorBoard: views with the heads' "
        "predictions, confusion matrices (default: none)",
        at_least=1,
    )
    plan: str | None = setting(
        None,
        "file of `keras-hsakd plan --output`; run.json has what it foretold beside "
        "what the training took (default: none)",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.jit_compile and self.strategy is not None:
            raise ValueError(
                "Expected no `jit_compile` with `strategy`, whose steps Keras does not "
                f"compile by XLA. Received: strategy={self.strategy!r}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """What the demo trains; chosen on the validation split, see `docs/demo.md`."""

    teacher: str = setting("resnet14", "network of the teacher")
    student: str = setting("resnet8", "network of the students")
    examples_per_class: int = setting(
        3, "labelled training images of each digit", at_least=1
    )
    image_size: int = setting(12, "height and width of the images")
    batch_size: int = setting(25, "images in a batch", at_least=1)
    teacher_epochs: int = setting(8, "epochs of the teacher", at_least=1)
    student_steps: int = setting(160, "steps of each student", at_least=1)
    learning_rate: float = setting(
        0.05, "learning rate before its three drops", above=0
    )
    evaluate_every: int = setting(40, "steps between two points of a curve", at_least=1)
