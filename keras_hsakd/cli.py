"""The command `keras-hsakd`: signals, pipes and errors; `commands` are what it does."""

import sys
import traceback
from collections.abc import Sequence

from keras_hsakd import signals

_INTERRUPTED = "keras-hsakd: interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words of the command line. Defaults to those of the process.

    Returns:
        The exit status: 0, 1 after an error, or 130 when interrupted. A training that
        SIGTERM ended with a snapshot raises `keras_hsakd.Preempted`, which exits with
        75.
    """
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        with (
            signals.closed_pipes_ignored(),
            signals.KeptInterrupt(last_words=_INTERRUPTED),
        ):
            from keras_hsakd import commands  # where Ctrl-C is heard already

            commands.call(arguments)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        message = commands.in_one_line(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        # What is raised on purpose says what was expected.
        hint = "" if debug or "Expected" in message else " (--debug shows where)"
        print(f"keras-hsakd: {message}{hint}", file=sys.stderr)
        return 1
    return 0
