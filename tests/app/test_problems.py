"""Errors become problems with the right status, and tell nothing about the inside of the service."""

import errno
import json
import logging

import pytest
from fastapi import FastAPI
from makers.service import browser, database, small_app
from sqlalchemy import create_engine, exc, text
from starlette import formparsers
from starlette.exceptions import HTTPException

from rectrio_lib.app.schemas import Uploaded
from rectrio_lib.app.web import problems
from rectrio_lib.core import errors


@pytest.fixture
def app(tmp_path):
    return small_app(database(tmp_path))


def fail(app, error):
    app.state.error = error
    return browser(app).get("/fails")


def sql(kind):
    return kind("select secret from keys", {"hash": "x"}, Exception("disk I/O error at /srv/db.sqlite"))


KNOWN = [
    (errors.ArgumentError("k = 0 is out of range."), 400), (errors.RecallOutOfReachError("0.99 is out of reach."), 400),
    (errors.MissingArtefactError("There is no image x."), 404), (errors.DataError("card.json is damaged."), 503),
    (errors.MissingPackageError("pip install x"), 503), (errors.DownloadError("refused"), 503),
    (errors.StoreInUseError("in use"), 503), (errors.OutOfMemoryError("batch too large"), 503),
    (errors.StorageError("cannot be written"), 507), (errors.ChapterError("x"), 503), (errors.RectrioError("x"), 503),
    (OSError(errno.ENOSPC, "No space left on device"), 507), (OSError(errno.EROFS, "Read-only file system"), 507),
    (OSError(errno.EPERM, "no"), 500), (ValueError("x"), 500), (KeyError("x"), 500), (RecursionError(), 500),
    (sql(exc.OperationalError), 503), (sql(exc.InterfaceError), 503), (sql(exc.InternalError), 503),
    (sql(exc.DatabaseError), 503), (exc.TimeoutError("pool"), 503), (sql(exc.IntegrityError), 500),
    (HTTPException(404, "There is no such search."), 404), (HTTPException(418), 418),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status"), KNOWN, ids=lambda value: getattr(value, "__class__", value).__name__)
def test_every_error_has_its_status(app, error, status, caplog):
    answer = fail(app, error)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail"} and answer.json()["type"] == "about:blank"
    assert ("retry-after" in answer.headers) == (status == 503)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (status >= 500) and all(record.exc_info for record in logged)


@pytest.mark.parametrize(("error", "status"), KNOWN)
def test_what_the_caller_cannot_mend_is_told_without_details(app, error, status):
    said = fail(app, error).json()["detail"]
    if status >= 500:
        assert not [word for word in ("/srv", "secret", "select", "card.json", "batch", "Errno") if word in said]
    elif isinstance(error, errors.RectrioError):
        assert said == str(error)


@pytest.mark.parametrize(
    ("said", "left"),
    [("There is no index 'x' in /home/anna/indexes (so far).", "There is no index 'x' in indexes (so far)."),
     ("C:\\Users\\anna\\x.npy is damaged.", "x.npy is damaged."), ("/x is gone", "/x is gone"),
     ("'/a/b/c.jpg' is no image", "'c.jpg' is no image"), ("cats/01.jpg and price/2", "cats/01.jpg and price/2"),
     ("see https://example.org/a/b", "see https://example.org/a/b")],
)  # fmt: skip
def test_folders_of_the_service_are_not_told(app, said, left):
    assert fail(app, errors.ArgumentError(said)).json()["detail"] == left


def test_headers_of_an_error_are_kept(app):
    answer = fail(app, HTTPException(503, "The queue is full.", {"Retry-After": "2"}))
    assert (answer.headers["retry-after"], answer.json()["detail"]) == ("2", "The queue is full.")


def test_unknown_routes_and_methods_are_problems_too(app):
    answers = [browser(app).get("/nowhere"), browser(app).put("/who"), browser(app).put("/session")]
    assert [answer.json()["status"] for answer in answers] == [404, 405, 405]
    assert [answer.headers["allow"] for answer in answers[1:]] == ["GET", "GET, DELETE"]


def test_invalid_requests_name_the_fields_and_not_their_values(app):
    answer = browser(app).post("/json", json=["SECRET", 1, {}])
    assert answer.status_code == 422
    assert "body.0: " in answer.json()["detail"] and "body.2: " in answer.json()["detail"]
    assert "SECRET" not in answer.text
    many = browser(app).post("/json", json=["x"] * 5_000)
    assert many.status_code == 422 and len(many.content) < 2_000 and "4995 more" in many.json()["detail"]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'["\\ud800"]', b'{"\\ud800": 1}', b"[1e999]", b"[" * 50_000, b"nan", b""]
)
def test_no_json_breaks_the_answer(app, body):
    answer = browser(app).post("/json", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and json.loads(answer.content)["status"] == answer.status_code


def test_detail_is_short_and_can_be_written():
    answer = problems.problem(400, "x\ud800" * 5_000, headers={"Retry-After": "5"})
    assert len(json.loads(answer.body)["detail"]) == 600 and answer.headers["retry-after"] == "5"


def test_problem_of_an_upload_says_what_became_of_each_file():
    answer = problems.problem(415, "no image", [Uploaded(name="x", status="refused", id=None, reason="no image")])
    (image,) = json.loads(answer.body)["images"]
    assert (image["name"], image["status"], image["reason"]) == ("x", "refused", "no image")


def test_real_read_only_and_full_databases_are_unavailable_and_well_again(app, tmp_path):
    file = tmp_path / "other.sqlite"
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(text("create table t (x blob)"))
        pages = connection.execute(text("pragma page_count")).scalar()

    def write(url, *first):
        with create_engine(url).begin() as connection:
            for statement in (*first, "insert into t values (zeroblob(100000))"):
                connection.execute(text(statement))

    for url, *first in (
        (f"sqlite:///file:{file}?mode=ro&uri=true",),
        (f"sqlite:///{file}", f"pragma max_page_count = {pages}"),
    ):
        with pytest.raises(exc.OperationalError) as failed:
            write(url, *first)
        answer = fail(app, failed.value)
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
    write(f"sqlite:///{file}")


def test_disk_that_fills_up_while_a_body_is_kept_is_told_as_such(app, monkeypatch):
    class Full:
        def __init__(self, **_):
            self._rolled = True

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
    assert browser(app).post("/files", files={"file": bytes(100)}).status_code == 507


def test_openapi_says_that_every_route_may_answer_with_a_problem(app):
    described = app.openapi()
    reference = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operations = [o for path in described["paths"].values() for o in path.values()]
    assert len(operations) >= 8
    for operation in operations:
        assert "422" not in operation["responses"]
        assert [operation["responses"][kind]["content"] for kind in ("4XX", "5XX")] == [reference, reference]
    assert {"Problem", "Uploaded"} <= set(described["components"]["schemas"])
    assert described["components"]["schemas"]["Problem"]["properties"]["status"]["type"] == "integer"
    assert app.openapi() is described


def test_openapi_says_whether_a_key_is_needed(app, tmp_path):
    from rectrio_lib.app.web import access

    engine = database(tmp_path)
    access.add_key(engine, "a", "search")
    guarded = small_app(engine, "0.0.0.0").openapi()["paths"]["/who"]["get"]["security"]
    assert (guarded, app.openapi()["paths"]["/who"]["get"]["security"]) == (
        [{"HTTPBearer": []}],
        [{"HTTPBearer": []}, {}],
    )


def test_problems_need_no_shield():
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fails():
        raise RuntimeError("secret")

    answer = browser(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, answer.json()["status"]) == (500, 500) and "secret" not in answer.text
