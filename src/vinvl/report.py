"""Pages to look at: `python -m vinvl.report run=RUN` of a run, `python -m vinvl.report store=features.h5` of a store.

`images=DIR` draws the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say


def report(config: DictConfig) -> Path:
    """Composed configuration → the page at `config.output`."""
    from vinvl.pictures import PictureNames

    if type(config.count) is not int or config.count < 1:
        raise UserError(f"count={config.count!r} must be a whole number from 1.")
    if config.run is None and config.store is None:
        raise UserError("Give run=RUN, the folder of a run, or store=FILE, a store of regions, to make a page of.")
    chosen = config.id.rule is not None or config.id.pattern is not None or config.id.prefix
    options: dict[str, Any] = {
        "images": None if config.images is None else str(config.images),
        "names": PictureNames(config.id.rule or "stem", config.id.pattern, config.id.prefix) if chosen else None,
        "ids": None if config.ids is None else [str(one) for one in config.ids],
        **{name: config[name] for name in ("count", "seed", "max_pixels")},
    }
    output = None if config.output is None else Path(str(config.output)).expanduser()
    given: Any = OmegaConf.to_container(config.store) if OmegaConf.is_list(config.store) else config.store
    stores = None if given is None else [str(one) for one in (given if isinstance(given, list) else [given])]
    return of_run(config, output, stores, options) if config.run is not None else of_store(output, stores, options)


def of_store(output: Path | None, stores: list[str] | None, options: dict[str, Any]) -> Path:
    """Makes the page of a store."""
    from vinvl.pages.pages import report_regions

    assert stores
    output = output or Path(stores[0]).with_suffix(".html")
    shown, found = report_regions(stores, output, **options)
    say(*([found] if found else []), f"{output}: {shown:,} pictures")
    return output


def of_run(config: DictConfig, output: Path | None, stores: list[str] | None, options: dict[str, Any]) -> Path:
    """Makes the page of a run."""
    from vinvl.pages.run_folder import FinishedRun
    from vinvl.pages.run_page import report_run

    split = None if config.split is None else str(config.split)
    run = FinishedRun.of(str(config.run), Path(str(config.paths.runs_dir)).expanduser(), split)
    output = output or run.folder / "report.html"
    shown, told = report_run(run, output, stores=stores, **options)
    say(f"Run: {run.folder}", *told, f"{output}: {shown:,} examples")
    return output


main = door(report, "report")


if __name__ == "__main__":
    enter(main, "report", sys.argv[1:])
