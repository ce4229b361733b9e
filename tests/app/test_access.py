"""Keys, sessions and rates: who gets in, who does not, and what is kept of a secret."""

import asyncio
import hashlib
import logging
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi import FastAPI
from makers.service import bearer, browser, database, small_app
from sqlalchemy import text
from sqlmodel import Session, select
from starlette.exceptions import HTTPException

from rectrio_lib.app.records.database import KeyRow, SearchRow, now, writing
from rectrio_lib.app.web import access
from rectrio_lib.app.web.shield import Rates, read_rate
from rectrio_lib.core.errors import ArgumentError

EVERYTHING = ["admin", "search", "write"]
OUTSIDE = "http://192.0.2.7"


@pytest.fixture
def key(engine):
    return access.add_key(engine, "anna", "search")


@pytest.fixture
def app(engine, key):
    return small_app(engine, "0.0.0.0")


def expire(engine, name):
    with writing(engine) as session:
        for row in session.exec(select(KeyRow).where(KeyRow.name.startswith(name))):
            row.expires = now() - timedelta(seconds=1)
            session.add(row)


def remember(engine, *owners):
    with writing(engine) as session:
        for owner in owners:
            session.add(SearchRow(name=owner, owner=owner, collection="c", query={}, title="", shown=[]))


def remembered(engine):
    with Session(engine) as session:
        return sorted(session.exec(select(SearchRow.owner)))


def open_session(app, name="page", scopes="search,write", address="http://127.0.0.1"):
    client = browser(app, address)
    token = app.state.access.new_link(name, scopes)
    return client, client.get(f"/session?token={token}", follow_redirects=False), token


def test_secret_has_256_bits_and_sql_keeps_only_its_sha256(engine):
    secrets = [access.add_key(engine, f"n{n}", "search") for n in range(3)]
    assert len(set(secrets)) == 3 and all(len(secret.partition("_")[2]) >= 43 for secret in secrets)
    with engine.connect() as connection:
        rows = connection.execute(text("select * from keys")).all()
    hashes = {row.secret_hash for row in rows}
    assert hashes == {f"key:{hashlib.sha256(secret.encode()).hexdigest()}" for secret in secrets}
    assert not any(secret in str(row) for secret in secrets for row in rows)


def test_list_of_keys_has_no_secret(engine, key):
    access.new_link(engine, "page", "search")
    (listed,) = access.list_keys(engine)
    assert list(listed) == ["name", "scopes", "rate", "created", "expires"]
    assert (listed["name"], listed["scopes"], listed["expires"]) == ("anna", "search", None)


@pytest.mark.parametrize(
    "arguments",
    [("anna", "search"), ("Anna", "search"), ("local", "search"), ("a:b", "search"), ("", "search"), ("../x", "search"),
     ("x" * 65, "search"), ("bob", ""), ("bob", "search,root"), ("bob", []), ("bob", "search", "60"),
     ("bob", "search", "many/minute"), ("bob", "search", "", 0), ("bob", "search", "", float("nan"))],
)  # fmt: skip
def test_key_that_makes_no_sense_is_refused(engine, key, arguments):
    with pytest.raises(ArgumentError):
        access.add_key(engine, *arguments)
    assert len(access.list_keys(engine)) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_on_this_machine_no_key_is_needed(engine, host):
    assert browser(small_app(engine, host)).get("/who").json() == {"name": "local", "scopes": EVERYTHING}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "photos.example.org"])
def test_elsewhere_a_start_without_a_key_is_refused(engine, host):
    with pytest.raises(ArgumentError, match="rectrio keys add"):
        access.Access(engine, host)
    access.add_key(engine, "old", "search")
    expire(engine, "old")
    with pytest.raises(ArgumentError, match="rectrio keys add"):
        access.Access(engine, host)
    access.add_key(engine, "new", "search")
    assert access.Access(engine, host).required


