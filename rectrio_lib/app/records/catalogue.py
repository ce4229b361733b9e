"""The images of a collection in SQL: what is said of them, and the vectors that came after the index was built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import ImageRow, now, writing

FIXED = ("path", "label", "category", "price", "colour", "tags", "created", "width", "height", "uploaded")
FOUND = ("created", "colour")  # found out here where no table says them
EDITABLE = ("label", "category", "price", "tags", "created")
BLOCK = 5000  # rows of one statement
OWN = frozenset(("image_id", *FIXED))
Record = dict[str, Any]


class Catalogue:
    """The rows of one collection in the database.

    Every change takes the next number of a sequence, so that an index, or another process, asks for what came since.

    Args:
        engine: see `database.open_database`.
        collection: its name.
    """

    def __init__(self, engine: Engine, collection: str):
        self.engine, self.collection = engine, collection
        self._mine = ImageRow.collection == collection

    def sync(self, rows: pd.DataFrame, folder: Path | None = None) -> None:
        """Take in the rows of a newly built index: new ones are added, changed ones updated unless people edited them.

        A date or colour that a table said, and says no more, gives way to that of the file.

        Of edited ones the path alone is updated: their file may have moved. Images that are gone from the folder go
        from the database as well, except edited ones: their file may come back with the next build. Uploads stay, and
        removed ones stay removed.

        Args:
            rows: of the index, with `image_id`.
            folder: where their paths start, to find out when the files were made.
        """
        wanted = {record["image_id"]: record for record in _records(rows)}
        with writing(self.engine) as session:
            known = {row.image_id: row for row in session.execute(select(*_SYNCED).where(self._mine))}
            fresh = [record for name, record in wanted.items() if name not in known]
            changed, by_tables = [], "uploaded" not in rows  # else the service built it, and says what was found, too
            for name, record in wanted.items():
                told, before = {key for key in FOUND if record[key]}, known.get(name)
                said = {*before.told.split(",")} if before else set()
                record["told"] = ",".join(sorted(told if by_tables else said))
                if before and not before.uploaded:
                    taken_back = said - told if by_tables else set()
                    if "created" in taken_back:
                        record["created"] = _made(folder, record["path"])
                    news = {k: v for k, v in record.items() if k not in FOUND or k in told | taken_back}
                    news = {key: record[key] for key in ("image_id", "path")} if before.edited else news
                    if any(getattr(before, key) != news[key] for key in _COMPARED if key in news):
                        changed.append(news)
            gone = [
                n for n, row in known.items() if n not in wanted and not (row.uploaded or row.removed or row.edited)
            ]
            start = self._last(session) + 1
            for record in fresh:
                record["created"] = record["created"] or _made(folder, record["path"])
            own = {"collection": self.collection, "sequence": start, "uploaded": False, "removed": False}
            own["edited"] = False
            for block in _blocks(fresh):
                session.execute(insert(ImageRow), [own | record for record in block])
            for block in _blocks(changed):
                session.execute(
                    update(ImageRow), [r | {"collection": self.collection, "sequence": start} for r in block]
                )
            for block in _blocks(gone):
                session.execute(ImageRow.__table__.delete().where(self._mine, ImageRow.image_id.in_(block)))

    def add(self, images: Sequence[ImageRow], save: Callable[[], None] = lambda: None) -> None:
        """Add images, all or none; one that was removed comes back, with what is said of it now.

        Args:
            images: to add.
            save: writes their files, while nobody else writes, so that a removal under way does not delete them.
        """
        with writing(self.engine) as session:
            save()
            sequence = self._last(session)
            for number, image in enumerate(images, 1):
                image.collection, image.sequence = self.collection, sequence + number
                session.merge(image)

    def change(self, image_id: str, values: Record) -> ImageRow | None:
        """Change keys of EDITABLE, and `extra`, which is merged; None deletes. Return the row; None if it is absent."""
        with writing(self.engine) as session:
            row = session.get(ImageRow, (self.collection, image_id))
            if row is None or row.removed:
                return None
            for key in EDITABLE:
                if key in values:
                    empty = {"tags": [], "created": now()}
                    setattr(row, key, empty.get(key) if values[key] is None else values[key])
            extra = row.extra | (values.get("extra") or {})
            row.extra = {key: value for key, value in extra.items() if value is not None}
            row.edited, row.sequence = True, self._last(session) + 1
            return row

    def remove(self, image_id: str) -> ImageRow | None:
        """Mark an image as removed, so that the next build does not bring it back; None if it is not there."""
        with writing(self.engine) as session:
            row = session.get(ImageRow, (self.collection, image_id))
            if row is None or row.removed:
                return None
            row.removed, row.sequence = True, self._last(session) + 1
            return row

    def if_removed(self, image_id: str, delete: Callable[[], None]) -> None:
        """Delete the file of an image while nobody else writes, unless it has come back."""
        with writing(self.engine) as session:
            row = session.get(ImageRow, (self.collection, image_id))
            if row is None or row.removed:
                delete()

    def holds(self, image_id: str) -> bool:
        """Tell whether an image is there, whatever this process knows of it."""
        with Session(self.engine) as session:
            row = session.get(ImageRow, (self.collection, image_id))
            return row is not None and not row.removed

    def set_colours(self, colours: dict[str, str]) -> None:
        """Write the dominant colours of images, of those that have none by now."""
        lacking = select(ImageRow.image_id).where(self._mine, ImageRow.image_id.in_(colours), ImageRow.colour.is_(None))
        with writing(self.engine) as session:
            own = {"collection": self.collection, "sequence": self._last(session) + 1}
            if found := [own | {"image_id": i, "colour": colours[i]} for i in session.scalars(lacking)]:
                session.execute(update(ImageRow), found)

    def set_vectors(self, vectors: dict[str, np.ndarray], encoder_hash: str) -> None:
        """Replace vectors float16 (dim,) that another encoder made."""
        own = {"collection": self.collection, "encoder_hash": encoder_hash}
        with writing(self.engine) as session:
            own["sequence"] = self._last(session) + 1
            session.execute(
                update(ImageRow), [own | {"image_id": i, "vector": v.tobytes()} for i, v in vectors.items()]
            )

    def since(self, sequence: int) -> list[ImageRow]:
        """Return what changed after a number of the sequence, in the order of the changes."""
        wanted = select(ImageRow).where(self._mine, ImageRow.sequence > sequence).order_by(ImageRow.sequence)
        with Session(self.engine) as session:
            return list(session.scalars(wanted))

    def _last(self, session: Session) -> int:
        """Return the number of the last change, 0 if there is none."""
        return session.scalar(select(func.max(ImageRow.sequence)).where(self._mine)) or 0


_COMPARED = ("path", "label", "category", "price", "tags", "width", "height", "extra", "told", *FOUND)
_SYNCED = [getattr(ImageRow, name) for name in ("image_id", "uploaded", "removed", "edited", *_COMPARED)]


def record_of(row: ImageRow) -> Record:
    """Return an image of the database as one row of metadata."""
    fixed = {"image_id": row.image_id, **{name: getattr(row, name) for name in FIXED}}
    return fixed | {name: value for name, value in row.extra.items() if name not in fixed}


def kinds_of(records: Sequence[Record]) -> dict[str, type]:
    """Return what the further columns hold: float, bool, or str, which also stands for a mixture."""
    kinds: dict[str, set[type]] = {}
    for record in records:
        for name, value in record.items():
            if value is not None and name not in OWN:
                kinds.setdefault(name, set()).add(_kind(value))
    return {name: found.pop() if len(found) == 1 else str for name, found in kinds.items()}


def fits(value: Any, kind: type | None) -> bool:
    """Tell whether a value may stand in a column of a kind, see `kinds_of`; text takes any."""
    return value is None or kind is str or _kind(value) is kind


def _kind(value: Any) -> type:
    return bool if isinstance(value, bool) else float if isinstance(value, int | float) else str


def in_kinds(record: Record, kinds: dict[str, type]) -> Record:
    """Return a row whose values are those of its columns' kinds."""
    texts = {n: v for n, v in record.items() if kinds.get(n) is str and v is not None and not isinstance(v, str)}
    return record | {n: f"{v:g}" if _kind(v) is float else str(v) for n, v in texts.items()}


