"""Experiments: one row each, with the authors' settings and published figures.

The paper's, the methods that people would use instead, the same of small size, on
photographs, and MLPerf Tiny's network.

References: [Yang et al., 2021](https://arxiv.org/abs/2107.13715),
[Yang et al., 2022](https://doi.org/10.1109/TNNLS.2022.3186807), and the authors'
implementation, whose README has the published figures; of the others,
[Tian et al., 2020](https://arxiv.org/abs/1910.10699) for the weights of plain
distillation, [Zhao et al., 2022](https://arxiv.org/abs/2203.08679) for DKD, and
[Sun et al., 2024](https://arxiv.org/abs/2403.01427) for standardized logits.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from keras_hsakd.runs.kinds import KINDS
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import ImageSize, is_square
from keras_hsakd.suggestions import did_you_mean

# Kind of a step that trains nothing: it writes a teacher's outputs.
CACHE = "cache"


@dataclasses.dataclass(frozen=True)
class Step:
    """One training of an experiment, or a cache of a teacher's outputs.

    Attributes:
        name: Name of its folder, below the experiment's.
        kind: A name of `keras_hsakd.runs.KINDS`, or `CACHE`.
        training: Which network, and how; of a cache, how the teacher was trained.
        data: Which images, or what differs from the teacher's.
        needs: Names of earlier steps by the option of the kind that gets their folder.
        options: Further options of the kind; of a cache, of `CacheSettings`.
    """

    name: str
    kind: str
    training: TrainingSettings
    data: DataSettings | Mapping[str, object] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An experiment of the paper, or one beside it.

    Attributes:
        name: As given to `get`.
        description: What is measured, in a few words.
        steps: Its trainings in order; the last one's accuracy is the result.
        published: The published test accuracy in percent, of the best epoch; empty
            where the paper has it in a picture alone.
    """

    name: str
    description: str
    steps: tuple[Step, ...]
    published: str = ""

    def scaled(
        self,
        epochs: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
        data_dir: str | None = None,
        image_size: ImageSize | None = None,
        limit: int | None = None,
        target_data: str | None = None,
        given: Iterable[str] = (),
    ) -> "Recipe":
        """Returns the experiment on other images, or smaller.

        Args:
            epochs: Epochs of the last training; those of the others change in
                proportion. Milestones are fractions of them, so they move along.
            seed: Seed of each training.
            batch_size: Batch size of each training.
            data: Named data set, `tfds:NAME` or folder, in place of that of all
                trainings but the linear one.
            data_dir: Folder of tensorflow-datasets.
            image_size: Int, height and width of the images, or (height, width). Where
                they differ, `"padded_rotations"` stand for rotations.
            limit: Most training images, and test images.
            target_data: Named data set or folder, of the linear training.
            given: Names of steps whose folders are there already. Those after them
                have their images, but for what differs; their networks' image size,
                which is not to differ.

        Returns:
            A `Recipe`.

        Raises:
            ValueError: If there is `target_data`, and no linear training.

        Example:
        >>> recipe = get("cifar100/wrn_40_2-wrn_16_2/frozen").scaled(epochs=24)
        >>> [(step.name, step.training.epochs) for step in recipe.steps]
        [('backbone', 24), ('teacher', 10), ('student', 24)]
        """
        from keras_hsakd.runs.images import without_foreign

        if target_data is not None and all(s.kind != "linear" for s in self.steps):
            raise ValueError(
                "Expected `target_data` for an experiment with a linear classifier. "
                f"Received: target_data='{target_data}' for {self.name}"
            )
        last = self.steps[-1].training
        scaled = dataclasses.replace(last, **_given({"epochs": epochs}))
        ratio = scaled.epochs / last.epochs
        trainings = {"seed": seed, "batch_size": batch_size}
        turns = image_size is None or is_square(image_size)
        steps = []
        for step in self.steps:
            source = target_data if step.kind == "linear" else data
            changes = {
                "data_dir": data_dir,
                "image_size": image_size,
                "limit": limit,
            }
            images, options = step.data, step.options
            kind = KINDS.get(step.kind)  # a cache has none
            defaults = kind.default_options() if kind else {}
            views = {**defaults, **options}.get("views")
            if not turns and views == "rotations":
                options = {**options, "views": "padded_rotations"}
            if isinstance(images, DataSettings):
                if source is not None:
                    images = dataclasses.replace(images, data=source)
                    images = without_foreign(images)
                images = dataclasses.replace(images, **_given(changes))
            elif given and set(given) & set(step.needs.values()):
                images = {**images, **_given({"data": source, **changes})}
            steps.append(
                dataclasses.replace(
                    step,
                    data=images,
                    options=options,
                    training=dataclasses.replace(
                        step.training,
                        epochs=max(1, round(ratio * step.training.epochs)),
                        **_given(trainings),
                    ),
                )
            )
        return dataclasses.replace(self, steps=tuple(steps))

    def without(self, *names: str) -> "Recipe":
        """Returns the experiment with some steps left out, and those before them.

        Args:
            *names: Names of steps whose run folders are there already.

        Returns:
            A `Recipe` of the other steps that its last one needs.

        Raises:
            ValueError: If there is no such step, or it is the last.

        Example:
        >>> recipe = get("cifar100/wrn_40_2-wrn_16_2/frozen").without("teacher")
        >>> [step.name for step in recipe.steps]
        ['student']
        """
        possible = [step.name for step in self.steps[:-1]]
        for name in names:
            if name not in possible:
                raise ValueError(
                    f"Expected one of the earlier steps of {self.name}, {possible}. "
                    f"Received: '{name}'"
                )
        needed = {self.steps[-1].name}
        for step in reversed(self.steps):
            if step.name in needed:
                needed |= set(step.needs.values()) - set(names)
        steps = tuple(step for step in self.steps if step.name in needed)
        return dataclasses.replace(self, steps=steps)


