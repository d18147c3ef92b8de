"""The end of a process that has spoken to an object store.

Rule: called last, when everything is closed.  obstore's own threads let go of what they were given
a moment after it was answered; one that does so while the interpreter goes away ends the process by
a signal, whatever it had to say.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends the process with `code`, once what it has said is out."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
