"""``python -m cas``: the same as the ``cas`` command."""

import sys

from cas.cli import main

if __name__ == "__main__":
    sys.exit(main())
