import inspect
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from makers.indexes import built, clustered, named, unit

from rectrio_lib.core import errors, files
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import base, faiss_vectors
from rectrio_lib.index.factory import KINDS, ON_DISK
from rectrio_lib.index.index import Index

ROOT = Path(__file__).resolve().parents[2]
SMALL = {kind: 300 if kind.startswith("ivf") else 40 for kind in KINDS}  # the cells of IVF are learned


NEW_PROCESS = """
import {module}, sys, json
import numpy as np
from rectrio_lib import Index

queries, answers = np.load(sys.argv[1]), {{}}
for kind in sys.argv[2:]:
    index = Index.load(kind)
    scores, positions = index.search(queries, 7, "abc")
    few = index.search(queries, 7, where=np.arange(len(index)) % 2 == 0)[1]
    index.add(queries, index.rows.iloc[:30].assign(image_id=[f"new{{i}}" for i in range(30)]))
    own = index.search(queries, 1)[1][:, 0]
    answers[kind] = [positions.tolist(), few.tolist(), own.tolist(), scores.tolist()]
print(json.dumps(answers))
"""


@pytest.mark.parametrize("module", ["sys", "torch, faiss.contrib.torch_utils"])
def test_a_new_process_gets_the_same_answers_whatever_it_imports(module, tmp_path):
    queries = unit(np.random.default_rng(5), 30)
    np.save(tmp_path / "queries.npy", queries)
    indexes = {kind: built(kind, SMALL[kind])[0] for kind in KINDS}
    for kind, index in indexes.items():
        index.remove([f"p{i}" for i in range(0, 40, 9)])
        index.save(kind)
    command = [sys.executable, "-c", NEW_PROCESS.format(module=module), str(tmp_path / "queries.npy"), *KINDS]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for kind, (positions, few, own, scores) in json.loads(done.stdout).items():
        index = indexes[kind]
        expected_scores, expected = index.search(queries, 7)
        assert positions == expected.tolist()
        assert few == index.search(queries, 7, where=np.arange(len(index)) % 2 == 0)[1].tolist()
        assert own == list(range(len(index), len(index) + 30))
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_is_mapped_until_it_changes(kind):
    index, vectors = built(kind, SMALL[kind])
    index.save("toy")
    loaded = Index.load("toy")
    loaded.remove(["p0"])
    assert loaded.search(vectors[:1], 1)[1] != 0 and loaded._vectors.mapped
    loaded.compact()
    assert loaded._vectors.mapped == (kind == ON_DISK) and len(loaded.rows) == len(vectors) - 1
    np.testing.assert_allclose(loaded.vectors_at(np.arange(9)), index.vectors_at(np.arange(1, 10)), atol=0.01)


def test_an_open_index_stays_whole_while_another_takes_its_place():
    built(count=40)[0].save("toy")
    opened = Index.load("toy")
    _, others = built(count=50, seed=1)
    built(count=50, seed=1)[0].save("toy")
    _, vectors = built(count=40)
    assert opened.rows.equals(named(0, 40))
    assert opened.search(vectors, 1)[1][:, 0].tolist() == list(range(40))
    assert Index.load("toy").search(others, 1)[1][:, 0].tolist() == list(range(50))


def test_a_mapped_index_may_be_saved_over_its_own_files():
    index, vectors = built("hnsw")
    index.save("toy")
    Index.load("toy").save("toy")
    np.testing.assert_array_equal(Index.load("toy").search(vectors, 3)[1], index.search(vectors, 3)[1])


def test_the_folder_holds_three_files_that_tell_what_the_index_is():
    index = Index.build("hnsw", clustered(np.random.default_rng(0), 600), named(0, 600), "abc", recall=0.9)
    assert index.recall >= 0.9
    index.remove(["p0"])
    folder = index.save("toy")
    assert folder == Workspace().outputs / "indexes" / "toy"
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "rows.parquet", "vectors.faiss"]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    tuned = {"kind": "hnsw", "effort": index.search_param, "recall": index.recall}
    told = {"format": 2, "dim": 32, "encoder_hash": "abc", "count": 599, "made_from": {}, **tuned}
    assert card.items() >= told.items()
    assert sorted(card["checksums"]) == ["rows.parquet", "vectors.faiss"]
    loaded = Index.load("toy")
    assert (loaded.search_param, loaded.recall, loaded.encoder_hash) == (index.search_param, index.recall, "abc")


