"""Kinds of training: a dataclass each, whose fields are flags, arguments and record."""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from keras_hsakd.names import VIEWS, Checkpoint, Method, Views
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.settings import (
    CHOOSING,
    OF_THE_HEADS,
    OF_THE_NETWORK,
    DataSettings,
    Settings,
    TrainingSettings,
    one_or_more,
)
from keras_hsakd.sizes import is_square
from keras_hsakd.validation import Count, Range

# Docstrings and fields are enough for the help of the command line. What needs Keras,
# which takes seconds, is imported where a job is made.
if TYPE_CHECKING:
    import keras

    from keras_hsakd.runs.images import Images
    from keras_hsakd.teachers import TeacherCache
    from keras_hsakd.terms import Term


class Job(NamedTuple):
    """What is trained: all that the kinds differ in once images are there.

    Attributes:
        trainer: The `keras.Model` that is fitted.
        network: The network that is saved.
        monitor: Name of the quantity among the logs that tells the best epoch.
        compiling: Further arguments of the trainer's `compile`.
    """

    trainer: "keras.Model"
    network: "keras.Model"
    monitor: str = "val_accuracy"
    compiling: Mapping[str, object] = {}


class Origin(NamedTuple):
    """The network of another run, which a training starts from or learns from.

    Attributes:
        run: The run.
        checkpoint: Which of its networks.
        argument: What the user called the run.
        cache: The network's outputs, which are enough to learn from it; then the run
            may be gone, and its data settings are those of the cache.
        kept: What a cache keeps of the run.
        others: Where there are several teachers, those after the first.
    """

    run: Run
    checkpoint: str
    argument: str
    cache: "TeacherCache | None" = None
    kept: Mapping[str, object] | None = None
    others: tuple["Origin", ...] = ()

    @property
    def all(self) -> tuple["Origin", ...]:
        """This one and the others."""
        return (self, *self.others)

    @classmethod
    def of_cache(cls, path: str | os.PathLike) -> "Origin":
        """Returns the network whose outputs are in a teacher cache.

        Raises:
            FileNotFoundError: If there is no cache.
            ValueError: If it was not written of a run.
        """
        from keras_hsakd.teachers import TeacherCache

        cache = TeacherCache(path, verify=False)
        kept = cache.header["origin"]
        if "record" not in kept:
            raise ValueError(
                "Expected `cache` to be of a run, by `keras-hsakd cache`. "
                f"Received: '{cache.path}', of a network without one"
            )
        first, *others = (
            cls(
                Run(each["run"], each["record"]), each["checkpoint"], "cache", kept=each
            )
            for each in (kept, *kept.get("others", ()))
        )
        return first._replace(cache=cache, others=tuple(others))

    def network(self) -> "keras.Model":
        """Loads the network."""
        return self.run.network(self.checkpoint)

    @property
    def weights(self) -> str:
        """A checksum of the network's weights, as of `Run.weights_digest`."""
        if self.kept is not None:
            return self.kept["weights"]
        return self.run.weights_digest(self.checkpoint)

    def record(self) -> dict:
        """Returns what `run.json` says of it."""
        record = {
            "run": self.run.path,
            "model": self.run.record["training"]["model"],
            "checkpoint": self.checkpoint,
            "weights": self.weights,
            "settings": self.run.settings(),
            **(self.run.record[self.checkpoint] or {}),
        }
        if (cache := self.cache) is not None:
            rows = cache.variants * cache.header["num_images"] * cache.num_views
            a_view = sum(sum(each.run.record["parts"].values()) for each in self.all)
            record["cache"] = {
                "path": os.path.abspath(cache.path),
                "digest": cache.digest,
                "variants": cache.variants,
                "multiply_adds": rows * a_view,
            }
        if self.others:
            record["others"] = [each.record() for each in self.others]
        return record

    def kept_in_cache(self, data: DataSettings) -> dict:
        """Returns what a cache keeps of the run, see `of_cache`.

        Args:
            data: The images that it is written of.
        """
        kept = {
            "run": self.run.path,
            "checkpoint": self.checkpoint,
            "weights": self.weights,
            "record": {**self.run.record, "data": dataclasses.asdict(data)},
        }
        if self.others:
            kept["others"] = [each.kept_in_cache(data) for each in self.others]
        return kept


