"""Two processes against one: VQA training steps at base size, gradients averaged over gloo (CPU) or NCCL (GPUs).

    python benchmarks/ddp_step.py [--batch-size 8] [--steps 3] [--processes 2] [--threads 1]

Each process has its own batches of COCO-like lengths, as `vqa_step.py` makes them, and one thread. Efficiency is
samples a second of all processes over those of one process times their number.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vqa_step import NUM_ANSWERS, batches_of

from vinvl.models import VinVLConfig, VinVLForAnswering, answer_loss
from vinvl.task import parameter_groups


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def work(rank: int, processes: int, port: int, options: argparse.Namespace, result: Path) -> None:
    """Training steps of one process; rank 0 writes the seconds that a step took."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.device_count() >= processes
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    plain: Any = VinVLForAnswering(VinVLConfig(num_labels=NUM_ANSWERS, num_hidden_layers=options.layers))
    model = DistributedDataParallel(plain.to(device), device_ids=[rank] if cuda else None)
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.05), lr=5e-5, fused=True)
    batches = list(batches_of((options.steps + 1) * processes, options.batch_size))[rank::processes]
    started = 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # the first step makes buffers
            dist.barrier()
            started = time.perf_counter()
        moved = batch.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = model(**moved.inputs()).logits
        assert moved.labels is not None
        answer_loss(logits, moved.labels, "bce").backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    dist.barrier()
    if rank == 0:
        result.write_text(str((time.perf_counter() - started) / options.steps))
    dist.destroy_process_group()


def seconds_a_step(processes: int, options: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds"
        mp.spawn(work, (processes, free_port(), options, result), nprocs=processes)
        return float(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, help="of each process")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    alone, together = (seconds_a_step(count, options) for count in (1, options.processes))
    for count, seconds in ((1, alone), (options.processes, together)):
        print(f"{count} processes: {seconds:.3f} s a step, {count * options.batch_size / seconds:.2f} samples/s")
    print(f"efficiency: {alone / together:.2f}")


if __name__ == "__main__":
    main()
