"""What others do to a process: signals, and pipes that nobody reads any more."""

import contextlib
import os
import signal
import sys
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


def _end(number, last_words):
    os.write(2, f"{last_words}\n".encode())  # whoever holds sys.stderr
    os._exit(128 + number)


class KeptInterrupt:
    """A context in which no Ctrl-C is lost.

    The `KeyboardInterrupt` may be swallowed by a library, or come out of C++ as an
    error of another kind, which leaves the context as the `KeyboardInterrupt` it was.

    Args:
        last_words: What is written on standard error, when a Ctrl-C while a module is
            imported ends the process at once, with exit code 130: there an exception
            would be lost most easily, and nothing is left to do. Defaults to `None`:
            it is raised there, too.

    Attributes:
        received: Whether there was one.

    Example:
    >>> with KeptInterrupt() as interrupt:
    ...     interrupt.received
    False
    """

    def __init__(self, last_words: str | None = None):
        self.received = False
        self._last_words = last_words

    def __enter__(self) -> "KeptInterrupt":
        """Begins to listen; only the main thread receives signals."""
        self._handling = handled(signal.SIGINT, self._receive)
        self._handling.__enter__()
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        """Gives the signal back."""
        self._handling.__exit__(None, None, None)
        if self.received and isinstance(exception, Exception):
            raise KeyboardInterrupt from exception

    def _receive(self, number, frame):
        self.received = True
        if self._last_words is not None and _is_importing(frame):
            _end(number, self._last_words)
        raise KeyboardInterrupt


def _is_importing(frame):
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def closed_pipes_ignored() -> Iterator[None]:
    """Lets a process go on, within the context, when nobody reads what it prints.

    As of `keras-hsakd teacher ... | head`: what is printed after that is lost.

    Example:
    >>> with closed_pipes_ignored():
    ...     print("read, or not")
    read, or not
    """
    output, errors = _Pipe(sys.stdout), _Pipe(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()


class _Pipe:
    """A stream that loses what is written to it after its reader has gone."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self):
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self):
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self._stream, name)
