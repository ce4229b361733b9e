"""The commands about keys and the port: what they print, once, and that they stay fast."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from makers import commands
from makers.service import bearer, browser, small_app
from sqlalchemy import text

from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.server import listen
from rectrio_lib.core.errors import ArgumentError

ROOT = Path(__file__).parents[2]


def well(*arguments):
    return commands.well("keys", *arguments)


def test_key_is_printed_once_and_works():
    secret = well("add", "anna", "--scope", "search,write", "--rate", "60/minute", "--days", "30").strip()
    assert secret.startswith("rectrio_") and "\n" not in secret
    listed = well("list")
    assert secret not in listed and listed.split()[:5] == ["name", "scopes", "rate", "created", "expires"]
    assert listed.split()[5:8] == ["anna", "search,write", "60/minute"]
    service = small_app(open_database(), "0.0.0.0")
    assert browser(service).get("/who", headers=bearer(secret)).json() == {
        "name": "anna",
        "scopes": ["search", "write"],
    }
    assert well("remove", "anna").split() == ["removed", "anna"]
    assert well("list").strip() == "none"
    assert browser(service).get("/who", headers=bearer(secret)).status_code == 401


def test_key_may_search_by_default():
    well("add", "anna")
    assert "anna  search" in well("list")


def test_link_opens_the_page():
    well("add", "me")
    link = well("link", "anna", "--scope", "search", "--address", "https://photos.example.org/some/where/").strip()
    start, token = link.split("session?token=")
    assert start == "https://photos.example.org/some/where/"
    client = browser(small_app(open_database(), "0.0.0.0"))
    assert client.get(f"/session?token={token}").url.path == "/"
    assert client.get("/who").json()["name"].startswith("anna:")


@pytest.mark.parametrize(
    "arguments",
    [("add", "a/b"), ("add", "a", "--scope", "root"), ("add", "a", "--rate", "fast"), ("add", "a", "--days", "0"),
     ("remove", "nobody"), ("link", "a", "--scope", ""),
     ("link", "a", "--address", "photos.example.org")],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(arguments):
    result = commands.rectrio("keys", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("rectrio: ")


@pytest.mark.parametrize(
    ("database", "reason"),
    [("sqlite:////absent/service.sqlite", "unable to open"), ("sqlite:///pyproject.toml", "not a database"),
     ("postgresql://anna@127.0.0.1:9/service", "refused")],
)  # fmt: skip
def test_a_database_that_cannot_be_used_is_told_in_one_line(monkeypatch, database, reason):
    if database.startswith("postgresql"):
        pytest.importorskip("psycopg")
    monkeypatch.setenv("RECTRIO_DATABASE", database)
    result = commands.rectrio("keys", "list")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert reason in result.stderr and "RECTRIO_DATABASE" in result.stderr and "bug" not in result.stderr


def test_outputs_that_cannot_be_made_are_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "file" / "outputs"))
    result = commands.rectrio("keys", "list")
    assert result.exit_code == 1 and "set RECTRIO_OUTPUTS" in result.stderr and "bug" not in result.stderr


def test_another_database_is_named_by_the_environment(monkeypatch, tmp_path):
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    monkeypatch.setenv("RECTRIO_DATABASE", url)
    well("add", "anna")
    with open_database(url).connect() as connection:
        assert connection.execute(text("select name from keys")).scalars().all() == ["anna"]


def test_help_loads_nothing_of_the_service():
    code = "import sys; from rectrio_lib.cli import app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "rectrio_lib.cli.serve" in loaded
    assert {"fastapi", "sqlalchemy", "sqlmodel", "limits", "uvicorn", "pydantic", "torch", "numpy"}.isdisjoint(loaded)


def test_missing_packages_are_named_with_the_extra_that_brings_them():
    run = "sys.argv = ['rectrio', 'keys', 'list']; app()"
    code = f"import sys; sys.modules['sqlmodel'] = None; from rectrio_lib.cli.app import app; {run}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "rectrio[app]" in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_or_none_is_told_in_short():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentError, match=rf"^127.0.0.1:{port} cannot be listened on \([^()]+\): choose another"):
            listen("127.0.0.1", port)
    with pytest.raises(ArgumentError, match=r"^127.0.0.1:99999 .* must be 0-65535\): choose another port"):
        listen("127.0.0.1", 99999)
