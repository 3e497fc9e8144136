"""``python -m lutra``: the command line."""

import sys

from lutra.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
