"""`python -m reldistill` is the command `reldistill`."""

import sys

from reldistill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
