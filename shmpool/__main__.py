"""`python -m shmpool`: the `shmpool` command."""

import sys

from shmpool.cli import main

sys.exit(main())
