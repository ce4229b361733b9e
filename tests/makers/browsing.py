"""A service on a port of this machine, and a browser that opens its page."""

import io
import json
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import uvicorn

from makers.images import photograph
from makers.served import build_collection
from makers.texts import dual
from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.database import open_database
from rectrio_lib.search.collection import Collection

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=10_000)

CHROMIUM = "/usr/bin/chromium"
BROWSING = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no browser at {CHROMIUM}"),
    pytest.mark.xdist_group("page"),
]
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
AXE = Path(__file__).parents[1] / "app" / "axe" / "axe.min.js"
EACH = 20  # cats, and as many dogs; cat 0 costs nothing, the last dog 390


def build_animals(root: Path) -> Collection:
    """Cats and dogs, one more each day of 2025; words can be asked."""
    encoder = dual(vocabulary=["cat", "dog", "red"], channels=3)
    days = pd.date_range("2025-01-01", periods=2 * EACH, freq="D").strftime("%Y-%m-%d")
    return build_collection(root, EACH, "flat", "dual", encoder, created=days)


class Server:
    """Serves a collection on a free port of this machine; may stop, and come back on the same port."""

    def __init__(self, collection: Collection):
        self.collection, self.engine = collection, open_database(workspace=collection.workspace)
        self.port, self.server, self.thread = 0, None, None

    def start(self):
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        app = create_app(self.collection, self.engine)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path, method="GET", body=None):
        """Return what the API answers, without the page."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
            return json.loads(text) if text else None


def picture(seed: int, side: int = 64, name: str = "") -> dict:
    """A JPEG to choose, or a PNG by its name; that of a seed looks like the collection's image of this number."""
    data, kind = io.BytesIO(), "png" if name.endswith(".png") else "jpeg"
    photograph(seed, side).save(data, kind, quality=95)
    return {"name": name or f"{seed}.jpg", "mimeType": f"image/{kind}", "buffer": data.getvalue()}


def hand_over(page, kind: str, files: list[dict], target: str = "body"):
    """Paste or drop files, as the events that a browser makes of it."""
    plain = [{**file, "buffer": list(file["buffer"])} for file in files]
    page.evaluate(
        """([kind, files, target]) => {
          const carried = new DataTransfer();
          for (const { name, mimeType, buffer } of files) {
            carried.items.add(new File([new Uint8Array(buffer)], name, { type: mimeType }));
          }
          const options = { bubbles: true, cancelable: true };
          const element = document.querySelector(target);
          if (kind === 'paste') {
            element.dispatchEvent(new ClipboardEvent('paste', { ...options, clipboardData: carried }));
          } else {
            for (const name of kind === 'drop' ? ['dragover', 'drop'] : [kind]) {
              element.dispatchEvent(new DragEvent(name, { ...options, dataTransfer: carried }));
            }
          }
        }""",
        [kind, plain, target],
    )


SETTLED = """Promise.allSettled(document.getAnimations()
  .filter(one => one.effect.getComputedTiming().endTime < 5000).map(one => one.finished)).then(() => null)"""


def faults(page, *rules: str) -> list[str]:
    """Serious and critical faults that axe-core finds on the page as it is, by all its rules or these."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    page.evaluate(SETTLED)  # colours on their way to others have any contrast
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


RECORD = """
window.queries = [];
const send = window.fetch;
window.fetch = (url, options = {}) => {
  const { body } = options;
  if (String(url).endsWith('/search')) window.queries.push(body instanceof FormData ? body.get('query') : body);
  return send(url, options);
};
"""  # the browser does not hand out bodies that hold files


def delay(page, pattern: str, milliseconds: int):
    """Let the requests whose method and address match leave later, as those of a slow network."""
    page.add_init_script(
        f"""{{
          const send = window.fetch;
          window.fetch = async (url, options = {{}}) => {{
            const matches = new RegExp({json.dumps(pattern)}).test(`${{options.method ?? 'GET'}} ${{url}}`);
            if (matches) await new Promise((resolve) => setTimeout(resolve, {milliseconds}));
            return send(url, options);
          }};
        }}"""
    )


def first(page, requests: list):
    """Return the first of the requests that are noted in a list; the page may not have asked yet."""
    deadline = time.monotonic() + 15
    while not requests and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    return requests[0]


def held(page, path, method="GET"):
    """Ask the service at once, but keep its answers from the page; return what lets them through, older ones first."""
    answers = []

    def hold(route):
        answers.append((route, route.fetch())) if route.request.method == method else route.continue_()

    page.route(path, hold)

    def release():
        first(page, answers)
        for route, answer in answers:
            route.fulfill(response=answer)
        page.unroute(path)

    return release


class Watch:
    """What a page asks for, and what it complains of."""

    def __init__(self, page):
        self.page, self.hosts, self.complaints = page, set(), []
        page.add_init_script(RECORD)
        page.on("request", self._asked)
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _asked(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data"):
            self.hosts.add(parts.hostname)

    @property
    def searches(self):
        """The queries of the searches since the page was loaded, oldest first."""
        return [json.loads(query) for query in self.page.evaluate("window.queries")]


def luminance(page, selector="body") -> float:
    """How light the background of an element is, from 0 to 255."""
    colour = page.locator(selector).evaluate("element => getComputedStyle(element).backgroundColor")
    return float(np.mean([float(part) for part in colour.strip("rgba()").split(",")[:3]]))


def cards(page):
    return page.locator(".card:not(.skeleton)")


@contextmanager
def new_search(page):
    """Wait for the answer to the search that is started inside, and for its results."""
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        yield
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def ask_words(page, words):
    page.get_by_role("textbox", name="Words").fill(words)
    with new_search(page):
        page.keyboard.press("Enter")


def scores(page):
    return [float(text) for text in page.locator(".card .score").all_inner_texts()]


def prices(page):
    ids = cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")
    return page.evaluate(
        "ids => Promise.all(ids.map(async (id) => (await (await fetch(`images/${id}`)).json()).metadata.price))", ids
    )


def add(page, server, seed, **metadata):
    """Add an image by the API and return its id."""
    fields = {"files": picture(seed), "metadata": json.dumps(metadata)}
    return page.request.post(f"{server.address}upload", multipart=fields).json()["images"][0]["id"]


def judge(page, place, kind):
    """Press one of the buttons of a card, and wait until the service knows."""
    card = cards(page).nth(place)
    card.hover()
    with page.expect_response(lambda answer: answer.url.endswith("/feedback")):
        card.locator(f"[data-judge={kind}]").click()
    return card.get_attribute("data-id")


def feed(page):
    with page.expect_response(lambda answer: answer.url.endswith("/recommend")) as answer:
        page.locator("#for-you").click()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    return answer.value.json()
