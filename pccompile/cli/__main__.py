"""`python -m pccompile.cli`."""

import sys

from pccompile.cli import main

sys.exit(main())
