"""Train a detector: `python -m vinvl.train_detector [overrides]`. Without overrides: on the demo world.

A run of `vinvl.train` whose task is the detector's; it also writes detector.pth.
"""

import sys

from vinvl.run.door import door, enter
from vinvl.train import train

main = door(train, "train_detector")

if __name__ == "__main__":
    enter(main, "train_detector", sys.argv[1:])
