"""What lies where the store is to go, and what that means for the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinvl.data.store import RegionStore
from vinvl.data.store.id_lookup import IdLookup
from vinvl.data.store.journal import begin_journal, discard_journal, journal_folder, read_journal, read_journal_settings
from vinvl.data.store.spool import RowShapes
from vinvl.errors import UserError
from vinvl.extraction.provenance import differences, settings_of

SHOWN = 3


class Target:
    """The store to write, with what was done for it before.

    Args:
        path: of the store.
        settings: all that its features follow from, in plain types.
        shapes: of its rows.
        overwrite: whether what is there with other settings, or is complete, is to be replaced.

    Attributes:
        earlier: the finished store at `path` if it was made with these settings, to which pictures may be added.

    Raises:
        UserError: there is something else at `path`, or work that was begun with other settings, and `overwrite` is
            False; or a folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], shapes: RowShapes, *, overwrite: bool) -> None:
        self.path, self.settings, self._shapes = path, settings, shapes
        if path.is_dir():
            raise UserError(f"output={path} is a folder: name a file to write, such as features.h5.")
        self._stale = self._begun_otherwise(overwrite)
        self.earlier = None if overwrite or not path.exists() else self._same_store()

    def _begun_otherwise(self, overwrite: bool) -> bool:
        begun = read_journal_settings(self.path)
        if begun is None or begun == self.settings:
            return False
        if overwrite:
            return True
        raise UserError(
            f"{journal_folder(self.path)} holds work that was begun with other settings ({self._differing(begun)}): "
            "give the same, or another output, or overwrite=true to begin anew."
        )

    def _same_store(self) -> RegionStore:
        try:
            store = RegionStore(self.path)
            made = settings_of(store.provenance)
        except UserError as error:
            raise UserError(
                f"output={self.path} exists and is no region store that could be added to ({error}) Give another name, "
                "or overwrite=true to replace it."
            ) from None
        if made == self.settings:
            return store
        reason = self._differing(made) if made else "it does not say how its features were made"
        raise UserError(
            f"output={self.path} exists with other settings ({reason}): give another name, or overwrite=true to "
            "replace it."
        )

    def _differing(self, before: Mapping[str, Any]) -> str:
        found = differences(before, self.settings)
        if len(found) == 1 and "exif_orientation" in before and found[0].startswith("exif_orientation"):
            return f"{found[0]}; reading.exif_orientation={before['exif_orientation']} goes on as it was begun"
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return "; ".join(found[:SHOWN]) + more

    def done(self) -> DoneImages:
        """The images that are in the store or its journal."""
        lookups = [IdLookup(self.earlier.encoded_ids)] if self.earlier is not None else []
        if not self._stale:
            lookups += [IdLookup(part.image_ids) for part in read_journal(self.path, self._shapes)]
        return DoneImages(lookups)

    def begin(self) -> None:
        """Makes the journal; work that was begun with other settings is removed."""
        if self._stale:
            discard_journal(self.path)
        begin_journal(self.path, self.settings)

    def discard(self) -> None:
        """Removes the journal."""
        discard_journal(self.path)


class DoneImages:
    """Whether an image id is among those done; called for every picture."""

    def __init__(self, lookups: list[IdLookup]) -> None:
        self._lookups = lookups

    def __call__(self, image_id: str) -> bool:
        return any(lookup.find(image_id) >= 0 for lookup in self._lookups)
