"""A small collection and its service; and a browser, of a module, for an open Playwright forbids asyncio to others."""

import pytest
from makers.served import application, build_collection, client, copied
from makers.service import database


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Let a service look for what other processes changed ten times a second."""
    monkeypatch.setattr("rectrio_lib.app.upkeep.POLL_SECONDS", 0.1)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return build_collection(tmp_path_factory.mktemp("template")).workspace.root


@pytest.fixture
def collection(template, tmp_path):
    return copied(template, tmp_path)


@pytest.fixture
def api(collection):
    with client(application(collection)) as opened:
        yield opened


@pytest.fixture
def engine(tmp_path):
    return database(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve forty images of cats and dogs."""
    from makers.browsing import Server, build_animals

    server = Server(build_animals(tmp_path_factory.mktemp("page")))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def nothing_said(server):
    """Start with nothing kept, and with history on."""
    server.ask("history", "PUT", {"keep": True})
    for path in ("feedback", "history"):
        server.ask(path, "DELETE")
    for one in server.ask("saved")["saved"]:
        server.ask(f"saved/{one['id']}", "DELETE")


@pytest.fixture
def ids(server):
    return [result["id"] for result in server.ask("search", "POST", {"k": 40})["results"]]


@pytest.fixture(scope="module")
def browser():
    """Start a browser with a camera that shows a moving pattern."""
    from makers.browsing import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Open the page and wait until it is shown; at the end no request has left this machine, and the console is empty.

    Until then what is hidden neither takes the focus nor has faults.
    """
    from makers.browsing import Watch

    contexts, watches = [], []

    def visit(path="", complains=False, prepare=None, until="body:not(.starting)", **options):
        options = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "permissions": ["camera"]} | options
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.watch = Watch(page)
        watches.append((page.watch, complains))
        if prepare:
            prepare(page)
        page.goto(server.address + path)
        page.locator(until).wait_for(state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    for watch, complains in watches:
        assert watch.hosts == {"127.0.0.1"}
        assert complains or watch.complaints == []
