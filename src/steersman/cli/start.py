"""How a verb that somebody waits for starts quickly."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Imports torch and transformers without the garbage collector.

    They make some 370,000 objects that stay until the end. The collector would look through them again and again while
    they appear, and at each full collection afterwards. Where they are loaded already, nothing is done.
    """
    if "transformers.modeling_utils" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
