"""Script entry: ``python akd/tune.py SPACE ...`` and ``ray submit CLUSTER akd/tune.py -- SPACE ...``."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # as a script, this file's folder would shadow other packages
    from akd.cli import main

    sys.exit(main(["search", *sys.argv[1:]]))
