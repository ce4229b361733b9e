"""The one label rule: what folders and names tell of an image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

import numpy as np
import pandas as pd

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ARCHIVE = re.compile(r".+?\.(tar:\d+\+\d+|parquet)/")  # see `places.archives`


def nfc(text: str) -> str:
    """Return the normal form in which labels, products and paths are compared."""
    return unicodedata.normalize("NFC", text)


def describe(paths: Collection[str]) -> pd.DataFrame:
    """Tell label (in NFC) and split, both "" where there is no such folder, of paths below a top folder.

    The first folder is the class: FOLDER/<class>/…. If nothing but split folders lies at the top, and one for training
    holds class folders, the second one is: FOLDER/{train,val,test}/<class>/…; SPLITS lists the names, in any case.
    Of an image in an archive the folders inside of it count, and the split that the name of the archive tells.
    """
    seen: dict[str, str] = {}  # so that all images of a folder share its name
    folders = [seen.setdefault(folder, folder) for folder in (path.rpartition("/")[0] for path in paths)]
    parts = {folder: ARCHIVE.sub("", folder + "/" * bool(folder)).split("/")[:-1] for folder in seen}
    tops = {homes[0] for homes in parts.values() if homes}
    divided = all(top.lower() in SPLITS for top in tops) and any(
        len(homes) > 1 and SPLITS[homes[0].lower()] == "train" for homes in parts.values()
    )
    told = {}
    for folder, homes in parts.items():
        split = SPLITS[homes[0].lower()] if divided and homes else ""
        told[folder] = nfc("".join(homes[1:2] if split else homes[:1])), split or _split_of_archive(f"{folder}/")
    return pd.DataFrame([told[folder] for folder in folders], columns=["label", "split"], dtype=object)


def _split_of_archive(folder: str) -> str:
    found = ARCHIVE.match(folder)
    return next((SPLITS[word] for word in re.split("[^a-z]+", found[0].lower()) if word in SPLITS), "") if found else ""


def understood(paths: Collection[str]) -> str:
    """Say how `describe` understands a folder: splits, classes, and images below a class folder."""
    found = describe(paths)
    splits = [split for split in ("train", "val", "test") if found["split"].eq(split).any()]
    classes, loose = found["label"][found["label"].ne("")].nunique(), int(found["label"].eq("").sum())
    depth = np.array([path.count("/") for path in paths]) - (1 if splits else 0)
    deep = int((depth > 1).sum())
    said = [f"{count_of(len(splits), 'split')} ({', '.join(splits)})"] if splits else []
    said.append(count_of(classes, "class", "classes") if classes else "no class folders")
    said += [f"{count_of(loose, 'image')} in no class folder"] if loose and classes else []
    below = " below the split" if splits else ""
    said += [f"{count_of(deep, 'image')} deeper: the first folder{below} is the class"] if deep else []
    return ", ".join(said)


def count_of(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