def test_a_missing_index_names_the_chapter_that_makes_it():
    with pytest.raises(errors.MissingArtefactError, match="rectrio index"):
        Index.load("toy")


@pytest.mark.parametrize("left", [slice(-99), slice(0), slice(9, None)], ids=["cut", "empty", "headless"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_vector_file_is_named(kind, left):
    path = built(kind, SMALL[kind])[0].save("toy") / "vectors.faiss"
    path.write_bytes(path.read_bytes()[left])
    with pytest.raises(ValueError, match=r"vectors\.faiss"):
        Index.load("toy")


def test_what_an_index_was_made_from_is_kept_and_empty_in_old_cards():
    origin = {"encoder": "net", "folder": "", "random_weights": False}
    vectors, rows = clustered(np.random.default_rng(0), 20), named(0, 20)
    index = Index.build("flat", vectors, rows, "abc", made_from=origin)
    card = index.save("toy") / "card.json"
    assert Index.load("toy").made_from == index.made_from == origin
    old = json.loads(card.read_text(encoding="utf-8"))
    del old["made_from"]
    files.write_json(card, old)
    assert Index.load("toy").made_from == {}


@pytest.mark.parametrize("name", ["rows.parquet", "card.json", "vectors.faiss"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1 no table", b"[1, 2]", b"{}"])
def test_a_missing_or_foreign_file_is_named(name, content):
    path = built()[0].save("toy") / name
    path.unlink() if content is None else path.write_bytes(content)
    missing = name == "card.json" and content is None
    with pytest.raises(errors.MissingArtefactError if missing else errors.DataError, match="toy"):
        Index.load("toy")


def test_a_table_damaged_in_its_middle_is_named_when_it_is_read():
    path = built()[0].save("toy") / "rows.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    index = Index.load("toy")
    with pytest.raises(ValueError, match=r"rows\.parquet"):
        len(index.rows)


@pytest.mark.parametrize(("number", "remedy"), [(None, "build it again"), (1, "build it again"), (3, "update RecTrio")])
def test_an_index_of_another_format_is_refused_with_the_remedy(number, remedy):
    path = built()[0].save("toy") / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    del card["format"]
    files.write_json(path, card if number is None else {**card, "format": number})
    with pytest.raises(ValueError, match=rf"format {number or 1}, .* format 2: {remedy}"):
        Index.load("toy")


@pytest.mark.parametrize("change", [{"count": 41}, {"dim": 5}, {"kind": "hnsw"}, "vectors.faiss", "rows.parquet"])
def test_files_that_do_not_belong_together_are_refused(change):
    folder, other = built()[0].save("toy"), built(count=41)[0].save("other")
    if isinstance(change, str):
        shutil.copy(other / change, folder / change)
    else:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        files.write_json(folder / "card.json", {**card, **change})
    with pytest.raises(errors.DataError, match="toy"):
        Index.load("toy")


def die(*arguments):
    raise OSError("killed")


@pytest.mark.parametrize("rename", range(3))
def test_a_save_killed_before_any_rename_leaves_an_index_that_opens(monkeypatch, rename):
    """The renames: card.json, the old folder aside, the new folder into its place."""
    old, vectors = built()
    old.save("toy")
    done, real = [], Path.replace

    def replace_or_die(path, target):
        done.append(path.name)
        return die() if len(done) > rename else real(path, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(Path, "replace", replace_or_die)
        built(count=50, seed=1)[0].save("toy")
    assert len(done) == rename + 1
    loaded = Index.load("toy")
    assert loaded.rows.equals(old.rows)
    np.testing.assert_array_equal(loaded.search(vectors, 3)[1], old.search(vectors, 3)[1])
    built(count=50, seed=1)[0].save("toy")
    assert len(Index.load("toy")) == 50
    assert [p.name for p in (Workspace().outputs / "indexes").iterdir()] == ["toy"]


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_index_and_no_half_written_folder(monkeypatch):
    built()[0].save("toy")
    monkeypatch.setattr(faiss_vectors.faiss, "write_index", fill_up)
    with pytest.raises(errors.StorageError, match=r"toy.*No space left"):
        built(count=50)[0].save("toy")
    assert len(Index.load("toy")) == 40
    assert [p.name for p in (Workspace().outputs / "indexes").iterdir()] == ["toy"]


def fill_up(index, path):
    Path(path).write_bytes(b"half")
    raise RuntimeError("Error in size_t FileIOWriter\nwrite error in toy: No space left on device")


def test_an_index_is_read_from_a_folder_that_cannot_be_written():
    folder = built("hnsw")[0].save("toy")
    for path in (*folder.iterdir(), folder, folder.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(Index.load("toy").rows) == 40
    finally:
        for path in (folder.parent, folder, *folder.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)


FORKED = """
import os, signal, numpy as np, faiss
from rectrio_lib import Index

faiss.omp_set_num_threads(2)
index, queries = Index.load("toy"), np.load("queries.npy")
expected = index.search(queries, 3)[1]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(index.search(queries, 3)[1], expected) else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_forked_child_searches_with_several_queries_after_its_parent_did(kind, tmp_path):
    index, vectors = built(kind, 3000)
    index.save("toy")
    np.save(tmp_path / "queries.npy", vectors[:64])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    child = subprocess.Popen([sys.executable, "-c", FORKED], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        assert child.wait(timeout=100) == 0
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_travels_to_a_worker(kind, monkeypatch):
    monkeypatch.delattr(os, "pread", raising=False)  # Windows has none, and Linux ends it at 2 GiB
    index, vectors = built(kind, SMALL[kind], made_from={"encoder": "net"})
    index.save("toy")
    loaded = Index.load("toy")
    loaded.remove(["p3"])
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.rows.equals(index.rows) and copy.removed.tolist() == loaded.removed.tolist()
    assert copy.made_from == {"encoder": "net"}
    np.testing.assert_array_equal(copy.search(vectors, 5)[1], loaded.search(vectors, 5)[1])
    copy.add(-vectors[:1], named(999, 1))
    assert (len(copy), len(loaded)) == (len(vectors), len(vectors) - 1)


# --- changed by hand


@pytest.mark.parametrize("name", ["vectors.faiss", "rows.parquet"])
def test_a_file_of_another_index_of_the_same_size_is_refused(name):
    folder, other = built()[0].save("toy"), built(seed=1)[0]
    other.rows["image_id"] = other.rows["image_id"][::-1].to_numpy()
    shutil.copy(other.save("other") / name, folder / name)
    with pytest.raises(errors.DataError, match=name):
        len(Index.load("toy").rows)


@pytest.mark.parametrize(
    "value", [None, True, 1.5, -1, 10**30, "text", "nul\0l", [], ["a"], {}, {"a": 1}, float("nan")]
)
@pytest.mark.parametrize("key", ["format", "kind", "dim", "encoder_hash", "effort", "recall", "count", "made_from"])
def test_a_card_with_a_wrong_value_is_refused_or_changes_nothing(key, value):
    path = built(count=9)[0].save("toy") / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, card | {key: value})
    harmless = {
        ("recall", "None"),
        ("recall", "nan"),
        ("encoder_hash", "'text'"),
        ("made_from", "{}"),
        ("made_from", "{'a': 1}"),
    }
    if (key, repr(value)) in harmless - {("recall", "nan")}:
        Index.load("toy").search(unit(np.random.default_rng(0), 1), 3)
    else:
        with pytest.raises(errors.DataError, match=r"card.json"):
            Index.load("toy")


def test_an_index_is_saved_and_loaded_in_its_workspace_or_from_its_folder(tmp_path):
    first, second = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    made_from = {"encoder": "net", "store": "net--toy", "random_weights": True}
    folder = built(made_from=made_from)[0].save("toy", workspace=first)
    built(count=50)[0].save("toy", workspace=second)
    assert folder.is_relative_to(tmp_path / "a")
    assert (len(Index.load("toy", first)), len(Index.load("toy", second))) == (40, 50)
    assert Index.load(folder).made_from == Index.load("toy", first).made_from == made_from
    assert Index.load("toy", second).made_from == {}


def test_the_index_fulfils_the_protocol_of_all_backends():
    index = built()[0]
    assert isinstance(index, base.VectorIndex)
    for name, member in vars(base.VectorIndex).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert [*inspect.signature(member).parameters] == [*inspect.signature(getattr(Index, name)).parameters]