def frame_of(records: Sequence[Record], kinds: dict[str, type]) -> pd.DataFrame:
    """Return rows of metadata as a table, each column of one type; further columns as `kinds` says."""
    columns = list(dict.fromkeys(key for record in records for key in record)) or ["image_id", *FIXED]
    frame = pd.DataFrame([in_kinds(record, kinds) for record in records], columns=columns, dtype=object)
    frame = frame.astype({name: "float64" for name, kind in kinds.items() if kind is float})
    types = {"price": "float64", "width": "Int64", "height": "Int64", "uploaded": bool, "tags": object}
    types |= dict.fromkeys(("image_id", "path", "label", "category", "colour"), object)
    frame = frame.astype(types)
    frame["created"] = pd.to_datetime(frame["created"], utc=True)
    return frame


def _records(rows: pd.DataFrame) -> list[Record]:
    """Return the rows of an index as rows of the table: known columns in their types, others in `extra`."""
    plain = {str(name): _plain(values) for name, values in rows.items() if name != "uploaded"}  # which SQL alone knows
    count, empty = len(rows), [None] * len(rows)
    texts = ("image_id", "label", "category", "colour")
    known = {name: plain.pop(name, empty) for name in (*texts, "path", "tags", "created")}
    known |= {name: _numbers(plain.pop(name, empty)) for name in ("width", "height", "price")}
    dates = plain.pop("date", empty)
    records = []
    for at in range(count):
        extra = {name: values[at] for name, values in plain.items() if values[at] not in (None, "")}
        sides = {side: int(known[side][at]) if 0 < known[side][at] < 2**31 else None for side in ("width", "height")}
        records.append({
            **{key: _text(known[key][at]) for key in texts}, **sides,
            "path": str(known["path"][at] or ""), "extra": extra,
            "price": known["price"][at] if np.isfinite(known["price"][at]) else None, "tags": _tags(known["tags"][at]),
            "created": _moment(known["created"][at] or dates[at]),
        })  # fmt: skip
    return records


