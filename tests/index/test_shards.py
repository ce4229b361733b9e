"""Indexes that are searched as one."""

import shutil

import numpy as np
import pytest
from makers.indexes import clustered, named, nearest

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.index.index import Index
from rectrio_lib.index.large.shards import Shards
from rectrio_lib.index.opening import open_index

COUNT, DIM = 900, 16


@pytest.fixture
def vectors():
    return clustered(np.random.default_rng(0), COUNT, DIM)


def part(vectors, start, stop, kind="flat", encoder="abc"):
    return Index.build(kind, vectors[start:stop], named(start, stop - start), encoder)


def three(vectors):
    return Index.shards(
        [part(vectors, start, start + 300, kind) for start, kind in zip((0, 300, 600), KINDS, strict=True)]
    )


KINDS = ("flat", "ivf-pq-disk", "hnsw")


def test_shards_find_what_one_index_finds(vectors):
    queries, index = clustered(np.random.default_rng(1), 40, DIM), three(vectors)
    mask = np.arange(COUNT) % 7 == 0
    for where, chosen in (
        (None, None),
        ("number % 7 == 0", mask),
        (mask, mask),
        ("number >= 600", np.arange(COUNT) >= 600),
    ):
        scores, positions = index.search(queries, 5, where=where)
        _, expected = nearest(vectors, queries, 5, chosen)
        assert (scores >= expected[:, -1:] - 2e-3).mean() > 0.97
        np.testing.assert_allclose(scores, (queries[:, None] * vectors[positions]).sum(2), atol=2e-3)
    assert index.count("number >= 600") == 300


def test_a_shard_is_replaced_and_only_by_one_that_fits(vectors):
    index = three(vectors)
    index.replace(1, part(-vectors, 300, 500))
    assert len(index) == 800 and index.search(-vectors[450:451], 1)[1].item() == 450
    for wrong, match in (
        (part(vectors, 300, 400, encoder="other"), r"Shard 1 .*other"),
        (part(vectors, 0, 400), "in two shards"),
    ):
        with pytest.raises(ArgumentError, match=match):
            index.replace(1, wrong)
    with pytest.raises(ArgumentError, match="no shard 3"):
        index.replace(3, part(vectors, 300, 400))
    assert len(index) == 800 and index.search(-vectors[450:451], 1)[1].item() == 450


def test_a_missing_or_foreign_shard_is_named(vectors):
    folder = three(vectors).save("toy")
    assert isinstance(open_index("toy"), Shards) and len(open_index("toy")) == COUNT
    foreign = part(vectors, 300, 600, encoder="other").save("foreign")
    shutil.rmtree(folder / "shard-0001")
    with pytest.raises(MissingArtefactError, match=r"1 of 3 .*shard-0001"):
        open_index("toy")
    shutil.copytree(foreign, folder / "shard-0001")
    with pytest.raises(DataError, match=r"Shard 1 .*other"):
        open_index("toy")
    part(vectors, 300, 500).save("short")
    shutil.rmtree(folder / "shard-0001")
    shutil.copytree(foreign.parent / "short", folder / "shard-0001")
    with pytest.raises(DataError, match="do not belong together"):
        open_index("toy")


def test_no_shard_and_images_in_two_are_refused(vectors):
    with pytest.raises(ArgumentError, match="at least one"):
        Index.shards([])
    with pytest.raises(ArgumentError, match="'p200'"):
        Index.shards([part(vectors, 0, 300), part(vectors, 200, 500)])
