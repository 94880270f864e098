import ast
import os
import pathlib
import subprocess
import sys

import pytest

import keras_hsakd

PACKAGE = pathlib.Path(keras_hsakd.__file__).parent
# Imports go downward only, and never within a group.
GROUPS = [
    {"cli"},
    {"demo"},
    {"runs"},
    {"checkpoints", "export", "data", "callbacks", "snapshots"},
    {"trainers", "models", "optimizers"},
    {"attach", "views"},
    {"heads"},
    {"losses", "layers", "graph"},
    {"ops", "distribution", "files", "suggestions"},
    {"compat"},
]
LEVELS = {part: level for level, group in enumerate(GROUPS) for part in group}


def imported_parts(path):
    """Yields the parts of the package that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "keras_hsakd":
                yield rest.split(".")[0]


def test_imports_go_downward():
    wrong = []
    modules = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    for path in modules:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imported_parts(path):
            if other != part and LEVELS[other] <= LEVELS[part]:
                wrong.append(f"{part} imports {other}")
    assert len(modules) > 15
    assert not wrong


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Keras itself imports scikit-learn and matplotlib where they are installed.
IMPORTS = """
import sys
import keras
before = set(sys.modules)
import keras_hsakd
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not new & {"torch", "tensorflow_datasets", "sklearn", "matplotlib"}, new
"""


@pytest.mark.core
def test_import_warns_of_nothing_and_takes_nothing_optional():
    result = python(IMPORTS)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr


def test_the_core_imports_without_tensorflow():
    pytest.importorskip("jax")
    code = "import sys; sys.modules['tensorflow'] = None; import keras_hsakd"
    result = python(code, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_there():
    for name in keras_hsakd.__all__:
        assert getattr(keras_hsakd, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = keras_hsakd.nothing
