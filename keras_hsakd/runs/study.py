"""Experiments as they are run: one, one with several seeds, many in a study."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from keras_hsakd import digests, distribution
from keras_hsakd.runs.caching import cache_teacher, check_one_worker, is_cached
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.kinds import KINDS, check_choice
from keras_hsakd.runs.recipes import CACHE, Recipe, Step
from keras_hsakd.runs.settings import (
    CacheSettings,
    DataSettings,
    ExecutionSettings,
    TrainingSettings,
)
from keras_hsakd.runs.training import check_goes_on, claimed, finished_run, train
from keras_hsakd.teachers import check_new


@dataclasses.dataclass(frozen=True)
class Placed:
    """A step of an experiment, with the folders that it has to do with.

    Attributes:
        step: The step.
        folder: Its run folder, or that of a cache.
        needs: Folders by the options of the kind that get them.
        recipe: Name of the experiment whose result it is; `None` of an earlier step.
    """

    step: Step
    folder: str
    needs: Mapping[str, str]
    recipe: str | None = None

    def arguments(self) -> tuple:
        """Returns the first arguments of `train`, or of `cache_teacher`."""
        step = self.step
        options = {**self.needs, **step.options}
        if step.kind == CACHE:
            settings = CacheSettings(**options, seed=step.training.seed)
            return self.folder, settings, step.data
        return KINDS[step.kind](**options), self.folder, step.training, step.data


@dataclasses.dataclass(frozen=True)
class Line:
    """An experiment of a study.

    Attributes:
        recipe: A row of the table, scaled or not.
        name: Of the folder with its results.
        seeds: Seeds of its trainings.
        one_teacher: Whether the earlier steps have the first seed alone.
        given: Run folders that stand for steps, as in `run_recipe`.
    """

    recipe: Recipe
    name: str
    seeds: Sequence[int] = (0,)
    one_teacher: bool = False
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_recipe(
    recipe: Recipe,
    output: str | os.PathLike,
    given: Mapping[str, str | os.PathLike] | None = None,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> dict[str, Run]:
    """Runs an experiment, each training in a run folder of its own.

    A training that is finished already is not run again: one with the same settings,
    which started from the same weights.

    Args:
        recipe: A row of the table, scaled or not.
        output: Folder to write.
        given: Run folders that stand for steps of the recipe, for example
            `{"teacher": "runs/teacher"}`. Defaults to `None`, all steps are run.
        overwrite: Whether to replace runs in `output` with other settings, or that
            were not finished. Defaults to `False`.
        verbose: As in `keras.Model.fit`. Defaults to 1, a progress bar.
        execution: As in `train`, of each training. Defaults to `ExecutionSettings()`.

    Returns:
        The runs by the names of the steps; a cache of a teacher's outputs is none.

    Raises:
        FileExistsError: If a folder of `output` holds something else; says what.
        ValueError: If a setting does not suit, or `given` names no step.

    Example:
    >>> from keras_hsakd.runs import recipes
    >>> recipe = recipes.get("cifar100/wrn_16_2/baseline")
    >>> recipe = recipe.scaled(data="digits", epochs=1, limit=40)
    >>> list(run_recipe(recipe, "baseline", verbose=0))  # doctest: +SKIP
    ['baseline']
    """
    placed = _place(recipe, lambda step: os.path.join(output, step.name), given)
    runs = _run_all(placed, overwrite, verbose, execution)
    return {e.step.name: runs[e.folder] for e in placed if e.folder in runs}


def run_seeds(
    recipe: Recipe,
    output: str | os.PathLike,
    seeds: Sequence[int],
    one_teacher: bool = False,
    given: Mapping[str, str | os.PathLike] | None = None,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> dict[int, Run]:
    """Runs an experiment once for each seed, in folders `seed_0`, `seed_1`, ...

    Args:
        recipe: A row of the table, scaled or not.
        output: Folder to write.
        seeds: The seeds.
        one_teacher: Whether all steps but the last are trained once, with the first
            seed. Defaults to `False`, once for each seed.
        given: As in `run_recipe`.
        overwrite: As in `run_recipe`.
        verbose: As in `run_recipe`.
        execution: As in `run_recipe`.

    Returns:
        The runs of the last step by their seeds.

    Raises:
        FileExistsError: As in `run_recipe`.
        ValueError: As in `run_recipe`.

    Example:
    >>> from keras_hsakd.runs import recipes
    >>> recipe = recipes.get("cifar100/wrn_40_2-wrn_16_2")
    >>> runs = run_seeds(recipe, "pair", [0, 1, 2])  # doctest: +SKIP
    >>> runs[2].path  # doctest: +SKIP
    '/home/me/pair/seed_2/student'
    """

    def folder(step):
        return os.path.join(output, _of_seed(step), step.name)

    line = Line(recipe, recipe.name, seeds, one_teacher, given or {})
    placed = _place_line(line, folder)
    return _of_line(line, placed, _run_all(placed, overwrite, verbose, execution))


def run_study(
    lines: Sequence[Line],
    output: str | os.PathLike,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> dict[str, dict[int, Run]]:
    """Runs what is missing of many experiments, and goes on with what was stopped.

    The result of each is in `output/<name>/seed_<seed>/<step>`; the earlier steps,
    teachers for the most part, are in `output/shared`, where experiments that need the
    same one find it.

    Args:
        lines: The experiments.
        output: Folder to write.
        verbose: As in `run_recipe`.
        execution: As in `run_recipe`; trainings go on as with `resume`.

    Returns:
        The runs of the last step of each, by names and by seeds.

    Raises:
        FileExistsError: As in `run_recipe`.
        ValueError: If a setting does not suit; what can be seen before is said before
            anything is trained.

    Example:
    >>> from keras_hsakd.runs import recipes
    >>> names = ["cifar100/wrn_16_2/baseline", "cifar100/wrn_40_2-wrn_16_2"]
    >>> lines = [Line(recipes.get(name), name, seeds=(0, 1, 2)) for name in names]
    >>> runs = run_study(lines, "study")  # doctest: +SKIP
    """
    placed = [_place_line(line, _folders(line, output)) for line in lines]
    runs = _run_all(
        [each for of_line in placed for each in of_line],
        overwrite=False,
        verbose=verbose,
        execution=dataclasses.replace(execution, resume=True),
    )
    found = {line.name: {} for line in lines}
    for line, of_line in zip(lines, placed, strict=True):
        found[line.name] |= _of_line(line, of_line, runs)
    return found


def _folders(line, output):
    """Returns the function from a step of a study to its run folder."""

    def folder(step):
        if step.name == line.recipe.steps[-1].name:
            return os.path.join(output, line.name, _of_seed(step), step.name)
        return os.path.join(output, "shared", _name_of(step, line))

    return folder


def _of_seed(step):
    return f"seed_{step.training.seed}"


def _name_of(step, line):
    """Returns a name for a step's folder that other steps do not have.

    It is that of what the step was told, the steps that it needs included, and not of
    what it was not told: a setting that comes with a later version changes nothing.
    """

    def known(name):
        steps = {step.name: step for step in line.recipe.steps}
        return line.given.get(name) or told(steps[name])

    def told(step):
        defaults = vars(TrainingSettings(model=""))
        training = vars(step.training).items()
        data = step.data if isinstance(step.data, Mapping) else vars(step.data)
        return {
            "kind": step.kind,
            "options": dict(step.options),
            "training": {k: v for k, v in training if v != defaults.get(k)},
            "data": {k: v for k, v in data.items() if v is not None},
            "needs": {k: known(name) for k, name in step.needs.items()},
        }

    digest = digests.of_json(told(step))[:8]
    return f"{step.name}-{step.training.model}-{_of_seed(step)}-{digest}"


def _place(
    recipe: Recipe,
    folder: Callable[[Step], str],
    given: Mapping[str, str | os.PathLike] | None = None,
) -> list[Placed]:
    """Returns the steps of an experiment that are to be run, in order."""
    folders = {step.name: folder(step) for step in recipe.steps}
    folders |= {name: os.fspath(path) for name, path in (given or {}).items()}
    return [
        Placed(
            step,
            folders[step.name],
            {option: folders[name] for option, name in step.needs.items()},
            recipe.name if step is recipe.steps[-1] else None,
        )
        for step in recipe.without(*(given or ())).steps
    ]


def _place_line(line, folder):
    """Returns the steps of all seeds of an experiment, each once."""
    *earlier, last = (line.recipe.scaled(seed=line.seeds[0])).steps
    placed = {}
    for seed in line.seeds:
        recipe = line.recipe.scaled(seed=seed)
        if line.one_teacher:
            steps = (*earlier, recipe.steps[-1])
            recipe = dataclasses.replace(recipe, steps=steps)
        for each in _place(recipe, folder, line.given):
            placed[each.folder] = each
    return list(placed.values())


def _of_line(line, placed, runs):
    """Returns the runs of the last step of an experiment by their seeds."""
    name = line.recipe.steps[-1].name
    return {
        each.step.training.seed: runs[each.folder]
        for each in placed
        if each.step.name == name
    }


def _run_all(
    placed: Iterable[Placed],
    overwrite: bool,
    verbose: int,
    execution: ExecutionSettings,
) -> dict[str, Run]:
    """Runs steps in order, each folder once, and returns the runs by their folders."""
    strategy = distribution.make_strategy(execution.strategy)  # before anything else
    placed = _by_folder(placed)
    _check_choices(placed)
    # Before anything is trained. What is there of a step whose own steps are to be
    # trained anew cannot be kept.
    to_train = set()
    for folder, each in placed.items():
        anew = to_train & set(each.needs.values())
        if each.step.kind == CACHE:
            if anew or not is_cached(*each.arguments()):
                to_train.add(folder)
                check_new(folder)
                check_one_worker(strategy, folder)
        elif anew or not finished_run(*each.arguments()):
            to_train.add(folder)
            replaces = overwrite or (execution.resume and not anew)
            with claimed(folder, replaces, strategy):
                pass
            if not anew:
                check_goes_on(*each.arguments(), execution.resume)
    runs = {}
    for folder, each in placed.items():
        training = each.step.training
        if each.step.kind == CACHE:
            if not is_cached(*each.arguments()):
                print(f"{folder}: outputs of {training.model}", flush=True)
                os.makedirs(os.path.dirname(folder), exist_ok=True)
                cache_teacher(*each.arguments(), verbose=verbose)
            continue
        found = finished_run(*each.arguments())
        if found:
            print(f"{folder}: is there, a {found.describe()}")
        else:
            print(f"{folder}: {training.model}, {training.epochs} epochs", flush=True)
            os.makedirs(os.path.dirname(folder), exist_ok=True)
        runs[folder] = found or train(
            *each.arguments(), execution, overwrite, verbose, each.recipe
        )
    return runs


def _check_choices(placed):
    """Raises a ValueError where a student has other images than its cache would have.

    Of caches that are to be written; of others `check_goes_on` does.
    """
    settings = {}
    for folder, each in placed.items():
        data = each.step.data
        if not isinstance(data, DataSettings):
            known = (settings.get(f) or _data_of(f) for f in each.needs.values())
            before = next(filter(None, known), None)
            data = before and dataclasses.replace(before, **data)
        settings[folder] = data
        cache = placed.get(each.needs.get("cache"))
        if cache is not None and data is not None:
            seeds = (x.step.training.seed for x in (each, cache))
            check_choice(data, *seeds, cache.folder)


def _data_of(folder):
    """Returns the data settings of a run that is there, or None."""
    try:
        return Run.open(folder).data_settings()
    except (FileNotFoundError, ValueError):
        return None


def _by_folder(placed):
    found = {}
    for each in placed:
        if found.setdefault(each.folder, each) != each:
            raise ValueError(
                "Expected trainings in a folder each. "
                f"Received: two of other settings for '{each.folder}'"
            )
    return found
