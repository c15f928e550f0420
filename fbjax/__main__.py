"""``python -m fbjax``: the same as the command ``fbjax``."""

import sys

from fbjax.cli.main import main

sys.exit(main())
