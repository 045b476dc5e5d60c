"""What is installed, on what machine, and what files hold: `python -m vinvl.info [STORE | CHECKPOINT | RUN …]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vinvl.run.door import CPU_BUILD, Parser, run_command
from vinvl.run.errors import UserError, say
from vinvl.run.files import json_object
from vinvl.run.folders import CHECKPOINTS, config_directory, data_root
from vinvl.run.machine import cores

PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "hydra-core", "h5py", "numpy", "pyarrow")
EXTRAS = {"gradio": "app", "pycocoevalcap": "captions", "wandb": "logging", "hydra-optuna-sweeper": "sweep"}
EXTRAS |= {"hydra-submitit-launcher": "slurm"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error."""
    return run_command(lambda: _run(command_line().parse_args(arguments)))


def command_line() -> Parser:
    """Its options, which completion reads too."""
    parser = Parser(
        prog="python -m vinvl.info",
        description="Versions and devices, for an issue; of files, what they hold: a region store, a checkpoint of a "
        "run, or the folder of a run, of which the newest checkpoint counts.",
    )
    parser.add_argument(
        "places", nargs="*", metavar="PLACE", help="store (or folder of shards), checkpoint, run folder"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    told = [of_place(Path(place).expanduser()) for place in options.places] or [rows_of(machine())]
    for number, lines in enumerate(told):
        say(*([""] if number else []), *lines)
    return 0


def rows_of(facts: Iterable[tuple[str, object]]) -> list[str]:
    """(what, fact) as lines."""
    return [f"{name:<20} {value}" for name, value in facts]


def machine() -> Iterator[tuple[str, str]]:
    """(what, fact) of the installation and the machine."""
    from vinvl import __version__

    yield "vinvl", f"{__version__} in {Path(__file__).parent}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    yield from ((name, found) for name in PACKAGES if (found := _version(name)) is not None)
    extras = {extra: name for name, extra in EXTRAS.items() if _version(name) is not None}
    yield "extras", ", ".join(f"{extra} ({name} {_version(name)})" for extra, name in extras.items()) or "none"
    yield "CPU", f"{os.cpu_count()} cores, {cores()} of them for this process"
    yield from devices()
    yield "configurations", config_directory()
    yield "data folder", data_root()


def devices() -> Iterator[tuple[str, str]]:
    """(what, fact) of the GPUs that torch finds; where it cannot be imported, why and what to do."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "GPU", f"torch cannot be imported ({error}): {CPU_BUILD}"
        return
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of torch"
        yield "GPU", f"none ({built})"
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield f"GPU {number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def of_place(path: Path) -> list[str]:
    """Lines about a store, a checkpoint or the folder of a run. Raises UserError if it is none of these."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a region store, a checkpoint or the folder of a run.")
    newest = max(path.glob(f"**/{CHECKPOINTS}/*.ckpt"), key=lambda one: one.stat().st_mtime, default=None)
    if newest is not None:
        return [*of_checkpoint(newest), *of_results(newest.parents[1] / "results.json")]
    if path.is_file() and path.suffix == ".ckpt":
        return of_checkpoint(path)
    from vinvl.regions.__main__ import summary
    from vinvl.regions.store import RegionStore

    return summary(RegionStore(str(path)))


def of_checkpoint(path: Path) -> list[str]:
    """Lines about a checkpoint of a run: its task, its model, how far it is, and what it was trained on."""
    from vinvl.run.checkpoint import OUR_KEY, read_checkpoint

    content = read_checkpoint(path)
    ours, weights = content[OUR_KEY], content.get("state_dict", {})
    data, model = (dict(ours.get("run_config", {}).get(name) or {}) for name in ("data", "model"))
    sizes = dict(model.get("config") or {})
    shown = ("hidden_size", "num_hidden_layers", "num_attention_heads", "img_feature_dim")
    facts = {
        "checkpoint": path,
        "task": str(ours.get("task_class")).rpartition(".")[2],
        "epoch, update": f"{content.get('epoch')}, {content.get('global_step')}",
        "numbers in weights": f"{sum(one.numel() for one in weights.values()):,}",
        "model": ", ".join(f"{name} {sizes[name]}" for name in shown if name in sizes) or "not said",
        "started from": model.get("init") or "random weights",
        "trained on": f"split '{data.get('train_split')}', regions {data.get('regions')}",
        "features": json.dumps(ours.get("features"), ensure_ascii=False),
        "written with": f"Lightning {content.get('pytorch-lightning_version')}",
    }
    return rows_of(facts.items())


def of_results(path: Path) -> list[str]:
    """Lines about the results of a run, none where it has none."""
    found = json_object(path) if path.is_file() else {}
    named = {name: found[name] for name in ("split", "headline", "scores", "validation") if found.get(name)}
    return rows_of((f"  {name}", json.dumps(value, ensure_ascii=False)) for name, value in named.items())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