def get(name: str) -> Recipe:
    """Returns an experiment by its name.

    Args:
        name: One of `names()`, for example `"cifar100/wrn_40_2-wrn_16_2"`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: If the name is unknown.

    Example:
    >>> get("cifar100/wrn_40_2-wrn_16_2").published
    '78.67 ± 0.20'
    """
    if name not in _RECIPES:
        raise ValueError(
            "Expected the name of an experiment, see `keras-hsakd run --list`. "
            f"Received: '{name}'{did_you_mean(name, _RECIPES)}"
        )
    return _RECIPES[name]


def names() -> list[str]:
    """Returns the names of all experiments.

    Example:
    >>> from keras_hsakd.runs import recipes
    >>> recipes.names()[0]
    'cifar100/wrn_40_2-wrn_16_2'
    """
    return list(_RECIPES)


def table() -> str:
    """Returns all experiments, with their settings, as a Markdown table.

    Example:
    >>> print(table().splitlines()[0])
    | name | | network | schedule | published |
    """
    lines = [
        "| name | | network | schedule | published |",
        "| --- | --- | --- | --- | --- |",
    ]
    for recipe in _RECIPES.values():
        steps = [step for step in recipe.steps if step.kind != CACHE]
        networks = " → ".join(
            step.training.model for step in steps if step.kind != "linear"
        )
        schedule = "; ".join(_schedule(step.training) for step in steps)
        lines.append(
            f"| {recipe.name} | {recipe.description} | {networks} | {schedule} "
            f"| {recipe.published} |"
        )
    return "\n".join(lines)


def _schedule(training):
    drops = "/".join(str(round(m * training.epochs)) for m in training.milestones)
    return f"{training.epochs} epochs, {training.learning_rate} ÷10 at {drops}"


def _given(values):
    return {name: value for name, value in values.items() if value is not None}