def test_a_further_name_of_the_service_means_a_proxy_so_that_keys_are_required(engine, key):
    assert access.Access(engine, "127.0.0.1", ("photos.example.org",)).required
    assert not access.Access(engine, "127.0.0.1", ("photos.example.org",), required=False).required


def test_elsewhere_a_request_needs_a_key(app, key):
    client = browser(app, OUTSIDE)
    refused = client.get("/who")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.headers["content-type"] == "application/problem+json"
    assert client.get("/who", headers=bearer(key)).json() == {"name": "anna", "scopes": ["search"]}
    assert client.get("/").json() == "page"  # which is how somebody without a key learns of it
    assert client.get("/health").json() == "well"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("wrong", ["x", "", "rectrio_", "é", "a b"])
def test_wrong_key_is_refused_everywhere(engine, key, host, wrong):
    headers = {"Authorization": f"Bearer {wrong}".encode()}
    assert browser(small_app(engine, host)).get("/who", headers=headers).status_code == 401


def test_other_kinds_of_authorization_are_not_ours(engine):
    assert browser(small_app(engine)).get("/who", auth=("user", "password")).json()["name"] == "local"


def test_scopes_are_kept_apart(engine, app, key):
    writer = access.add_key(engine, "bob", ["write"])
    client = browser(app)
    statuses = [client.request(method, path, headers=bearer(k)).status_code
                for method, path in (("GET", "/who"), ("POST", "/write")) for k in (key, writer)]  # fmt: skip
    assert statuses == [200, 403, 403, 200]


def test_expired_key_is_refused(engine, app, key):
    assert browser(app).get("/who", headers=bearer(key)).status_code == 200
    expire(engine, "anna")
    assert browser(app).get("/who", headers=bearer(key)).status_code == 401


def test_removed_key_is_refused_at_once_and_its_history_goes(engine, app, key):
    client, _, _ = open_session(app, "anna")
    session_name = client.get("/who").json()["name"]
    access.add_key(engine, "anna2", "search")
    remember(engine, "anna", session_name, "anna2")
    access.remove_key(engine, "anna")
    assert (client.get("/who").status_code, client.get("/who", headers=bearer(key)).status_code) == (401, 401)
    assert remembered(engine) == ["anna2"]
    with pytest.raises(ArgumentError, match="rectrio keys list"):
        access.remove_key(engine, "anna")


def test_removing_a_key_takes_nothing_of_a_name_in_other_capitals(engine, app, key):
    client, _, _ = open_session(app, "Anna")
    other = client.get("/who").json()["name"]
    remember(engine, "anna", other)
    access.remove_key(engine, "anna")
    assert (remembered(engine), client.get("/who").status_code) == ([other], 200)


def test_removing_a_key_that_is_none_takes_nothing(engine):
    remember(engine, "local")
    with pytest.raises(ArgumentError, match="rectrio keys list"):
        access.remove_key(engine, "local")
    assert remembered(engine) == ["local"]


def test_of_several_who_add_one_name_at_once_one_gets_it(engine):
    def add(name):
        try:
            return access.add_key(engine, name, "search")
        except ArgumentError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(add, ["carl", "Carl"] * 4))
    assert len([secret for secret in made if secret]) == len(access.list_keys(engine)) == 1


def test_keys_are_compared_in_constant_time(engine, key, monkeypatch):
    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert access._find(engine, "key", key).name == "anna"
    assert compared == [(access._hash("key", key),) * 2]
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: False)
    assert access._find(engine, "key", key) is None


def test_secrets_never_reach_the_log(engine, app, key, caplog):
    caplog.set_level(logging.DEBUG)
    client, answer, token = open_session(app)
    app.state.error = RuntimeError("a fault")
    for headers in (bearer(key), bearer("wrong-guess"), {}):
        for path in ("/who", "/fails", "/nowhere"):
            client.get(path, headers=headers)
    assert "a fault" in caplog.text
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpx"))  # the client's own log
    assert not [s for s in (key, "wrong-guess", token, answer.cookies["rectrio-session"]) if s in ours]


