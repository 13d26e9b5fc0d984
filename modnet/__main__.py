"""``python -m modnet``, which torchrun can start as well."""

import sys

from modnet.cli.main import main

if __name__ == "__main__":  # processes that modnet starts import this file
    sys.exit(main())
