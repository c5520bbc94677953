"""`python -m raincheck`."""

import sys

from raincheck.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