def test_link_opens_one_session_once(app):
    client, answer, token = open_session(app)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", f"max-age={30 * 86_400}"}  # no path: that of the page
    name = client.get("/who").json()["name"]
    assert name.startswith("page:") and client.get("/who").json()["scopes"] == ["search", "write"]
    again = browser(app).get(f"/session?token={token}", follow_redirects=False)
    assert again.status_code == 403 and "set-cookie" not in again.headers


def test_cookie_is_secure_where_the_page_is(app):
    _, answer, _ = open_session(app, address="https://127.0.0.1")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_session_works_below_the_prefix_of_a_proxy(app):
    outer = FastAPI()
    outer.mount("/some/where", app)
    client = browser(outer)
    opened = client.get(f"/some/where/session?token={app.state.access.new_link('page')}")
    assert (opened.status_code, str(opened.url)) == (200, "http://127.0.0.1/some/where/")
    (cookie,) = client.cookies.jar
    assert cookie.path == "/some/where"
    assert client.get("/some/where/who").status_code == 200


def test_everybody_who_opens_a_link_owns_a_history(app):
    names = {open_session(app, "page")[0].get("/who").json()["name"] for _ in range(3)}
    assert len(names) == 3


def test_link_opens_one_session_also_if_many_try_at_once(app):
    token = app.state.access.new_link("page")
    clients = [browser(app) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda c: c.get(f"/session?token={token}", follow_redirects=False).status_code, clients)
    assert sorted(answers) == [303] + [403] * 7


def test_expired_link_and_expired_session_are_refused(engine, app):
    token = app.state.access.new_link("late")
    expire(engine, "late")
    assert browser(app).get(f"/session?token={token}").status_code == 403
    client, _, _ = open_session(app)
    assert client.get("/who").status_code == 200
    expire(engine, "page:")
    assert client.get("/who").status_code == 401


def test_secrets_are_good_for_one_thing_alone(app, key):
    _, answer, _ = open_session(app)
    session, link = answer.cookies["rectrio-session"], app.state.access.new_link("page")
    client = browser(app)
    assert [client.get("/who", headers=bearer(s)).status_code for s in (session, link, key)] == [401, 401, 200]
    cookies = [{"Cookie": f"rectrio-session={s}"} for s in (key, link, session)]
    assert [client.get("/who", headers=headers).status_code for headers in cookies] == [401, 401, 200]
    assert [client.get(f"/session?token={s}").status_code for s in (key, session)] == [403, 403]


def test_session_ends_when_its_browser_says_so(app):
    client, answer, _ = open_session(app)
    kept = {"Cookie": f"rectrio-session={answer.cookies['rectrio-session']}"}
    assert client.delete("/session").status_code == 204
    assert browser(app).get("/who", headers=kept).status_code == 401


def test_sessions_that_end_leave_no_history_and_keys_that_expire_stay_listed(engine, app, key):
    clients = [open_session(app, "anna")[0] for _ in range(3)]
    names = [client.get("/who").json()["name"] for client in clients]
    remember(engine, "anna", *names)
    clients[0].delete("/session")
    assert remembered(engine) == sorted(["anna", *names[1:]])
    expire(engine, names[1])
    expire(engine, "page")
    access.new_link(engine, "page", "search")
    assert remembered(engine) == sorted(["anna", names[2]])
    expire(engine, "anna")
    access.new_link(engine, "page", "search")
    assert remembered(engine) == ["anna"] and [k["name"] for k in access.list_keys(engine)] == ["anna"]
    with pytest.raises(ArgumentError):  # nobody else gets that name, and the history with it
        access.add_key(engine, "anna", "search")


def test_two_processes_on_one_database_share_sessions(engine, key, app, tmp_path):
    client, answer, _ = open_session(app)
    other = browser(small_app(database(tmp_path), "0.0.0.0"))
    other.cookies.set("rectrio-session", answer.cookies["rectrio-session"])
    assert other.get("/who").json() == client.get("/who").json()


# --- rates