def _of_labels(training):
    """Returns the term of the labels of the images themselves."""
    from keras_hsakd.terms import CrossEntropy

    return CrossEntropy(label_smoothing=training.label_smoothing)


def _check_suit(views, image_size):
    """Raises a ValueError of views that change the shape of images of a size."""
    if views == "rotations" and image_size is not None and not is_square(image_size):
        others = [name for name in VIEWS if name != "rotations"]
        raise ValueError(
            f"Expected `--views` to be one of {others} for images that are not square, "
            "for a quarter turn changes their shape. "
            f"Received: views='rotations' with image_size={image_size}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Settings):
    """Base class: a training on images and labels alone.

    Attributes:
        name: Name of the command and of the kind in `run.json`.
        starts_from: Name of the field with the run folder of its `Origin`.
        inherits: Whose data settings hold where none are given.
        fixed: Names of data settings that cannot be given.
        unused: Names of settings of a training that have no effect.
    """

    name: ClassVar[str]
    starts_from: ClassVar[str | None] = None
    inherits: ClassVar[str] = ""
    fixed: ClassVar[tuple[str, ...]] = ("unlabeled",)
    unused: ClassVar[tuple[str, ...]] = ()

    def origin(self) -> Origin | None:
        """Returns the network of another run that this one needs.

        Raises:
            FileNotFoundError: If there is no such run, or none with a finished epoch.
        """
        folders = self.starts_from and getattr(self, self.starts_from)
        if folders is None:
            return None
        checkpoint = getattr(self, "checkpoint", None) or "last"
        first, *others = (
            Origin(Run.open(folder), checkpoint, self.starts_from)
            for folder in one_or_more(folders)
        )
        return first._replace(others=tuple(others))

    def options(self) -> dict:
        """Returns the fields but those of the origin, which has a record of its own."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in self._option_names()}

    @classmethod
    def default_options(cls) -> dict:
        """Returns the options as they are where none is given."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        return {
            name: fields[name].default
            if fields[name].default_factory is dataclasses.MISSING
            else fields[name].default_factory()
            for name in cls._option_names()
        }

    @classmethod
    def _option_names(cls):
        of_the_origin = {cls.starts_from, "checkpoint", "cache", "cached_variants"}
        names = [field.name for field in dataclasses.fields(cls)]
        return [name for name in names if name not in of_the_origin]

    def data_settings(
        self, data: DataSettings | Mapping | None, origin: Origin | None
    ) -> DataSettings:
        """Returns which images it takes.

        Args:
            data: What the user gave: all settings, or values by their names.
            origin: As of `origin`.
        """
        from keras_hsakd.runs.images import absolute

        if not isinstance(data, DataSettings):
            data = DataSettings(**(data or {}))
        if data.unlabeled is not None:
            raise ValueError(
                "Expected `unlabeled` for `distill` alone: only a teacher's outputs "
                f"tell something of images without labels. Received: "
                f"unlabeled='{data.unlabeled}' for `{self.name}`"
            )
        _check_suit(getattr(self, "views", None), data.image_size)
        return absolute(data)

    def check_settings(
        self, training: TrainingSettings, data: DataSettings, origin: Origin | None
    ) -> None:
        """Raises a ValueError of settings that do not suit, or have no effect.

        Args:
            training: Which network is to be trained, and how.
            data: As of `data_settings`.
            origin: As of `origin`.
        """
        defaults = TrainingSettings(model=training.model)
        for name in self.unused:
            if (value := getattr(training, name)) != getattr(defaults, name):
                raise ValueError(
                    f"Expected no `{name}` for {self._described()}, where it has no "
                    f"effect. Received: {name}={value!r}"
                )

    def _described(self):
        return f"`{self.name}`"

    def check_images(self, images: "Images", origin: Origin | None) -> None:
        """Raises a ValueError unless the images suit the origin."""
        from keras_hsakd.runs.images import check_same

        for each in origin.all if origin else ():
            check_same(each.run, images, each.argument)

    def job(
        self, training: TrainingSettings, images: "Images", origin: Origin | None
    ) -> Job:
        """Makes the network and its trainer."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WithHeads(Kind):
    """Base class: a training of heads on views.

    Attributes:
        views: Views of an image that the heads tell apart.
        sampled_views: Number of views of each image that a step sees, to pay less: the
            image itself, and others drawn anew for each step. Defaults to all.
        head_metrics: Also log the accuracies of the heads; validation takes longer.
    """

    views: Views = "rotations"
    sampled_views: Annotated[int, Range(at_least=2)] | None = None
    head_metrics: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(_WithHeads):
    """Trains a network with auxiliary heads on labels, to teach others.

    Attributes:
        backbone: Run folder of the same network, to take its backbone and freeze it.
            Defaults to none: the whole network is trained.
    """

    name = "teacher"
    starts_from = "backbone"

    backbone: str | None = None

    def check_images(self, images, origin):
        from keras_hsakd.runs.images import check_same_normalisation

        super().check_images(images, origin)
        if origin is not None:  # a frozen backbone goes on seeing what it was made for
            check_same_normalisation(origin.run, images, origin.argument)

    def job(self, training, images, origin):
        from keras_hsakd.runs import networks
        from keras_hsakd.terms import CrossEntropy
        from keras_hsakd.trainers import TeacherTrainer

        if origin is None:
            (network,) = networks.create(training, images, self.views)
        else:
            network = networks.on_backbone(
                origin.run, origin.checkpoint, training, images, self.views
            )
        trainer = TeacherTrainer(
            network,
            freeze_backbone=origin is not None,
            views=self.views,
            sampled_views=self.sampled_views,
            terms=[_of_labels(training), CrossEntropy(on="heads")],
        )
        return Job(trainer, network, compiling={"head_metrics": self.head_metrics})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline(Kind):
    """Trains a network without heads on labels alone, to compare with."""

    name = "baseline"
    unused = OF_THE_HEADS

    def job(self, training, images, origin):
        from keras_hsakd.runs import networks
        from keras_hsakd.trainers import BaselineTrainer

        # Its weights at the start are those of a student with heads of this seed.
        (network,) = networks.create(training, images, with_heads=False)
        trainer = BaselineTrainer(network, [_of_labels(training)])
        return Job(trainer, network)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(_WithHeads):
    """Trains a student with the help of a trained teacher.

    Data, classes, normalisation and views are the teacher's, where no flag says
    otherwise; with `--cache`, those of its cached outputs.

    Attributes:
        teacher: Run folder of the teacher, or the name of a network that comes with the
            package. The logits of several are averaged, and the first one gives the
            features. Defaults to the teacher of --cache.
        cache: Folder of the teacher's outputs, written by `keras-hsakd cache`, to learn
            from without running the teacher. Defaults to none.
        cached_variants: Without --cache: first write a cache beside the run folder, of
            this many augmentations of each image. Defaults to no cache.
        checkpoint: The teacher's checkpoint: of the last epoch, or of the epoch with
            the best val_accuracy. Defaults to that of the cache, or last.
        method: Distillation method, with its published settings.
        heads: Learn by auxiliary heads from views of the images; without, from the
            teacher's class logits alone. Defaults to yes for hsakd.
        temperature: Temperature of the method. Defaults to the published one.
        method_settings: Other settings of its terms, for example beta=6 of dkd.
            Defaults to the published ones.
        terms: Terms of the loss, in place of a method, each written as in Python, for
            example "KL(4.0, on='heads', weight=0.5)".
        views: Without heads: views of an image on which the classes are learned.
            Defaults to the image alone; with heads, those of the teacher.
        weak_teacher: Also learn from a teacher that is no better than chance.
    """

    name = "distill"
    starts_from = "teacher"
    inherits = "the teacher's"
    fixed = ("image_size",)

    teacher: tuple[str, ...] | None = None
    cache: str | None = None
    cached_variants: Count | None = None
    checkpoint: Checkpoint | None = None
    method: Method = "hsakd"
    heads: bool | None = None
    temperature: float | None = None
    method_settings: dict[str, float] = dataclasses.field(default_factory=dict)
    terms: tuple[str, ...] | None = None
    views: Views | None = None
    weak_teacher: bool = False

    def __post_init__(self):
        """Decides about heads where the user did not."""
        object.__setattr__(self, "teacher", one_or_more(self.teacher))
        super().__post_init__()
        if self.heads is None:
            with_heads = self.method == "hsakd"  # or terms, which are spelled out
            object.__setattr__(self, "heads", with_heads)

    @classmethod
    def default_options(cls):
        """Returns the options as they are where none is given."""
        return {**super().default_options(), "heads": True}

    def options(self):
        """Returns the options, with terms in one spelling."""
        options = super().options()
        if self.terms is not None:
            from keras_hsakd.terms import parse

            options["terms"] = [repr(parse(text)) for text in self.terms]
        return options

    def loss_terms(self, training: TrainingSettings) -> list["Term"]:
        """Returns the terms of the loss.

        Raises:
            ValueError: If they are given twice, or a setting does not suit.
        """
        from keras_hsakd import terms

        settings = dict(self.method_settings)
        if self.temperature is not None:
            settings["temperature"] = self.temperature
        if self.terms is None:
            found = terms.of_method(self.method, self.heads, training.epochs, settings)
            labels = _of_labels(training)
            return [
                dataclasses.replace(labels, weight=term.weight)
                if isinstance(term, terms.CrossEntropy)
                else term
                for term in found
            ]
        given = {**settings, "label_smoothing": training.label_smoothing}
        if self.method != "hsakd":
            given["method"] = self.method
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"Expected no `{name}` with `terms`, which have their own settings."
                    f" Received: {name}={value!r} and terms={self.terms}"
                )
        return [terms.parse(text) for text in self.terms]

    def origin(self):
        if self.cache is None:
            if self.teacher is None:
                raise ValueError(
                    "Expected `teacher`, the run folder of one, or `cache`, a folder "
                    "of its outputs. Received: neither"
                )
            return super().origin()
        origin = Origin.of_cache(self.cache)
        if self.checkpoint not in (None, origin.checkpoint):
            raise ValueError(
                f"Expected checkpoint='{origin.checkpoint}', whose outputs are in the "
                f"`cache` '{self.cache}'. Received: checkpoint='{self.checkpoint}'"
            )
        if self.teacher is not None:
            runs = [Run.open(folder) for folder in self.teacher]
            weights = [run.weights_digest(origin.checkpoint) for run in runs]
            if weights != [each.weights for each in origin.all]:
                raise ValueError(
                    f"Expected `cache` to be of `teacher`, {_paths(runs)}. Received: "
                    f"'{self.cache}', of other weights, those of "
                    f"{_paths(each.run for each in origin.all)}"
                )
        return origin

    def changes(self, data: DataSettings | Mapping | None) -> dict:
        """Returns the data settings that differ from the teacher's."""
        if isinstance(data, DataSettings):
            return {
                name: value
                for name, value in vars(data).items()
                if value is not None or name not in OF_THE_NETWORK
            }
        return dict(data or {})

    def data_settings(self, data, origin):
        from keras_hsakd.runs.images import changed

        data = changed(origin.run, self.changes(data))
        _check_suit(self.views, data.image_size)
        return data

    @property
    def unused(self):
        return () if self.heads else OF_THE_HEADS

    def _described(self):
        return super()._described() + ("" if self.heads else " without heads")

    def check_settings(self, training, data, origin):
        super().check_settings(training, data, origin)
        self.loss_terms(training)
        for name in ("cache", "cached_variants"):
            if not self.heads and (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"Expected no `{name}` without heads: a cache is of the outputs "
                    "that students with heads learn from. "
                    f"Received: {name}={value!r} with heads=False"
                )
        if self.cache is None:
            return
        kept = origin.run.data_settings()
        for name in (*CHOOSING, "validation"):
            expected, received = (getattr(each, name) for each in (kept, data))
            if expected != received:
                raise ValueError(
                    f"Expected the images of `cache`, '{self.cache}', with "
                    f"{name}={expected}. Received: {name}={received}"
                )
        check_choice(data, training.seed, origin.cache.seed, self.cache)

    def check_images(self, images, origin):
        super().check_images(images, origin)
        if self.heads and self.views not in (None, origin.run.views):
            raise ValueError(
                "Expected no `views`: heads learn from the views of the teacher's "
                f"heads, {origin.run.views}; `--no-heads` takes others. "
                f"Received: views={self.views!r}"
            )
        if self.heads:
            check_same_views(origin)
        for each in () if self.weak_teacher else origin.all:
            check_better_than_chance(each)

    def job(self, training, images, origin):
        from keras_hsakd.heads import strip_heads
        from keras_hsakd.runs import networks
        from keras_hsakd.teachers import TeacherCache
        from keras_hsakd.trainers import Distiller

        (student,) = networks.create(
            training, images, origin.run.views, with_heads=self.heads
        )
        if origin.cache is not None:
            teacher = TeacherCache(origin.cache.path)
            teacher.check_data(images.train)
        elif self.heads:
            teacher = [teaching_network(each) for each in origin.all]
        else:
            teacher = [strip_heads(each.network()) for each in origin.all]
        distiller = Distiller(
            teacher,
            student,
            views=origin.run.views if self.heads else self.views,
            sampled_views=self.sampled_views,
            terms=self.loss_terms(training),
        )
        return Job(distiller, student, compiling={"head_metrics": self.head_metrics})


