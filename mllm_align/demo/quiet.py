"""A terminal for somebody who watches: without what libraries say to their developers.

Nothing heavy is imported here, so that it can be called before the libraries are, in a new process too.
"""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Keeps warnings and start-up lines of the libraries off the terminal."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module="torch|transformers|peft|bitsandbytes")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
