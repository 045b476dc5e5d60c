"""Reading the questions and annotations of a VQA split, and leaving one image out: seconds and memory.

    python benchmarks/records.py [--questions 200000] [--images 40000]

Writes the two official files in a temporary folder and reads them from the page cache in a process of its own, twice.
Seconds are those of its CPU, so that other programs do not count; memory is what it held at most, and before it read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def most_memory() -> int:
    """Megabytes that this process has held at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def read(folder: Path) -> None:
    """One reading, printed as a row."""
    from vinvl.vqa.files import read_official

    imported = most_memory()
    start = time.process_time()
    records = read_official(folder / "questions.json", folder / "annotations.json")
    seconds = time.process_time() - start
    most = most_memory()
    image_ids = records.image_ids
    start = time.process_time()
    kept = records.select(image_ids != image_ids[len(image_ids) // 2])
    selecting = time.process_time() - start
    print(f"{len(records):>10,}{seconds:>8.1f} s{most:>10,} MB{imported:>10,} MB   {selecting:.2f} s → {len(kept):,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what the process of its own is asked for
    options = parser.parse_args()
    if options.read is not None:
        return read(options.read)
    from vqa_feed import write_questions

    print(f"{'questions':>10}{'reading':>10}{'most':>13}{'imports':>13}   leaving one image out")
    with tempfile.TemporaryDirectory() as name:
        write_questions(Path(name), options.questions, options.images)
        for _ in range(2):
            subprocess.run([sys.executable, __file__, "--read", name], check=True)


if __name__ == "__main__":
    main()
