"""Where data, weights and outputs live: the owner of every path, card and listing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.files import expanded, restore_folder

CARDS = {"datasets": "card.json", "encoders": "encoder.json", "embeddings": "card.json", "indexes": "card.json"}
SINGULAR = {"datasets": "data set", "encoders": "encoder", "embeddings": "embedding store", "indexes": "index"}
MADE_FROM = {f"{key}?": str for key in ("encoder", "store", "dataset", "folder", "dataset_hash")}
MADE_FROM |= {"random_weights?": bool, "generated_images?": bool, "whitening?": dict}
MADE_FROM |= {"asked?": {"kind": str, "recall": float | int}}
TYPES = {"arguments?": dict, "preprocessing?": dict, "made_from?": MADE_FROM}  # of what any card may hold
TYPES |= MADE_FROM | {"hash?": str, "encoder_hash?": str, "kind?": str, "trained_on?": str, "stand_in?": bool}
UNFINISHED = (".new", ".old", ".part", ".lock")  # endings of what an interrupted write leaves behind

Card = dict[str, Any]


def offline() -> bool:
    """Tell whether `RECTRIO_OFFLINE=1` forbids downloads."""
    return os.environ.get("RECTRIO_OFFLINE", "0") not in ("", "0")


def quiet() -> bool:
    """Tell whether `RECTRIO_QUIET=1` turns progress bars off."""
    return os.environ.get("RECTRIO_QUIET", "0") not in ("", "0")


def processes() -> int:
    """Return the number of processes that a training runs on, as `RECTRIO_PROCESSES` says, by default 1."""
    told = os.environ.get("RECTRIO_PROCESSES", "") or "1"
    if not told.isdecimal():
        raise ArgumentError(f"RECTRIO_PROCESSES={told!r} should be a number of processes, such as 2.")
    return int(told)


def _checkout() -> Path:
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "params").is_dir()), here)


@dataclass(frozen=True)
class Workspace:
    """The folders that a piece of work reads and writes.

    `Workspace()` is the checkout around the working directory, unless `RECTRIO_DATA`, `RECTRIO_WEIGHTS` or
    `RECTRIO_OUTPUTS` name other folders; `Workspace(root)` ignores these. Several work side by side in one process.

    Attributes:
        root: where relative paths start.
        data: data sets; data/ by default.
        weights: pretrained weights; data/weights/ by default.
        outputs: everything that runs produce; outputs/ by default.
    """

    root: Path | None = None
    data: Path | None = None
    weights: Path | None = None
    outputs: Path | None = None

    def __post_init__(self) -> None:
        variables = os.environ if self.root is None else {}
        object.__setattr__(self, "root", _checkout() if self.root is None else expanded(self.root).absolute())
        for name, place in {"data": "data", "weights": "data/weights", "outputs": "outputs"}.items():
            chosen = getattr(self, name) or variables.get(f"RECTRIO_{name.upper()}") or place
            object.__setattr__(self, name, self.resolve(chosen))

    def resolve(self, path: str | Path) -> Path:
        """Return an absolute path: ~ is expanded, relative paths start at the root."""
        return self.root / expanded(path)

    def path(self, kind: str, name: str) -> Path:
        """Return the folder of an artefact, which need not exist; `kind` is a key of CARDS.

        Raises:
            DataError: if the name is not that of one folder, or ends like the temporary files of this library.
        """
        home = self.outputs / kind
        if name in ("", "..") or Path(name).name != name or set(name) & set("\\\0") or name.endswith(UNFINISHED):
            ends = ", ".join(UNFINISHED)
            raise DataError(f"{name!r} cannot name a folder of {home}: take one without slashes, not ending in {ends}.")
        return home / name

    def require(self, kind: str, name: str, command: str) -> Path:
        """Return the folder of an artefact that must exist; MissingArtefactError names the command that makes it."""
        folder = self.path(kind, name)
        restore_folder(folder)
        if not (folder / CARDS[kind]).is_file():
            known = ", ".join(self.cards(kind)) or "none"
            raise MissingArtefactError(
                f"There is no {SINGULAR[kind]} {name!r} in {folder.parent} (it holds: {known}). `{command}` makes it."
            )
        return folder

    def cards(self, kind: str) -> dict[str, Card]:
        """Return {name: card} of all artefacts of a kind; a card that cannot be read is empty."""
        cards = {}
        for path in sorted((self.outputs / kind).glob(f"*/{CARDS[kind]}")):
            if path.parent.suffix not in UNFINISHED:
                try:
                    cards[path.parent.name] = read_card(path, TYPES)
                except DataError:
                    cards[path.parent.name] = {}
        return cards


def read_card(path: Path, schema: dict[str, Any] | None = None) -> Card:
    """Read a card, a JSON object; DataError if it is missing, damaged, or does not fit a schema, see `check_card`."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is missing or damaged: make {path.parent.name!r} again.") from error
    if not isinstance(card, dict):
        raise DataError(f"{path} should hold one JSON object: make {path.parent.name!r} again.")
    check_card(card, schema or {}, path)
    return card


def check_card(card: Card, schema: dict[str, Any], path: Path) -> None:
    """Check a card that was read from `path` against a schema {key: type or union of types}; other keys pass.

    A key that ends in "?" may be missing. A schema in the place of a type is that of a card within the card.

    Raises:
        DataError: if a key is missing or its value is of another type.
    """
    for key, expected in schema.items():
        name = key.removesuffix("?")
        if name not in card:
            if key == name:
                raise DataError(f"{path} has no {name!r}: it is damaged or another kind of card. Make it again.")
            continue
        value, kind = card[name], dict if isinstance(expected, dict) else expected
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not fits or (isinstance(value, str) and "\0" in value):
            wanted = getattr(kind, "__name__", kind)
            raise DataError(f"{path}: {name!r} is {value!r:.60}, expected {wanted}. Make it again.")
        if isinstance(expected, dict):
            check_card(value, expected, path)
