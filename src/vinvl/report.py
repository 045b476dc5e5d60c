"""A page of pictures with their regions: `python -m vinvl.report store=features.h5 images=DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say


def report(config: DictConfig) -> Path:
    """Composed configuration → the page at `config.output`."""
    from vinvl.pages.pages import report_regions
    from vinvl.pictures import PictureNames

    store = OmegaConf.to_container(config.store) if OmegaConf.is_list(config.store) else str(config.store)
    if type(config.count) is not int or config.count < 1:
        raise UserError(f"count={config.count!r} must be a whole number from 1.")
    first = Path(str(store[0] if isinstance(store, list) else store))
    output = Path(str(config.output)).expanduser() if config.output is not None else first.with_suffix(".html")
    chosen = config.id.rule is not None or config.id.pattern is not None or config.id.prefix
    names = PictureNames(config.id.rule or "stem", config.id.pattern, config.id.prefix) if chosen else None
    shown, found = report_regions(
        store,  # type: ignore[arg-type]
        output,
        images=None if config.images is None else str(config.images),
        names=names,
        ids=None if config.ids is None else [str(one) for one in config.ids],
        count=config.count,
        seed=config.seed,
        max_pixels=config.max_pixels,
    )
    say(*([found] if found else []), f"{output}: {shown:,} pictures")
    return output


main = door(report, "report")


if __name__ == "__main__":
    enter(main, "report", sys.argv[1:])
