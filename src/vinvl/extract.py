"""Pictures → region features: `python -m vinvl.extract images=DIR weights=FILE output=features.h5`."""

import sys

from vinvl.extraction.run import extract
from vinvl.run.door import door, enter

main = door(extract, "extract")


if __name__ == "__main__":
    enter(main, "extract", sys.argv[1:])
