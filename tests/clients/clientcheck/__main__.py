"""Entry point of `tests/clients/run`."""

import sys

from .cli import main

sys.exit(main())
