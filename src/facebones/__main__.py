"""`python -m facebones` is the command line."""

import sys

from facebones.cli import main

sys.exit(main())
