"""Runs: what the command line is made of, from settings to run folders."""

from typing import TYPE_CHECKING

from keras_hsakd import lazy

if TYPE_CHECKING:
    from keras_hsakd.runs.caching import cache_teacher, check_cache
    from keras_hsakd.runs.comparison import compare
    from keras_hsakd.runs.evaluation import evaluate, export_run, export_torch
    from keras_hsakd.runs.folder import Run
    from keras_hsakd.runs.kinds import (
        KINDS,
        Baseline,
        Distill,
        Kind,
        Linear,
        Mutual,
        Teacher,
    )
    from keras_hsakd.runs.planning import plan
    from keras_hsakd.runs.quality import measure_quality
    from keras_hsakd.runs.settings import (
        CacheSettings,
        DataSettings,
        ExecutionSettings,
        TrainingSettings,
    )
    from keras_hsakd.runs.study import Line, run_recipe, run_seeds, run_study
    from keras_hsakd.runs.training import import_keras, import_torch, train

__all__ = [
    "KINDS",
    "Baseline",
    "CacheSettings",
    "DataSettings",
    "Distill",
    "ExecutionSettings",
    "Kind",
    "Line",
    "Linear",
    "Mutual",
    "Run",
    "Teacher",
    "TrainingSettings",
    "cache_teacher",
    "check_cache",
    "compare",
    "evaluate",
    "export_run",
    "export_torch",
    "import_keras",
    "import_torch",
    "measure_quality",
    "plan",
    "run_recipe",
    "run_seeds",
    "run_study",
    "train",
]

# The command line reads its words without Keras.
__getattr__, __dir__ = lazy.names_of(
    __name__,
    {
        "caching": ("cache_teacher", "check_cache"),
        "evaluation": ("evaluate", "export_run", "export_torch"),
        "folder": ("Run",),
        "kinds": (
            *("KINDS", "Baseline", "Distill", "Kind", "Linear", "Mutual", "Teacher"),
        ),
        "planning": ("plan",),
        "quality": ("measure_quality",),
        "comparison": ("compare",),
        "settings": (
            *("CacheSettings", "DataSettings", "ExecutionSettings", "TrainingSettings"),
        ),
        "study": ("Line", "run_recipe", "run_seeds", "run_study"),
        "training": ("import_keras", "import_torch", "train"),
    },
)
