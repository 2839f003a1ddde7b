"""`python -m facebones` and `facebones` are the command line."""

import sys


def start() -> int:
    """Import the command line and run it; Ctrl-C while it is imported is one line, too."""
    try:
        from facebones.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("facebones: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
