"""What a call to embed may find: an empty place, older vectors, changed images; each ends in a store known in full."""

import shutil
from dataclasses import replace

import numpy as np

from makers.stores import Negative, build, embed, keep, picture_set, save_pictures
from rectrio_lib.embeddings.embed import embed as embed_images

COUNT = 20  # files


def first_build(home):
    return lambda encoder: build(picture_set(), encoder)[0]


def appended(home):
    build(picture_set(17))
    return first_build(home)


def thinned(home):
    build(picture_set(20))
    return lambda encoder: build(keep(picture_set(30), np.arange(30) % 4 != 1), encoder)[0]


def relabelled(home):
    build(picture_set())
    changed = replace(picture_set(), manifest=picture_set().manifest.assign(label="ring"))
    return lambda encoder: build(changed, encoder)[0]


def other_encoder(home):
    embed_images(picture_set(), Negative(), dtype="float32", shard_rows=5, encoder_name="net")
    return first_build(home)


def first_files(home):
    save_pictures(home / "toys", range(COUNT))
    return lambda encoder: embed(home / "toys", encoder)[0]


def grown_files(home):
    embed(save_pictures(home / "toys", range(9)))
    return first_files(home)


def thinned_files(home):
    run = first_files(home)
    run(None)
    for path in sorted((home / "toys" / "cat").iterdir())[::2]:
        path.unlink()
    save_pictures(home / "toys", range(30, 33))
    return run


def shuffled_files(home):
    run, folder = first_files(home), home / "toys"
    run(None)
    (folder / "cat" / "00.png").rename(folder / "dog" / "moved.png")
    (folder / "cat" / "02.png").unlink()
    shutil.copy(folder / "cat" / "04.png", folder / "copy.png")
    (folder / "cat" / "06.png").write_text("not an image any more", encoding="utf-8")
    save_pictures(folder / "more", range(40, 44))
    return run


FILES = [first_files, grown_files, thinned_files, shuffled_files]
SCENARIOS = [first_build, appended, thinned, relabelled, other_encoder, *FILES]


def prepared(tmp_path, monkeypatch, name, scenario):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / name / "outputs"))
    return scenario(tmp_path / name)


def state(store):
    """What lies in the store's folder and beside it, but for times and places."""
    vectors = {p.name: p.read_bytes() for p in store.folder.glob("*.npy")}
    card = {key: value for key, value in store.card.items() if key not in ("folder", "checksums")}
    names = sorted(store.card["checksums"])
    files = store.files().drop(columns="mtime_ns").to_dict("list") if store.card["folder"] else None
    beside = [sorted(p.name for p in place.iterdir()) for place in (store.folder, store.folder.parent)]
    return vectors, store.rows.to_dict("list"), files, card, names, beside
