"""The page: a place to drop an image file, and the answers below it."""

import os
import socket
import tempfile
import threading
from collections.abc import Sequence

import tensorflow as tf

from keras_hsakd.data.decoding import why
from keras_hsakd.optional import optional_module
from keras_hsakd.tryout.answers import Answering
from keras_hsakd.tryout.drawing import STYLE, drawn, refused
from keras_hsakd.tryout.opening import open_networks

# Of a file that is looked at, and of one that Gradio keeps reading, in megabytes: its
# own refusal says "Error" and nothing else.
MAX_SIZE = 20
_MAX_UPLOAD = 100


def serve(
    path: str | os.PathLike,
    checkpoint: str = "last",
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
) -> None:
    """Serves a page to try a network on images of your own, until it is interrupted.

    It shows the likeliest classes and the time that they took; of a run also where the
    network looks, what its heads say of each view, and its teacher's answer, if the
    teacher's run is there.

    Args:
        path: Run folder, or what `keras-hsakd export` wrote.
        checkpoint: `"last"` or `"best"`, of a run. Defaults to `"last"`.
        host: Address that the page is bound to. Defaults to `"127.0.0.1"`, which no
            other machine reaches; with another one, whoever reaches it can use it.
        port: Port. Defaults to `None`: the first free one of 7860 to 7959.
        browser: Whether to open a browser. Defaults to `True`.

    Raises:
        FileNotFoundError: If `path` is neither, or a run without a finished epoch.
        ImportError: If Gradio, or the runtime of the artefact, is not installed.
        OSError: If `host` is no address of this machine, or the port is taken.
        ValueError: If what is there is damaged.

    Example:
    >>> serve("runs/student")  # doctest: +SKIP
    Answering on http://127.0.0.1:7860/ (Ctrl-C ends it)
    """
    _check_host(host)
    with tempfile.TemporaryDirectory(prefix="keras-hsakd-try-") as folder:
        # Gradio reads them when it is imported.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        gradio = optional_module("gradio", "a page", "'keras_hsakd[try]'")
        page = _page(gradio, open_networks(path, checkpoint))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                inbrowser=browser,
                css=STYLE,
                max_file_size=f"{_MAX_UPLOAD}mb",
                share=False,
                enable_monitoring=False,
                footer_links=[],
                mcp_server=False,
                prevent_thread_lock=True,
                quiet=True,
                run_history=False,
                show_error=True,
                ssr_mode=False,
            )
            print(f"Answering on {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        except OSError as error:
            raise OSError(
                "Expected a free `port` on a `host` of this machine. "
                f"Received: host={host!r}, port={port}: {error}"
            ) from error
        finally:
            page.close(verbose=False)


def _check_host(host):
    """Raises an OSError unless one can bind to an address, which Gradio tries long."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), 0, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise OSError(
            f"Expected `--host` to be an address of this machine. Received: {host!r}: "
            f"{error}"
        ) from error


def _page(gradio, networks: Sequence[Answering]):
    """Returns the page, as `gradio.Blocks`."""

    def answer(file):
        try:
            with open(file, "rb") as opened:
                content = opened.read(MAX_SIZE * 10**6 + 1)
        finally:
            os.remove(file)  # what was dropped is kept nowhere
        return None, answered(networks, content)

    with gradio.Blocks(title="keras-hsakd", analytics_enabled=False) as page:
        file = gradio.File(label=f"Drop an image, at most {MAX_SIZE} MB", height=140)
        answers = gradio.HTML(apply_default_css=False)
        # Emptied, it takes the next one at once.
        file.upload(answer, file, [file, answers], api_visibility="private")
    return page


def answered(networks: Sequence[Answering], content: bytes) -> str:
    """Returns as HTML what networks say of an image file, or that it is none.

    Args:
        networks: Functions from the content of a file to an `Answer`.
        content: The content.

    Example:
    >>> answered([lambda content: tf.io.decode_image(content)], b"no image")[:41]
    '<div class="refused" role="alert">Unknown'
    """
    if len(content) > MAX_SIZE * 10**6:
        return refused(
            f"Expected a file of at most {MAX_SIZE} MB. Received: a larger one"
        )
    try:
        return drawn([answer(content) for answer in networks])
    except tf.errors.InvalidArgumentError as error:
        return refused(why(error))
