"""From a teacher's run folder to a cache of its outputs."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from keras_hsakd import distribution
from keras_hsakd.runs.images import changed, check_same, load
from keras_hsakd.runs.kinds import Distill, Origin, check_same_views, teaching_network
from keras_hsakd.runs.settings import CacheSettings, DataSettings, TrainingSettings
from keras_hsakd.teachers import Deviation, TeacherCache, check_new


def cache_teacher(
    output: str | os.PathLike,
    settings: CacheSettings,
    data: Mapping | None = None,
    verbose: int = 1,
) -> TeacherCache:
    """Writes the outputs of a run's network on its training images.

    Args:
        output: Folder to write. What lies in `<output>.partial`, of the same settings,
            is gone on with.
        settings: Which outputs.
        data: Data settings that differ from the teacher's. Defaults to `None`, none.
        verbose: 0 for silence. Defaults to 1.

    Returns:
        The cache.

    Raises:
        BlockingIOError: If another process writes there; says which.
        FileExistsError: If `output` is there.
        FileNotFoundError: If there is no such run, or its images are not there.
        OSError: If the disk has too little room.
        ValueError: If a setting does not suit.

    Example:
    >>> settings = CacheSettings(teacher="runs/teacher", variants=8)
    >>> cache = cache_teacher("cache", settings)  # doctest: +SKIP
    """
    check_new(output)
    if settings.teacher is None:
        raise ValueError(
            "Expected `teacher`, the run folder whose outputs are to be kept. "
            "Received: none"
        )
    origin = Distill(teacher=settings.teacher, checkpoint=settings.checkpoint).origin()
    check_same_views(origin)
    data = changed(origin.run, data or {})
    images = load(data, settings.batch_size, settings.seed, _checked(origin.run, data))
    for each in origin.all:
        check_same(each.run, images, each.argument)
    return TeacherCache.write(
        output,
        [teaching_network(each) for each in origin.all],
        images.train,
        settings.variants,
        origin.run.views,
        settings.dtype,
        settings.batch_size,
        origin.kept_in_cache(data),
        verbose,
    )


def _checked(run, data):
    """Returns what a run knows of a folder's training images, if it decoded them."""
    known, record = run.data_settings(), run.record["images"]
    same = (data.data, data.unlabeled) == (known.data, known.unlabeled)
    return record if same and "skipped" in record else None


def check_cache(
    path: str | os.PathLike,
    teacher: str | os.PathLike | Sequence[str] | None = None,
) -> dict[str, Deviation]:
    """Recomputes a sample of the outputs in a cache.

    Args:
        path: The cache.
        teacher: Run folder of the teacher, or of several. Defaults to those which it
            was written of.

    Returns:
        How far they are apart, by the names of the outputs.

    Raises:
        FileNotFoundError: If the cache, the run or its images are not there.
        ValueError: If a file of the cache, or the teacher, is not as it was.
    """
    cache = TeacherCache(path)
    origin = Origin.of_cache(path)
    if teacher is None:
        teacher = tuple(each.run.path for each in origin.all)
    given = Distill(teacher=teacher, checkpoint=origin.checkpoint).origin()
    networks = [teaching_network(each) for each in given.all]
    data = origin.run.data_settings()
    images = load(data, cache.header["batch_size"], cache.seed)
    return cache.check(networks, images.train)


def is_cached(
    folder: str | os.PathLike, settings: CacheSettings, data: Mapping
) -> bool:
    """Returns whether a folder has the cache that `cache_teacher` would write."""
    wanted = {"teacher": settings.teacher, "checkpoint": settings.checkpoint}
    try:
        origin = Distill(**wanted).origin()
        found = Origin.of_cache(folder)
    except (FileNotFoundError, ValueError):
        return False
    images, of_cache = changed(origin.run, data), found.run.data_settings()
    weights = [[each.weights for each in one.all] for one in (origin, found)]
    return (
        weights[0] == weights[1]
        and found.cache.variants == settings.variants
        and found.cache.seed == settings.seed
        and all(getattr(images, name) == getattr(of_cache, name) for name in data)
    )


def check_one_worker(strategy: tf.distribute.Strategy, folder: str) -> None:
    """Raises a ValueError where several workers would write a cache."""
    with strategy.scope():
        workers = distribution.num_workers()
    if workers > 1:
        raise ValueError(
            f"Expected the cache '{folder}' to be there before several workers train; "
            f"`keras-hsakd cache` writes it. Received: none, with {workers} workers"
        )


def with_cache(
    kind: Distill,
    folder: str,
    training: TrainingSettings,
    data: DataSettings | Mapping | None,
    strategy: tf.distribute.Strategy,
    verbose: int = 1,
) -> Distill:
    """Returns a distillation that learns from a cache, and writes it if it is missing.

    Args:
        kind: The distillation, with `cached_variants`.
        folder: The cache.
        training: Which student, and how it is trained.
        data: As in `train`.
        strategy: Strategy of the training.
        verbose: 0 for silence. Defaults to 1.

    Raises:
        ValueError: If a setting of the training does not suit.
    """
    origin = kind.origin()
    kind.check_settings(training, kind.data_settings(data, origin), origin)
    settings = CacheSettings(
        teacher=kind.teacher,
        checkpoint=origin.checkpoint,
        variants=min(kind.cached_variants, training.epochs),
        seed=training.seed,
    )
    changes = kind.changes(data)
    if not is_cached(folder, settings, changes):
        check_one_worker(strategy, folder)
        if verbose:
            print(f"{folder}: outputs of the teacher", flush=True)
        cache_teacher(folder, settings, changes, verbose)
    return dataclasses.replace(kind, cache=folder, cached_variants=None)
