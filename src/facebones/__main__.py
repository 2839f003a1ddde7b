"""`python -m facebones` is the command line."""

import sys

from facebones.cli.main import main

sys.exit(main())