def test_rate_of_one_key_does_not_touch_another(engine):
    keys = [access.add_key(engine, name, "search", "3/minute") for name in ("a", "b")]
    client = browser(small_app(engine, "0.0.0.0"))
    statuses = [client.get("/who", headers=bearer(keys[0])).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    answer = client.get("/who", headers=bearer(keys[0]))
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (answer.json()["status"], answer.headers["content-type"]) == (429, "application/problem+json")
    assert client.get("/who", headers=bearer(keys[1])).status_code == 200


def test_window_moves(engine):
    client = browser(small_app(engine, rate="2/second"))
    assert [client.get("/who").status_code for _ in range(3)] == [200, 200, 429]
    time.sleep(1.05)
    assert client.get("/who").status_code == 200


def test_requests_without_a_key_are_counted_by_address_and_probes_are_not(engine):
    app = small_app(engine, rate="2/minute")
    one, two = browser(app, client="192.0.2.1"), browser(app, client="192.0.2.2")
    assert [one.get("/who").status_code for _ in range(3)] == [200, 200, 429]
    assert two.get("/who").status_code == 200
    assert [one.get("/health").status_code for _ in range(5)] == [200] * 5


def test_guessing_keys_is_limited_and_does_not_lock_others_out(engine, app, key, monkeypatch):
    monkeypatch.setattr(access, "GUESSES", "3/minute")
    client = browser(app)
    assert [client.get("/who", headers=bearer("guess")).status_code for _ in range(4)] == [401, 401, 401, 429]
    assert client.get("/who", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (bearer("guess"), 401), (None, 429)])
def test_refused_before_the_body_is_read(engine, headers, status):
    used_up = access.add_key(engine, "used", "write", "1/day")
    app = small_app(engine, "0.0.0.0")
    headers = bearer(used_up) if headers is None else headers
    browser(app).get("/who", headers=bearer(used_up))
    raw = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    raw += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/files", "headers": raw, "query_string": b"", "scheme": "http"}
    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope | {"client": ("192.0.2.1", 1), "server": ("127.0.0.1", 80)}, receive, send))
    assert sent[0]["status"] == status


def test_several_processes_without_redis_are_warned_of(caplog):
    Rates("", workers=1)
    assert caplog.records == []
    Rates("", workers=2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis"])
def test_address_that_is_no_redis_is_refused(url):
    with pytest.raises(ArgumentError, match="redis://"):
        Rates(url)


@pytest.fixture
def redis(tmp_path):
    if not (server := shutil.which("redis-server")):
        pytest.skip("redis-server is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen([server, *options], stdout=subprocess.DEVNULL) as process:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield process, f"redis://127.0.0.1:{port}"
        process.kill()


def test_two_processes_share_rates_through_redis_and_go_on_when_it_is_gone(engine, redis, caplog):
    process, url = redis
    key = access.add_key(engine, "a", "search", "3/minute")
    clients = [browser(small_app(engine, "0.0.0.0", redis_url=url)) for _ in range(2)]
    with clients[0], clients[1]:
        statuses = [clients[n % 2].get("/who", headers=bearer(key)).status_code for n in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert 1 <= int(clients[0].get("/who", headers=bearer(key)).headers["retry-after"]) <= 60
        process.kill()
        process.wait()
        alone = [clients[0].get("/who", headers=bearer(key)).status_code for _ in range(4)]
    assert alone == [200, 200, 200, 429]  # counted from now on in this process
    assert "redis does not answer" in caplog.text


@pytest.mark.parametrize("rate", ["0/minute", "5/second;0/day", "often", "-1/minute", "1/fortnight"])
def test_a_rate_that_allows_nothing_is_none(rate):
    with pytest.raises(ArgumentError, match=r"60/minute"):
        read_rate(rate)


def test_several_rates_hold_at_once():
    rates = Rates()

    async def count():
        return [await rates.count("2/second;3/minute", "key", "a") for _ in range(3)]

    with pytest.raises(HTTPException) as refused:
        asyncio.run(count())
    assert refused.value.status_code == 429
