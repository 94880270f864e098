"""Signals and closed pipes, in processes that import no Keras."""

import os
import signal
import subprocess
import sys

import pytest

from keras_hsakd.signals import KeptInterrupt, closed_pipes_ignored

# As the command line, which imports Keras when a command needs it.
BEGIN = "import sys; sys.argv[0] = 'keras-hsakd'\n"


def process(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


def test_an_interrupt_while_a_module_is_imported_ends_at_once(tmp_path):
    (tmp_path / "swallows.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n"
        "    pass\n"
    )
    started = process(
        "from keras_hsakd.signals import KeptInterrupt\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "with KeptInterrupt('interrupted'):\n"
        "    import swallows\n"
        "print('lost')\n"
    )
    assert started.communicate(timeout=60) == ("", "interrupted\n")
    assert started.returncode == 130


INTERRUPTED = """
import signal
class Finder:
    def find_spec(name, *others):
        if name == "argparse":
            signal.raise_signal(signal.SIGINT)
assert "argparse" not in sys.modules
sys.meta_path.insert(0, Finder)
from keras_hsakd import cli
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(cli.main(["--help"]))
"""


def test_an_interrupt_before_anything_else_is_imported_is_one_line():
    started = process(INTERRUPTED)
    assert started.communicate(timeout=60) == ("", "keras-hsakd: interrupted\n")
    assert started.returncode == 130


def test_an_interrupt_that_a_script_ignores_stays_ignored():
    started = process(
        "import signal\n"
        "from keras_hsakd import cli, zoo\n"
        "def run(*options): signal.raise_signal(signal.SIGINT); print('run')\n"
        "zoo.table = run\n"
        "sys.exit(cli.main(['models']))\n",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert started.communicate(timeout=60) == ("run\nNone\n", "")
    assert started.returncode == 0


def test_an_interrupt_that_became_another_error_is_one_again():
    with pytest.raises(KeyboardInterrupt), KeptInterrupt() as interrupt:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            assert interrupt.received
            raise RuntimeError("as C++ does") from error
    with pytest.raises(RuntimeError), KeptInterrupt():
        raise RuntimeError("another")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_ends_nothing(stream):
    started = process(
        "from keras_hsakd.signals import closed_pipes_ignored\n"
        f"file = sys.{stream}\n"
        "with closed_pipes_ignored():\n"
        f"    for number in range(20_000): print(number, file=sys.{stream})\n"
        f"assert sys.{stream} is file\n"
    )
    first, other = started.stdout, started.stderr
    if stream == "stderr":
        first, other = other, first
    assert first.readline() == "0\n"
    first.close()
    assert other.read() == ""
    assert started.wait(timeout=60) == 0


def test_what_is_printed_comes_out(capsys):
    with closed_pipes_ignored():
        print("read", end="")
        assert not sys.stdout.isatty()
    assert capsys.readouterr().out == "read"
