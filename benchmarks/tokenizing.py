"""Tokenizing ahead: made-up questions a second on one core and on all, and the seconds to open what is there already.

python benchmarks/tokenizing.py [--texts 500000]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from pretraining_feed import WORDS, make_tokenizer

from vinvl.data.table import Column
from vinvl.data.text import cached_tokens, encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500_000)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(WORDS), (options.texts, 9))
    counts = generator.integers(5, 10, options.texts)
    texts = Column.of(
        " ".join(WORDS[word] for word in row[:count])
        for row, count in zip(chosen.tolist(), counts.tolist(), strict=True)
    )
    tokenizer = make_tokenizer()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start = time.perf_counter()
    encode_texts(tokenizer, texts)
    print(f"one core, in memory       {options.texts / (time.perf_counter() - start):>12,.0f} texts/s")
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        cached_tokens(tokenizer, texts, Path(name))
        print(f"{os.cpu_count()} cores, into the cache {options.texts / (time.perf_counter() - start):>12,.0f} texts/s")
        start = time.perf_counter()
        cached_tokens(tokenizer, texts, Path(name))
        print(f"from the cache            {time.perf_counter() - start:>12.2f} s in all")


if __name__ == "__main__":
    main()