def _paths(runs):
    return ", ".join(f"'{run.path}'" for run in runs)


def check_choice(data: DataSettings, seed: int, seed_of_cache: int, cache: str) -> None:
    """Raises a ValueError where seeds choose other images than those of a cache.

    Args:
        data: Which images.
        seed: Of a training.
        seed_of_cache: Of the cache that it is to learn from.
        cache: Folder of the cache.
    """
    told = ((name, getattr(data, name)) for name in CHOOSING)
    chosen = [f"{name}={value}" for name, value in told if value is not None]
    if chosen and seed != seed_of_cache:
        raise ValueError(
            f"Expected the seed of the cache '{cache}', {seed_of_cache}, by which "
            f"{chosen[0]} chooses images. Received: seed={seed}"
        )


# Fewer images of a class tell nothing.
_IMAGES_OF_A_CLASS = 25


def check_better_than_chance(origin):
    """Raises a ValueError if a teacher has nothing to teach."""
    record, classes = origin.run.record, len(origin.run.class_names)
    monitor, images = record["monitor"], record["images"]
    accuracy = (record[origin.checkpoint] or {}).get(monitor)
    if accuracy is None or images["test"] < _IMAGES_OF_A_CLASS * classes:
        return
    hits = round(accuracy * images["test"])  # an accuracy is rounded to float32
    if hits * classes <= images["test"]:
        raise ValueError(
            f"Expected `{origin.argument}` to be of a teacher that is better than "
            f"chance, {1 / classes:.2%} of {classes} classes, or `weak_teacher`. "
            f"Received: '{origin.run.path}', with {monitor} {accuracy:.2%} on "
            f"{images['test']:,} {images['measured_on']}"
        )


