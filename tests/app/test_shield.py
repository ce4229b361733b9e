"""What passes the shield, what does not, and the headers of every response."""

import asyncio
import logging
import resource
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import uvicorn
from makers.service import bearer, browser, database, small_app
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from rectrio_lib.app.web import access, shield

MIB = 1 << 20
END = b""  # the last chunk
FORM = "multipart/form-data; boundary=x"


@pytest.fixture
def app(engine):
    return small_app(engine)


def policy(response):
    return {d.split()[0]: d.split()[1:] for d in response.headers["content-security-policy"].split("; ")}


# --- the name that a request comes by


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_its_own(app, host):
    assert browser(app).get("/who", headers={"Host": host}).status_code == 200


FORGED = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:8000",
    "192.0.2.7",
    "",
    "[::2]",
    "127.0.0.1@evil",
]


@pytest.mark.parametrize("host", FORGED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_forged_host_is_refused(app, host, method):
    answer = browser(app).request(method, "/who", headers={"Host": host})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.0.2.7", 200), ("[2001:db8::1]:8000", 200), ("photos.example.org:443", 200), ("a.b.example.net", 200),
     ("example.net", 400), ("notexample.net", 400), ("photos.example.org.evil", 400), (socket.gethostname(), 200)],
)  # fmt: skip
def test_elsewhere_addresses_and_given_names_are_taken(engine, host, status):
    key = access.add_key(engine, "a", "search")
    app = small_app(engine, "0.0.0.0", ("Photos.example.org", ".example.net"))
    assert browser(app).get("/who", headers={"Host": host, **bearer(key)}).status_code == status


def test_star_takes_any_name(engine):
    app = small_app(engine, "127.0.0.1", ("*",), required=False)
    assert browser(app).get("/who", headers={"Host": "any.example"}).status_code == 200


# --- the page that a request comes from


def sends(app, method, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return browser(app).request(method, "/write", headers={"Host": "127.0.0.1:8000", **named}).status_code


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:8888"},
     {"Origin": "http://localhost:8000"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
     {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1:8000"},
     {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}],  # a form that another page sends
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
def test_another_sites_page_changes_nothing(app, headers, method):
    assert sends(app, method, **headers) == 403


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://127.0.0.1:8000"}, {"Origin": "https://127.0.0.1:8000"}, {"Sec_Fetch_Site": "same-origin"},
     {"Sec_Fetch_Site": "none"}, {"Sec_Fetch_Site": "same-origin", "Origin": "https://photos.example.org"}],
)  # fmt: skip
def test_the_page_and_programs_get_through(app, headers):
    assert sends(app, "POST", **headers) == 200


def test_a_given_name_counts_as_the_pages_origin_behind_a_proxy_that_changes_host(engine):
    app = small_app(engine, "127.0.0.1", ("photos.example.org",), required=False)
    assert sends(app, "POST", Origin="https://photos.example.org") == 200
    assert sends(app, "POST", Origin="https://photos.example.org.evil") == 403


