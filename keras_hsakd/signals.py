"""Signals, for as long as somebody listens."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(number: signal.Signals, handler: Callable) -> Iterator[None]:
    """Has a function called on a signal, within the context.

    Only the main thread receives signals. One that the process ignores, as a command
    that a script has started with `&` does Ctrl-C, stays ignored.

    Args:
        number: The signal.
        handler: Function of the number and the frame, see `signal.signal`.

    Example:
    >>> with handled(signal.SIGUSR1, lambda number, frame: print("heard")):
    ...     signal.raise_signal(signal.SIGUSR1)
    heard
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
