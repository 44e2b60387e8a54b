"""`python -m reca_fast` is the command `reca-fast`."""

import sys

from reca_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