def _numbers(values: list[Any]) -> list[float]:
    """Return values as numbers, NaN where they are none."""
    return pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").astype(np.float64).tolist()


def _plain(values: pd.Series) -> list[Any]:
    """Return a column as JSON takes it: None where a value is missing."""
    if pd.api.types.is_datetime64_any_dtype(values):
        values = values.map(lambda moment: moment.isoformat(), na_action="ignore")
    objects = values.astype(object)
    return [v.item() if isinstance(v, np.generic) else v for v in objects.where(objects.notna(), None)]


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _tags(value: Any) -> list[str]:
    """Return tags that a table writes as one text, "red; summer"; or as a list."""
    parts = re.split(r"[;,|]", value) if isinstance(value, str) else list(value) if value is not None else []
    return [tag for part in parts if (tag := str(part).strip())]


def _moment(value: Any) -> datetime | None:
    moment = pd.to_datetime(value, utc=True, errors="coerce") if value else pd.NaT
    return None if moment is pd.NaT else moment.to_pydatetime()


def _made(folder: Path | None, path: str) -> datetime:
    try:
        return datetime.fromtimestamp((folder / path).stat().st_mtime, UTC) if folder and path else now()
    except OSError:
        return now()


def _blocks(values: Sequence) -> Iterable[Sequence]:
    return (values[start : start + BLOCK] for start in range(0, len(values), BLOCK))
