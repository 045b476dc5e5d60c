"""Where a file of the published folders lies below the root that somebody has downloaded them to."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError

# Spellings of a task's folder, by download page and issue tracker; GQA's pickles lay in a folder beside its questions.
FOLDERS = {
    "gqa": ("gqa", "GQA", "GQA/0.4", "gqa/0.4", "GQA/questions1.2", "gqa/questions1.2"),
    "vqa": ("vqa", "VQA", "vqa/cache", "vqa/tsv"),
}


def published_file(task: str, names: str, *, _root_: DictConfig) -> str:
    """`${vinvl.published:TASK,NAME|OTHER NAME}`: the first of these files or folders that there is.

    They may lie in `published.root` itself where that is the task's folder, in ROOT/TASK or in ROOT/datasets/TASK, and
    names may have patterns. Where there is none, the path where the first should be, which its reader will miss.

    Raises:
        UserError: no root is given.
    """
    root: Any = OmegaConf.select(_root_, "published.root")
    if root is None:
        raise UserError(
            f"published.root must be given: pass published.root=FOLDER, the one that holds {task} as downloaded."
        )
    folders = folders_of(Path(str(root)).expanduser(), task)
    found = [
        path
        for name in names.split("|")
        for folder in folders
        for path in (sorted(folder.glob(name)) if "*" in name else [folder / name])
        if path.exists()
    ]
    return str(found[0] if found else folders[0] / names.split("|")[0])


def folders_of(root: Path, task: str) -> list[Path]:
    """Where a task's files may lie: folders that exist, or the one where they should be."""
    spellings = FOLDERS.get(task, (task,))
    found = [base / name for base in (root, root / "datasets") for name in spellings]
    if root.name in spellings or f"{root.parent.name}/{root.name}" in spellings:
        found = [root, *(folder for folder in root.parent.iterdir() if folder.is_dir() and folder != root), *found]
        found += [child for child in root.iterdir() if child.is_dir()]
    return [folder for folder in found if folder.is_dir()] or [root / task]