# Settings. Those of `TrainingSettings` itself are the authors' for CIFAR.
_CIFAR100 = DataSettings(data="cifar100")
_IMAGENET = DataSettings(
    data="imagenet",
    image_size=224,
    crop="resized",
    center_crop=224 / 256,
    corrupt="unchecked",
)
# CIFAR-10 as image files, 500 to train on of each class; `--data` says where they are.
_PHOTOGRAPHS = DataSettings(
    data="photographs", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
# All of CIFAR-10 as image files, of which nobody need look for damaged ones.
_CIFAR10 = dataclasses.replace(_PHOTOGRAPHS, data="cifar10_jpeg", corrupt="unchecked")
# Of trainings with so many epochs that they cost what 30 of HSAKD do.
_AS_MUCH = "with the multiply-adds of the method"
_ON_HUNDRED_EPOCHS = {"epochs": 100, "milestones": (0.3, 0.6, 0.9)}
_SMALL_LEARNING_RATE = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")


def _on_cifar(model, **changes):
    learning_rate = 0.01 if model in _SMALL_LEARNING_RATE else 0.05
    return TrainingSettings(model=model, learning_rate=learning_rate, **changes)


def _on_imagenet(model, **changes):
    return TrainingSettings(
        model=model,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-4,
        nesterov=False,
        **_ON_HUNDRED_EPOCHS,
        **changes,
    )


# Steps.


def _joint_teacher(training, data):
    return (Step("teacher", "teacher", training, data),)


def _frozen_teacher(training, data):
    heads = dataclasses.replace(training, **_ON_HUNDRED_EPOCHS)
    return (
        Step("backbone", "baseline", training, data),
        Step("teacher", "teacher", heads, data, needs={"backbone": "backbone"}),
    )


def _cached(teacher, variants):
    options = {"variants": variants}
    return Step(
        "cache", CACHE, teacher.training, needs={"teacher": "teacher"}, options=options
    )


def _student(training, data=(), source="teacher", **options):
    needs = {source: source}
    return Step("student", "distill", training, dict(data), needs, options)


def _linear(data):
    training = TrainingSettings(
        model="mobilenet_v2", learning_rate=0.1, weight_decay=0.0, **_ON_HUNDRED_EPOCHS
    )
    return Step("linear", "linear", training, data, needs={"backbone": "student"})


# Published figures. (teacher, student): with the frozen-backbone teacher, and with the
# jointly trained one
_PAIRS = {
    ("wrn_40_2", "wrn_16_2"): ("77.20 ± 0.17", "78.67 ± 0.20"),
    ("wrn_40_2", "wrn_40_1"): ("77.00 ± 0.21", "78.12 ± 0.25"),
    ("resnet56", "resnet20"): ("72.58 ± 0.33", "73.73 ± 0.10"),
    ("resnet32x4", "resnet8x4"): ("77.26 ± 0.14", "77.69 ± 0.05"),
    ("vgg13_bn", "mobilenet_v2"): ("77.45 ± 0.21", "79.27 ± 0.12"),
    ("resnet50", "mobilenet_v2"): ("78.79 ± 0.11", "79.43 ± 0.24"),
    ("wrn_40_2", "shufflenet_v1"): ("78.51 ± 0.20", "80.11 ± 0.32"),
    ("resnet32x4", "shufflenet_v2"): ("79.93 ± 0.11", "80.86 ± 0.15"),
}
_BASELINES = {
    "wrn_40_2": "76.45",
    "resnet56": "73.44",
    "resnet32x4": "79.63",
    "vgg13_bn": "74.64",
    "resnet50": "76.34",
    "wrn_16_2": "73.57 ± 0.23",
    "wrn_40_1": "71.95 ± 0.59",
    "resnet20": "69.62 ± 0.26",
    "resnet8x4": "72.95 ± 0.24",
    "mobilenet_v2": "73.51 ± 0.26",
    "shufflenet_v1": "71.74 ± 0.35",
    "shufflenet_v2": "72.96 ± 0.33",
}
_ONLINE = {
    "wrn_40_2": "82.58 ± 0.21",
    "wrn_40_1": "76.67 ± 0.41",
    "resnet56": "78.16 ± 0.56",
    "resnet32x4": "84.91 ± 0.19",
    "vgg13_bn": "80.44 ± 0.05",
    "mobilenet_v2": "78.85 ± 0.13",
    "shufflenet_v1": "78.34 ± 0.03",
    "shufflenet_v2": "79.98 ± 0.12",
}
_FEW_SHOT = {25: "68.50 ± 0.24", 50: "72.18 ± 0.41", 75: "73.26 ± 0.11"}
# name: the terms of the loss beside the cross-entropy
_LOGITS, _HEADS = "KL(3.0)", "KL(3.0, on='heads')"
_ABLATIONS = {
    "terms-ce": (),
    "terms-ce-main": (_LOGITS,),
    "terms-ce-heads": (_HEADS,),
    **{
        f"heads-{'-'.join(numbers)}": (
            _LOGITS,
            *(f"KL(3.0, on='aux_{number}')" for number in numbers),
        )
        for numbers in ("1", "2", "3", "12", "13", "23")
    },
}
# Distillation otherwise. name: what it is, options of `distill`
_PLAIN = {"heads": False}
_STANDARDIZED = (
    "CrossEntropy()",
    "Standardized(2.0)",
    "Standardized(2.0, on='heads')",
)
_OTHERWISE = {
    "kd": ("plain distillation of logits", {"method": "kd"}),
    "dkd": ("decoupled distillation of logits", {"method": "dkd"}),
    "standardized": (
        "distillation of standardized logits",
        {"method": "standardized"},
    ),
    "fitnet": ("hints", {"method": "fitnet"}),
    "attention": ("attention transfer", {"method": "attention"}),
    "similarity": ("similarities of images", {"method": "similarity"}),
    "relational": ("distances and angles of images", {"method": "relational"}),
    "heads-dkd": ("student by heads, decoupled", {"method": "dkd", "heads": True}),
    "heads-standardized": ("student by heads, standardized", {"terms": _STANDARDIZED}),
}
# Those of the CRD benchmark, for all pairs.
_OF_BENCHMARK = ("kd", "fitnet", "attention", "similarity", "relational")


def _published(*figures, **others):
    return dict(zip(_OF_BENCHMARK, figures, strict=True)) | others


# (pair): published figures of what is not the method, where the networks are the same
_PUBLISHED_OTHERWISE = {
    ("wrn_40_2", "wrn_16_2"): _published(
        "74.92", "73.58", "74.08", "73.83", "73.35", dkd="76.23"
    ),
    ("wrn_40_2", "wrn_40_1"): _published("73.54", "72.24", "72.77", "72.43", "72.22"),
    ("resnet56", "resnet20"): _published("70.66", "69.21", "70.55", "69.67", "69.61"),
    ("resnet32x4", "resnet8x4"): _published(
        "73.33", "73.50", "73.44", "72.94", "71.90", dkd="76.32"
    ),
}
# name: images, published
_TARGETS = {
    "stl10": (DataSettings(data="stl10", crop="resized", center_crop=1.0), "74.66"),
    "tiny_imagenet": (
        DataSettings(data="tiny-imagenet-200", crop="resized", center_crop=1.0),
        "42.57",
    ),
}


def _rows():
    for rows in (
        *(_of_the_method, _of_parts, _otherwise),
        *(_on_other_images, _on_all_of_imagenet, _photographs, _mlperf_tiny),
    ):
        yield from rows()


def _of_both_teachers(name, teacher, student, images, joint, frozen):
    """A student of a jointly trained teacher, and of one with a frozen backbone."""
    for suffix, steps, description, published in (
        ("", _joint_teacher, "jointly trained teacher", joint),
        ("/frozen", _frozen_teacher, "teacher with a frozen backbone", frozen),
    ):
        yield Recipe(
            f"{name}{suffix}",
            f"student of a {description}",
            (*steps(teacher, images), _student(student)),
            published,
        )


def _of_the_method():
    """The paper's table on CIFAR-100: the method, and labels alone."""
    for (teacher, student), (frozen, joint) in _PAIRS.items():
        yield from _of_both_teachers(
            f"cifar100/{teacher}-{student}",
            _on_cifar(teacher),
            _on_cifar(student),
            _CIFAR100,
            joint,
            frozen,
        )
    for model, published in _BASELINES.items():
        yield Recipe(
            f"cifar100/{model}/baseline",
            "labels alone",
            (Step("baseline", "baseline", _on_cifar(model), _CIFAR100),),
            published,
        )
    for model, published in _ONLINE.items():
        yield Recipe(
            f"cifar100/{model}/online",
            "two networks that teach each other",
            (Step("online", "mutual", _on_cifar(model), _CIFAR100),),
            published,
        )


def _of_parts():
    """A part of the images, and of the terms of the loss."""
    for percent, published in _FEW_SHOT.items():
        yield Recipe(
            f"cifar100/resnet56-resnet20/labels-{percent}",
            f"student on {percent} % of the images",
            (
                *_joint_teacher(_on_cifar("resnet56"), _CIFAR100),
                _student(_on_cifar("resnet20"), {"label_fraction": percent / 100}),
            ),
            published,
        )
    for name, terms in _ABLATIONS.items():
        yield Recipe(
            f"cifar100/wrn_40_2-wrn_16_2/{name}",
            f"student of labels and {' and '.join(terms) or 'nothing else'}",
            (
                *_joint_teacher(_on_cifar("wrn_40_2"), _CIFAR100),
                _student(_on_cifar("wrn_16_2"), terms=("CrossEntropy()", *terms)),
            ),
        )


def _otherwise():
    """Other methods, by teachers as they were published with."""
    for teacher, student in _PAIRS:
        figures = _PUBLISHED_OTHERWISE.get((teacher, student), {})
        for name, (description, options) in _OTHERWISE.items():
            if name not in _OF_BENCHMARK and "dkd" not in figures:
                continue
            training = _on_cifar(teacher)
            teachers = _joint_teacher(training, _CIFAR100)
            # Published with teachers that were trained on labels alone.
            if not (options.get("heads") or "terms" in options):
                teachers = (Step("teacher", "baseline", training, _CIFAR100),)
            # Published so for this student.
            if options.get("method") == "dkd" and student == "wrn_16_2":
                options = {**options, "method_settings": {"beta": 6.0}}
            yield Recipe(
                f"cifar100/{teacher}-{student}/{name}",
                description,
                (*teachers, _student(_on_cifar(student), **options)),
                figures.get(name, ""),
            )


def _on_other_images():
    """Classifiers on a student's features."""
    for name, (data, published) in _TARGETS.items():
        yield Recipe(
            f"{name}/linear",
            "linear classifier on a frozen student's features",
            (
                *_joint_teacher(_on_cifar("vgg13_bn"), _CIFAR100),
                _student(_on_cifar("mobilenet_v2")),
                _linear(data),
            ),
            published,
        )


def _on_all_of_imagenet():
    """The paper's table on ImageNet, and what its student is the backbone of."""
    teacher, student = "resnet34_imagenet", "resnet18_imagenet"
    both = list(
        _of_both_teachers(
            f"imagenet/{teacher}-{student}",
            _on_imagenet(teacher),
            _on_imagenet(student),
            _IMAGENET,
            joint="72.39",
            frozen="72.16",
        )
    )
    yield from both
    yield Recipe(
        "voc/detection",
        "that student as a backbone; the detector is examples/detection.py's (published"
        " with another detector, Faster R-CNN: 78.45 mAP)",
        both[0].steps,
    )
    yield Recipe(
        f"imagenet/{student}/baseline",
        "labels alone",
        (Step("baseline", "baseline", _on_imagenet(student), _IMAGENET),),
        "69.75",
    )
    yield Recipe(
        f"imagenet/{student}/online",
        "two networks that teach each other",
        (Step("online", "mutual", _on_imagenet(student), _IMAGENET),),
        "71.49",
    )


def _photographs():
    """The comparison on few photographs: one teacher, and a student many ways."""

    def on_photographs(model, **changes):
        return _on_cifar(model, **{"epochs": 30, **changes})

    # About as many steps as with all labels.
    few, long = {"label_fraction": 0.1}, {"epochs": 300}
    for name, description, images, changes in (
        ("baseline", "labels alone", {}, {}),
        ("baseline-long", f"labels alone, {_AS_MUCH}", {}, {"epochs": 573}),
        ("few-labels", "a tenth of the labels alone", few, long),
    ):
        training = on_photographs("resnet8", **changes)
        images = dataclasses.replace(_PHOTOGRAPHS, **images)
        yield Recipe(
            f"photographs/resnet8/{name}",
            description,
            (Step("baseline", "baseline", training, images),),
        )
    (teacher,) = _joint_teacher(on_photographs("resnet20"), _PHOTOGRAPHS)

    (light,) = _joint_teacher(on_photographs("resnet20", head="light"), _PHOTOGRAPHS)

    def student(suffix, description, options=(), data=(), variants=None, **changes):
        training = on_photographs("resnet8", **changes)
        taught = light if training.head == "light" else teacher
        cache = () if variants is None else (_cached(taught, variants),)
        source, *_ = (*cache, taught)
        return Recipe(
            f"photographs/resnet20-resnet8{suffix}",
            description,
            (taught, *cache, _student(training, data, source.name, **dict(options))),
        )

    yield student("", "student of a jointly trained teacher")
    for name, (description, options) in _OTHERWISE.items():
        yield student(f"/{name}", description, options)
    _, kd = _OTHERWISE["kd"]
    yield student("/kd-long", f"plain distillation, {_AS_MUCH}", kd, epochs=274)
    # What the heads add, and what their views do.
    yield student("/no-heads", "student of the same weights without heads", _PLAIN)
    with_views = {**_PLAIN, "views": "rotations"}
    yield student("/no-heads-views", "the same, on four views", with_views)
    # Ways to pay less.
    two_views = {"sampled_views": 2}
    yield student("/sampled-views-2", "student that sees two of four views", two_views)
    yield student("/light-heads", "light heads in both networks", head="light")
    yield student("/cached-4", "student of four cached variants", variants=4)
    lean = {"options": two_views, "head": "light"}
    yield student("/lean", "all three at once", variants=4, **lean)
    what = f"the same, of eight variants, {_AS_MUCH}"
    yield student("/lean-long", what, variants=8, epochs=130, **lean)
    yield student("/few-labels", "student of a tenth of the labels", data=few, **long)
    rest = {**few, "unlabeled": "rest"}
    yield student("/unlabeled", "the same, with the other images", data=rest)


def _mlperf_tiny():
    """MLPerf Tiny's network on CIFAR-10; its teacher has light heads on plain training.

    Settings are those of CRD's benchmark, in a quarter of its epochs.
    """

    def on_cifar10(model, **changes):
        return _on_cifar(model, **{"epochs": 60, **changes})

    model, as_much = (
        "mlperf_resnet8",
        "with the multiply-adds of the lean student and its cache",
    )
    for name, description, changes in (
        ("baseline", "labels alone", {}),
        ("baseline-long", f"labels alone, {as_much}", {"epochs": 156}),
    ):
        training = on_cifar10(model, **changes)
        yield Recipe(
            f"mlperf_tiny/{model}/{name}",
            description,
            (Step("baseline", "baseline", training, _CIFAR10),),
        )
    backbone, teacher = _frozen_teacher(on_cifar10("resnet20"), _CIFAR10)
    heads = dataclasses.replace(teacher.training, epochs=15, head="light")
    teacher = dataclasses.replace(teacher, training=heads, options={"sampled_views": 2})

    def student(suffix, description, options, variants=None, **changes):
        cache = () if variants is None else (_cached(teacher, variants),)
        source, *_ = (*cache, teacher)
        training = on_cifar10(model, **changes)
        return Recipe(
            f"mlperf_tiny/resnet20-{model}{suffix}",
            description,
            (backbone, teacher, *cache, _student(training, (), source.name, **options)),
        )

    for name in ("kd", "dkd"):
        yield student(f"/{name}", *_OTHERWISE[name])
    description, kd = _OTHERWISE["kd"]
    yield student("/kd-long", f"{description}, {as_much}", kd, epochs=75)
    lean = "student with light heads that sees two of four views, of eight variants"
    yield student("/lean", lean, {"sampled_views": 2}, variants=8, head="light")
    yield student("", "student with light heads", {}, head="light")


_RECIPES = {recipe.name: recipe for recipe in _rows()}
