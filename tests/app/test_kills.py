"""A service that is killed at any moment loses nothing that it acknowledged, and keeps nothing twice."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from makers import postgres
from makers.images import photograph
from makers.processes import Child
from makers.served import client, copied, png
from sqlalchemy import create_engine, text

from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.catalogue import Catalogue
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.records.history import Searches
from rectrio_lib.app.server import NotebookService
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection

pytestmark = pytest.mark.slow

SERVE = """
import sys
from pathlib import Path
from rectrio_lib.app import server
from rectrio_lib.core.files import write_json
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection
root = sys.argv[1]
shop = Collection.open("photos", root + "/photos", Workspace(root))
server.serve(shop, port=0, started=lambda address: write_json(Path(sys.argv[2]), address))
"""
KILLS = int(os.environ.get("RECTRIO_KILLS", "2"))  # more to measure


def write_until_killed(address, start, acknowledged, removed):
    """Upload photographs one after the other, and remove every fourth again, noting what was acknowledged."""
    with httpx.Client(base_url=address, timeout=20) as api, suppress(httpx.HTTPError):
        for number in range(start, start + 10_000, 2):
            answer = api.post("/upload", files={"files": (f"{number}.png", png(photograph(number)))})
            acknowledged.append(answer.json()["images"][0]["id"])
            if number % 8 < 2:
                api.delete(f"/images/{acknowledged[-1]}").raise_for_status()
                removed.append(acknowledged[-1])


def check_nothing_lost(root, acknowledged, removed, in_flight, url=""):
    """Open the service again and compare what it finds with what was acknowledged."""
    collection = Collection.open("photos", root / "photos", Workspace(root))
    with client(create_app(collection, open_database(url, collection.workspace))) as api:
        status = {name: api.get(f"/images/{name}").status_code for name in acknowledged}
        wanted = [name for name in acknowledged if name not in removed and name not in in_flight]
        assert [name for name in wanted if status[name] != 200] == []
        assert [name for name in removed if status[name] != 404] == []
        listed, offset = [], 0
        while offset is not None:
            answer = api.post("/search", json={"k": 200, "offset": offset}).json()
            listed += [result["id"] for result in answer["results"]]
            offset = answer["next"]
        assert len(listed) == len(set(listed)) == answer["total"]
        assert set(wanted) <= set(listed)
        if wanted:
            alike = api.post("/search", json={"like": [{"id": wanted[0]}], "k": 200}).json()["results"]
            names = [result["id"] for result in alike]
            assert len(names) == len(set(names)) == min(200, len(listed) - 1)


def kill_while_writing(root, monkeypatch, kills, seed, url=""):
    """Kill the service at random moments under two writers; return how many images it had acknowledged."""
    acknowledged, removed, in_flight = [[], []], [[], []], set()
    random = np.random.default_rng(seed)
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(root / "outputs"))
    monkeypatch.setenv("RECTRIO_DATABASE", url)
    for turn in range(kills):
        told = root / f"{turn}.json"
        service = Child(SERVE, root, told)
        service.wait_until(told.exists)
        with ThreadPoolExecutor(2) as pool:
            address, enough = json.loads(told.read_text(encoding="utf-8")), sum(map(len, acknowledged)) + 2
            starts = [1000 + 20_000 * turn + writer for writer in (0, 1)]
            given = zip([address] * 2, starts, acknowledged, removed, strict=True)
            writers = [pool.submit(write_until_killed, *each) for each in given]
            while sum(map(len, acknowledged)) < enough and not any(writer.done() for writer in writers):
                time.sleep(0.01)
            time.sleep(random.uniform(0, 1))
            service.kill()
            for writer in writers:
                writer.result()
        in_flight |= {names[-1] for names in acknowledged if names}  # whose removal may have been under way
        check_nothing_lost(root, [*acknowledged[0], *acknowledged[1]], {*removed[0], *removed[1]}, in_flight, url)
    return sum(map(len, acknowledged))


def test_kills_lose_nothing(template, tmp_path, monkeypatch):
    copied(template, tmp_path)
    assert kill_while_writing(tmp_path, monkeypatch, KILLS, seed=0) > KILLS


def test_kills_lose_nothing_on_postgresql(template, tmp_path, monkeypatch):
    copied(template, tmp_path)
    with postgres.running() as url:
        assert kill_while_writing(tmp_path, monkeypatch, KILLS // 2, 1, url) > KILLS // 2


def test_a_service_in_a_thread_answers_and_ends(template, tmp_path):
    shop = copied(template, tmp_path).serve()
    assert isinstance(shop, NotebookService)
    assert httpx.get(f"{shop.address}about").json()["images"] == 12
    assert shop.address in repr(shop)
    shop.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{shop.address}about")


def test_an_old_database_is_brought_up_to_date_with_what_it_holds(tmp_path):
    url, config = f"sqlite:///{tmp_path / 'a.sqlite'}", Config()
    config.set_main_option("script_location", "rectrio_lib.app.records:migrations")
    old = {"name": "n", "owner": "ann", "collection": "photos", "query": "{}", "title": "cats", "shown": "[]"}
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        columns = ", ".join([*old, "created"])
        values = ", ".join([*(f":{key}" for key in old), "'2025-01-01 00:00:00.000000'"])
        connection.execute(text(f"INSERT INTO searches ({columns}) VALUES ({values})"), old)
        columns = "collection, image_id, sequence, path, uploaded, removed, edited, tags, extra, created"
        values = "'photos', 'i', 1, 'cat/i.png', 0, 0, 0, '[]', '{}', '2025-01-01 00:00:00.000000'"
        connection.execute(text(f"INSERT INTO images ({columns}) VALUES ({values})"))
    history = Searches(open_database(url), "photos")
    assert [(search.id, search.title) for search in history.list("ann", 5).searches] == [("n", "cats")]
    assert [(row.path, row.told) for row in Catalogue(history.engine, "photos").since(0)] == [("cat/i.png", "")]