def test_other_pages_may_link_to_it_but_not_load_from_it(app):
    client, elsewhere = browser(app), {"Sec-Fetch-Site": "cross-site"}
    assert client.get("/", headers={**elsewhere, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert [client.get("/", headers={**elsewhere, "Sec-Fetch-Mode": m}).status_code for m in ("no-cors", "cors")] == [
        403
    ] * 2


def test_no_page_of_another_origin_may_read(app):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (browser(app).options("/write", headers=asked), browser(app).get("/who", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_there_are_no_websockets(app):
    with pytest.raises(WebSocketDisconnect), browser(app).websocket_connect("/"):
        pass


# --- how long a body is


def feed(app, chunks, kind=FORM, path="/stream", **headers):
    """Send a body in chunks, None for one that never comes; return the status and how many bytes were taken."""
    taken, sent, left = [], [], iter(chunks)

    async def receive():
        chunk = next(left, END)
        while chunk is None:
            await asyncio.sleep(1)
        taken.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": chunk != END}

    async def send(message):
        sent.append(message)

    raw = {"host": "127.0.0.1", "content-type": kind, **headers}
    pairs = [(name.encode(), value.encode()) for name, value in raw.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": pairs, "query_string": b"", "scheme": "http"}
    asyncio.run(app(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}, receive, send))
    return sent[0]["status"], sum(taken)


def endless(size, piece=64 * 1024):
    block = bytes(piece)
    return (block for _ in range(size // piece))


@pytest.mark.parametrize("path", ["/stream", "/files", "/json"])
def test_unannounced_gigabyte_is_refused_when_the_limit_is_passed(engine, path):
    app = small_app(engine, shielded={"most_bytes": 4 * MIB})
    head = [b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n']
    status, taken = feed(app, (chunk for part in (head, endless(1 << 30)) for chunk in part), path=path)
    assert status == 413 and 4 * MIB < taken <= 4 * MIB + 128 * 1024


def test_announced_gigabyte_is_refused_unread(engine):
    app = small_app(engine, shielded={"most_bytes": 4 * MIB})
    assert feed(app, endless(1 << 30), **{"content-length": str(1 << 30)}) == (413, 0)


def test_announcing_less_than_is_sent_does_not_help(engine):
    app = small_app(engine, shielded={"most_bytes": 4 * MIB})
    status, taken = feed(app, endless(1 << 30), **{"content-length": "10"})
    assert status == 413 and taken <= 5 * MIB


@pytest.mark.parametrize("path", ["/stream", "/files", "/json"])
def test_a_body_that_stops_coming_is_given_up(engine, path):
    app = small_app(engine, shielded={"grace": 0.05})
    assert feed(app, [b"--x", None], path=path)[0] == 408


@pytest.mark.parametrize(
    ("kind", "limit"), [(FORM, 4 * MIB), ("application/json", MIB), ("", MIB), ("text/plain", MIB)]
)
def test_limit_is_exact_and_small_where_no_files_are(engine, kind, limit):
    app = small_app(engine, shielded={"most_bytes": 4 * MIB})
    assert feed(app, [bytes(limit)], kind) == (200, limit)
    assert feed(app, [bytes(limit), b"x"], kind)[0] == 413
    assert feed(app, [], kind, **{"content-length": str(limit)})[0] == 200
    assert feed(app, [], kind, **{"content-length": str(limit + 1)})[0] == 413


def test_gigabyte_over_a_real_connection_leaves_the_memory_flat(engine):
    app = small_app(engine, shielded={"most_bytes": 4 * MIB})
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = f"POST /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with socket.create_connection(listening.getsockname(), 10) as wire:
        wire.sendall(head.encode())
        wire.settimeout(0.001)
        answer = b""
        for block in endless(1 << 30):
            wire.setblocking(True)
            wire.settimeout(10)
            wire.sendall(b"%x\r\n%b\r\n" % (len(block), block))
            sent += len(block)
            wire.setblocking(False)
            try:
                answer = wire.recv(4096)
            except BlockingIOError:
                continue
            break
    server.should_exit = True
    thread.join(10)
    assert answer.startswith(b"HTTP/1.1 413") and sent < 64 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


def test_client_that_leaves_half_way_is_no_fault_of_the_service(app, caplog):
    left = iter([{"type": "http.request", "body": b"--x", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(left)

    async def send(message):
        pass

    headers = [(b"host", b"127.0.0.1"), (b"content-type", FORM.encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/files",
        "headers": headers,
        "query_string": b"",
        "scheme": "http",
    }
    asyncio.run(app(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}, receive, send))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- headers


def test_every_response_has_the_headers_that_protect(engine):
    app = small_app(engine, rate="12/minute", shielded={"most_bytes": MIB})
    app.state.error = RuntimeError()
    client = browser(app)
    answers = [
        client.get("/"), client.get("/who"), client.get("/nowhere"), client.put("/who"), client.get("/fails"),
        client.post("/json", json="x"), client.post("/files", files={"file": bytes(2 * MIB)}),
        client.get("/", headers={"Host": "evil.example"}), client.post("/write", headers={"Origin": "null"}),
        client.get("/who", headers=bearer("guess")), *(client.get("/who") for _ in range(12)),
    ]  # fmt: skip
    assert {answer.status_code for answer in answers} == {200, 404, 405, 500, 422, 413, 400, 403, 401, 429}
    for answer in answers:
        assert {name: answer.headers[name] for name in shield.HEADERS} == shield.HEADERS
        assert policy(answer)["default-src"] == ["'none'"] and policy(answer)["frame-ancestors"] == ["'self'"]
        assert answer.status_code == 200 or answer.headers["content-type"] == "application/problem+json"


def test_policy_lets_nothing_in_from_elsewhere(app):
    rules = policy(browser(app).get("/"))
    sources = {source for values in rules.values() for source in values}
    assert sources <= {"'self'", "'none'", "blob:", "data:"}
    kinds = {f"{kind}-src" for kind in ("script", "style", "connect", "manifest", "font", "worker")}
    assert {rules[kind] == ["'self'"] for kind in kinds} == {True}
    assert (rules["img-src"], rules["media-src"]) == (["'self'", "blob:", "data:"], ["blob:"])
    assert (rules["base-uri"], rules["form-action"]) == (["'none'"], ["'self'"])


def test_notebooks_may_show_the_page_in_a_frame(engine):
    frames = ["http://localhost:*", "https://*.googleusercontent.com"]
    rules = policy(browser(small_app(engine, shielded={"frames": frames})).get("/"))
    assert rules["frame-ancestors"] == ["'self'", *frames]
    assert all(urlsplit(frame).scheme in ("http", "https") for frame in frames)


def test_a_route_may_say_how_long_its_answer_is_kept(app):
    @app.get("/kept")
    async def kept():
        return Response("x", headers={"Cache-Control": "private, max-age=60"})

    assert browser(app).get("/kept").headers["cache-control"] == "private, max-age=60"


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("LocalHost", True),
     ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_addresses_of_this_machine_alone_are_known(host, here):
    assert shield.is_loopback(host) is here


def test_one_look_at_the_page_is_one_request_of_a_rate(tmp_path):
    engine = database(tmp_path)
    access.add_key(engine, "a", "search")
    api = browser(small_app(engine, required=True, rate="2/minute"))
    assert [api.get("/thumbnails/0").status_code for _ in range(9)] == [404] * 9
    assert [api.get("/").status_code for _ in range(3)] == [200, 200, 429]
