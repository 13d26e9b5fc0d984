"""``python -m modnet``, which torchrun can start as well."""

import sys

from modnet.cli.main import main

sys.exit(main())