def check_same_views(origin: Origin) -> None:
    """Raises a ValueError unless the heads of all teachers learned the same views."""
    views = {each.run.views for each in origin.all}
    if len(views) > 1:
        raise ValueError(
            "Expected teachers whose heads learned the same views. "
            f"Received: {sorted(views)}"
        )


def teaching_network(origin: Origin) -> "keras.Model":
    """Loads a network that can teach others, with heads."""
    from keras_hsakd.heads import head_names

    teacher = origin.network()
    try:
        head_names(teacher)
    except ValueError:
        raise ValueError(
            "Expected `teacher` to be the run of a network with auxiliary heads, "
            "by `keras-hsakd teacher` or `distill`; `--no-heads` distils from any. "
            f"Received: '{origin.run.path}', a {origin.run.describe()}"
        ) from None
    return teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutual(_WithHeads):
    """Trains networks that learn from labels and from each other (online HSSAKD).

    There is no teacher; the folder keeps the network of `--model`, which is `net_1`
    among the logged quantities.

    Attributes:
        peers: Other networks that it learns with. Defaults to one of the same kind.
        temperature: Temperature at which the networks learn from each other.
    """

    name = "mutual"

    peers: tuple[str, ...] | None = None
    temperature: float = 3.0

    def job(self, training, images, origin):
        from keras_hsakd.runs import networks
        from keras_hsakd.terms import KL, CrossEntropy
        from keras_hsakd.trainers import MutualDistiller

        peers = (training.model,) if self.peers is None else tuple(self.peers)
        all_networks = networks.create(training, images, self.views, peers)
        terms = [_of_labels(training), CrossEntropy(on="heads")]
        terms += [KL(self.temperature, on=on) for on in ("logits", "heads")]
        distiller = MutualDistiller(
            all_networks,
            views=self.views,
            sampled_views=self.sampled_views,
            terms=terms,
        )
        return Job(
            distiller,
            all_networks[0],
            monitor="val_net_1_accuracy",
            compiling={"head_metrics": self.head_metrics},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Kind):
    """Trains a linear classifier on a trained network's frozen features.

    It measures how well the features carry over to other images.

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 4.4, and
    the authors' `eval_rep.py`.

    Attributes:
        backbone: Run folder of the trained network.
        checkpoint: Checkpoint of that network: of the last epoch, or of the epoch with
            the best val_accuracy.
    """

    name = "linear"
    starts_from = "backbone"
    fixed = ("image_size", "unlabeled")
    unused = (
        *("weights", "preprocessing", *OF_THE_HEADS, "freeze_backbone"),
        "synchronize_batch_norm",
    )

    backbone: str
    checkpoint: Checkpoint = "last"

    def data_settings(self, data, origin):
        from keras_hsakd.runs.images import check_size

        data = super().data_settings(data, origin)
        check_size(origin.run, data.image_size)
        size = origin.run.record["images"]["image_size"]
        return dataclasses.replace(data, image_size=size)

    def check_images(self, images, origin):
        """Takes any classes."""

    def job(self, training, images, origin):
        from keras_hsakd.heads import strip_heads
        from keras_hsakd.runs import networks, sources
        from keras_hsakd.trainers import BaselineTrainer

        model = origin.run.record["training"]["model"]
        if model != sources.absolute(training).model:
            raise ValueError(
                f"Expected `backbone` to be a run of {training.model}. "
                f"Received: '{origin.run.path}', a {origin.run.describe()}"
            )
        trained = strip_heads(origin.network())
        network = networks.linear_classifier(trained, training, images)
        trainer = BaselineTrainer(network, [_of_labels(training)])
        return Job(trainer, network)


KINDS = {kind.name: kind for kind in (Teacher, Baseline, Distill, Mutual, Linear)}
