"""The page, driven in a real browser against the real service."""

import ast
import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from makers.browsing import CHROMIUM, FLAGS, Server, Watch, build_animals, faults, hand_over, luminance, picture  # noqa: E402, I001
from rectrio_lib.app.routes import PAGE  # noqa: E402

expect = playwright.expect
expect.set_options(timeout=10_000)
pytestmark = [
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no browser at {CHROMIUM}"),
    pytest.mark.xdist_group("page"),
]
ODD = """<img src=x onerror="document.title='read as HTML'"> it's \\ odd"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(build_animals(tmp_path_factory.mktemp("page")))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Open the page; at the end no request has left this machine, and the console is empty."""
    contexts, watches = [], []

    def visit(path="", complains=False, prepare=None, **options):
        options = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "permissions": ["camera"]} | options
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.watch = Watch(page)
        watches.append((page.watch, complains))
        if prepare:
            prepare(page)
        page.goto(server.address + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    for watch, complains in watches:
        assert watch.hosts == {"127.0.0.1"}
        assert complains or watch.complaints == []


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


# --- opening


def test_page_opens_with_the_newest_images_and_no_scores(visit, server):
    page = visit()
    expect(page.locator("#status")).to_have_text("40 images, newest first")
    expect(cards(page)).to_have_count(24)
    assert scores(page) == []
    newest = [result["id"] for result in server.ask("search", "POST", {"k": 24})["results"]]
    assert cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)") == newest
    assert page.title() == "photos · RecTrio"
    assert page.watch.searches == [
        {"like": [], "without": [], "k": 24, "offset": 0, "sort": "score", "descending": True}
    ]


def test_policy_forbids_everything_inline_and_the_page_has_nothing_inline(visit, server):
    page = visit()
    policy = page.request.get(server.address).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?://", text.replace("http://www.w3", ""))
    assert not [path.name for path in PAGE.glob("*.js") if re.search(r"https?://(?!www\.w3\.org)", path.read_text())]


def test_every_address_is_relative_so_that_a_prefix_of_a_proxy_does_not_matter(visit, server):
    prefix, asked = "proxy/8000/", []

    def behind_a_proxy(page):
        def forward(route):
            asked.append(route.request.url)
            route.continue_(url=route.request.url.replace(prefix, "", 1))

        page.route("**/*", forward)

    page = visit(prefix, prepare=behind_a_proxy)
    expect(cards(page)).to_have_count(24)
    expect(page.locator("details")).not_to_have_count(0)
    cards(page).first.locator(".open").click()
    expect(page.locator("#viewer-image")).to_have_js_property("naturalWidth", 64)
    assert len(asked) > 20 and all(url.startswith(server.address + prefix) for url in asked)


def test_page_can_be_installed(visit, server):
    page = visit()
    manifest = page.locator("link[rel=manifest]").evaluate(
        "async (link) => ({...await (await fetch(link.href)).json(), at: link.href})"
    )
    assert manifest["display"] == "standalone" and manifest["start_url"] == "../"
    base = manifest["at"].rsplit("/", 1)[0]
    for icon in manifest["icons"]:
        answer = page.request.get(f"{base}/{icon['src']}")
        assert answer.ok and answer.headers["content-type"] == icon["type"]


def test_page_whose_scripts_are_kept_from_it_says_so(visit):
    page = visit(complains=True, prepare=lambda page: page.route("**/main.js", lambda route: route.abort()))
    expect(page.locator("#no-start")).to_be_hidden()
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")  # six seconds later
    expect(page.locator("#no-start")).to_be_visible()
    fine = visit()
    expect(fine.locator("#status")).to_be_visible()
    assert not fine.locator("#no-start").is_visible()


# --- asking


def test_chosen_images_are_one_query_and_the_same_image_is_the_best_result(visit):
    page = visit()
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    assert max(scores(page)) == scores(page)[0] > 0.98
    expect(cards(page).first.locator(".label")).to_have_text("cat")
    assert page.watch.searches[-1]["like"] == [{"file": 0}]
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(51), picture(52)])
    expect(page.locator("#chips li")).to_have_count(3)
    assert page.watch.searches[-1]["like"] == [{"file": 0}, {"file": 1}, {"file": 2}]


def test_file_that_is_no_image_is_not_sent(visit):
    page = visit()
    expect(cards(page)).to_have_count(24)
    page.locator("#chosen").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.locator("#toast")).to_contain_text("1 file is not an image")
    assert len(page.watch.searches) == 1


def test_large_photograph_is_made_smaller_before_it_is_sent(visit):
    page = visit()
    large = picture(3, 2000, "large.png")
    assert len(large["buffer"]) > 1 << 20
    with page.expect_request(lambda request: request.url.endswith("/search")) as sent:
        page.locator("#chosen").set_input_files([large])
    assert int(sent.value.all_headers()["content-length"]) < 400_000
    expect(page.locator("#status")).to_have_text("The best 24 of 40 images")
    assert scores(page)[0] > 0.97
    size = page.locator("#chips img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [1024, 1024]


def test_image_can_be_pasted(visit):
    page = visit()
    with new_search(page):
        hand_over(page, "paste", [picture(5)])
    assert scores(page)[0] > 0.98
    expect(page.locator("#chips li")).to_have_count(1)


def test_dropped_image_is_a_query_or_an_addition(visit):
    page = visit()
    expect(page.get_by_role("button", name="Add images")).to_be_visible()
    expect(page.locator("#drop")).to_be_hidden()
    hand_over(page, "dragenter", [picture(5)])
    expect(page.locator("#drop-ask")).to_be_visible()
    with new_search(page):
        hand_over(page, "drop", [picture(5)], "#drop-ask")
    expect(page.locator("#drop")).to_be_hidden()
    assert scores(page)[0] > 0.98
    hand_over(page, "dragenter", [picture(5)])
    hand_over(page, "drop", [picture(5, name="dropped.jpg")], "#drop-add strong")
    expect(page.locator("#adding")).to_be_visible()
    expect(page.locator("#add-files .name")).to_have_text("dropped.jpg")


def test_camera_takes_a_photograph_and_is_switched_off(visit):
    page = visit()
    page.get_by_role("button", name="Photo").click()
    with new_search(page):
        page.locator("#shutter").click()
    expect(page.locator("#camera")).to_be_hidden()
    assert page.locator("#camera video").evaluate("video => video.srcObject") is None
    expect(page.locator("#chips li")).to_have_count(1)
    assert page.locator("#chips img").evaluate("image => image.naturalWidth") >= 320
    assert len(scores(page)) == 24


def test_without_a_camera_the_one_of_the_device_is_offered(visit):
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };"
    page = visit(prepare=lambda page: page.add_init_script(refuse))
    page.get_by_role("button", name="Photo").click()
    expect(page.locator("#no-camera")).to_contain_text("does not allow")
    assert page.locator("#captured").get_attribute("capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.locator("#camera-app").click()
    with new_search(page):
        chooser.value.set_files(picture(4))
    expect(page.locator("#camera")).to_be_hidden()
    assert scores(page)[0] > 0.98


def test_words_and_an_image_are_one_query_and_each_can_be_turned_away_from(visit):
    page = visit()
    ask_words(page, "red cat")
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    assert page.watch.searches[-1]["like"] == [{"text": "red cat"}, {"file": 0}]
    liked = scores(page)
    sign = page.get_by_role("button", name="Without “red cat”")
    with new_search(page):
        sign.click()
    expect(sign).to_have_attribute("aria-pressed", "true")
    expect(sign).to_be_focused()
    assert page.watch.searches[-1]["without"] == [{"text": "red cat"}]
    assert scores(page) != liked
    with new_search(page):
        page.get_by_role("button", name="Remove “red cat”").click()
    assert page.watch.searches[-1]["without"] == []
    with new_search(page):
        page.get_by_role("button", name="Clear").click()
    expect(page.locator("#chips")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("40 images, newest first")


def test_words_that_the_encoder_does_not_know_are_explained(visit):
    page = visit(complains=True)  # the browser logs the status 4xx
    ask_words(page, "submarine")
    expect(page.locator("#empty")).to_contain_text("submarine")
    with new_search(page):
        page.get_by_role("button", name="Start anew").click()
    expect(cards(page)).to_have_count(24)


def test_encoder_that_reads_no_words_has_no_box_for_them(visit):
    def images_only(page):
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), "texts": False}))

    page = visit(prepare=images_only)
    expect(page.locator("#no-words")).to_contain_text("does not read words")
    expect(page.locator("#words")).to_be_hidden()
    expect(page.get_by_role("button", name="Image", exact=True)).to_be_visible()


# --- results


def test_more_like_this_and_without_this(visit):
    page = visit()
    first = cards(page).first
    name = first.get_attribute("data-id")
    first.hover()
    with new_search(page):
        first.get_by_role("button", name="More like this").click()
    assert page.watch.searches[-1]["like"] == [{"id": name}]
    assert name not in cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")
    assert scores(page) == sorted(scores(page), reverse=True)
    before, second = scores(page), cards(page).first
    other = second.get_attribute("data-id")
    second.hover()
    with new_search(page):
        second.get_by_role("button", name="Without this").click()
    query = page.watch.searches[-1]
    assert (query["like"], query["without"]) == ([{"id": name}], [{"id": other}])
    assert scores(page) != before
    expect(page.locator("#chips .away")).to_have_count(1)


def test_more_adds_the_next_page_without_repeating(visit):
    page = visit()
    with new_search(page):
        page.get_by_role("button", name="More", exact=True).click()
    expect(cards(page)).to_have_count(40)
    assert len(set(cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)"))) == 40
    assert page.watch.searches[-1]["offset"] == 24
    expect(page.locator("#more")).to_be_hidden()


def test_results_are_sorted_by_a_column_both_ways(visit):
    page = visit()
    with new_search(page):
        page.get_by_label("Sort").select_option("price")
    assert prices(page) == [390.0 - 10 * place for place in range(24)]
    with new_search(page):
        page.get_by_role("button", name="Descending order").click()
    assert prices(page) == [10.0 * place for place in range(24)]


def test_least_score_cuts_off_and_then_offers_the_nearest(visit):
    page = visit()
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    middle = round(sorted(scores(page))[12], 2)
    with new_search(page):
        page.get_by_label("Least score").fill(str(middle))
    assert 0 < len(scores(page)) < 24 and min(scores(page)) >= middle
    assert page.watch.searches[-1]["minimum"] == middle
    with new_search(page):
        page.get_by_label("Hide near copies").check()
    assert page.watch.searches[-1]["distinct"] == 0.98
    with new_search(page):
        page.get_by_label("Hide near copies").uncheck()
    assert "distinct" not in page.watch.searches[-1]
    with new_search(page):
        page.get_by_label("Least score").fill("1")
    expect(page.get_by_role("heading", name="Nothing scores 1.00 or more")).to_be_visible()
    with new_search(page):
        page.get_by_role("button", name="Show the nearest anyway").click()
    expect(cards(page)).to_have_count(24)


def test_details_show_on_hover_and_the_large_view_on_click(visit):
    page = visit()
    first = cards(page).first
    expect(first.locator(".details")).to_have_css("opacity", "0")
    first.hover()
    expect(first.locator(".details")).to_have_css("opacity", "1")
    expect(first.locator(".details")).to_contain_text("390")
    first.locator(".open").click()
    viewer = page.locator("#viewer")
    expect(viewer.get_by_role("heading", name="dog")).to_be_visible()
    expect(viewer.locator(".metadata")).to_contain_text("summer, sale")
    expect(viewer.locator(".metadata")).to_contain_text("64 × 64 pixels")
    expect(viewer.locator("#previous")).to_be_disabled()
    name = cards(page).nth(1).get_attribute("data-id")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator(".metadata")).to_contain_text(name)
    with new_search(page):
        viewer.get_by_role("button", name="More like this").click()
    expect(viewer).to_be_hidden()
    assert page.watch.searches[-1]["like"] == [{"id": name}]


# --- filters


def test_filters_hold_several_values_and_count_what_is_left(visit):
    page = visit()
    group = page.get_by_role("group", name="Label")
    with new_search(page):
        group.get_by_label("cat").check()
    expect(page.locator("#status")).to_have_text("20 match the filters")
    assert page.watch.searches[-1]["where"] == "label == 'cat'"
    expect(group.locator(".count")).to_have_text(["20", "20"])  # the dogs can still be chosen
    expect(page.get_by_role("group", name="Tags").locator(".count")).to_have_text(["20", "10"])
    with new_search(page):
        group.get_by_label("dog").check()
    expect(page.locator("#status")).to_have_text("40 match the filters")
    with new_search(page):
        page.get_by_role("group", name="Tags").get_by_label("sale").check()
    expect(page.locator("#status")).to_have_text("20 match the filters")
    with new_search(page):
        page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#status")).to_have_text("40 images, newest first")


def test_ranges_colours_and_dates_are_filters(visit, server):
    page = visit()
    with new_search(page):
        page.get_by_label("Lowest price").fill("300")
        page.get_by_label("Lowest price").dispatch_event("change")
    assert page.watch.searches[-1]["where"] == "price >= 300"
    assert min(prices(page)) == 300
    with new_search(page):
        page.get_by_role("button", name="Remove the filter Price").click()
    (colours,) = [column for column in server.ask("facets")["columns"] if column["kind"] == "colour"]
    best = colours["values"][0]
    box = page.get_by_role("group", name="Colour").get_by_label(best["value"])
    assert box.locator("xpath=../*[@class='swatch']").count() == 1
    with new_search(page):
        box.check()
    expect(page.locator("#status")).to_have_text(f"{best['count']} match the filters")
    with new_search(page):
        box.uncheck()
    dates = page.get_by_role("group", name="Created")
    with new_search(page):
        dates.get_by_label("From").fill("2025-01-30")
    with new_search(page):
        dates.get_by_label("To").fill("2025-01-31")
    expect(page.locator("#status")).to_have_text("2 match the filters")  # both days count


def test_filters_that_nothing_meets_can_be_cleared(visit):
    page = visit("#where=price+>+10000")
    expect(page.get_by_role("heading", name="No image meets these filters")).to_be_visible()
    expect(page.locator("#chosen-filters")).to_contain_text("price > 10000")  # no filter of the page, yet shown
    with new_search(page):
        page.get_by_role("button", name="Clear the filters").click()
    expect(cards(page)).to_have_count(24)


def test_filters_are_written_as_conditions_and_read_back(visit):
    page = visit()
    words = [
        "plain",
        "it's",
        'say "so"',
        "back\\slash",
        "new\nline\ttab",
        "\0\x1f",
        "été 猫",
        "x' or 'a' == 'a",
        "",
        "and",
    ]
    written = page.evaluate("async words => (await import('./page/conditions.js')).literal && words.map("
                            "(await import('./page/conditions.js')).literal)", words)  # fmt: skip
    assert [ast.literal_eval(text) for text in written] == words
    filters = [
        ["label", {"values": words}],
        ["one", {"values": ["it's"]}],
        ["flag", {"values": [True]}],
        ["tags", {"tags": True, "values": words[:3]}],
        ["tag", {"tags": True, "values": ["x"]}],
        ["price", {"from": -1.5, "to": 20}],
        ["created", {"dates": True, "from": "2024-02-28", "to": "2024-02-29"}],
    ]
    back = page.evaluate(
        """async (filters) => {
          const { build, parse } = await import('./page/conditions.js');
          const condition = build(new Map(filters), 'width > height or not label == "x"');
          const { filters: found, rest } = parse(condition);
          return [condition, [...found], rest, build(found, rest)];
        }""",
        filters,
    )
    assert back[1] == filters
    assert ast.dump(ast.parse(back[0], mode="eval")) == ast.dump(ast.parse(back[3], mode="eval"))
    assert "created < '2024-03-01'" in back[0]


# --- history, address


def test_history_repeats_and_deletes(visit, server):
    server.ask("history", "DELETE")
    page = visit()
    ask_words(page, "cat")
    ask_words(page, "dog")
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    with new_search(page):
        page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Your searches").click()
    past = page.locator(".past")
    expect(past).to_have_count(3)
    with new_search(page):
        past.nth(2).locator(".repeat").click()
    expect(page.locator("#history")).to_be_hidden()
    expect(page.locator("#chips .name")).to_have_text(["“cat”"])
    page.get_by_role("button", name="Your searches").click()
    expect(past).to_have_count(4)
    past.first.get_by_role("button", name="Delete the search").click()
    expect(past).to_have_count(3)
    assert len(server.ask("history")["searches"]) == 3
    page.get_by_role("button", name="Delete all").click()
    page.locator("#confirm").get_by_role("button", name="Cancel").click()
    expect(past).to_have_count(3)
    page.get_by_role("button", name="Delete all").click()
    page.locator("#confirm").get_by_role("button", name="Delete all").click()
    expect(page.locator("#history-none")).to_be_visible()
    assert server.ask("history")["searches"] == []


def test_search_is_kept_by_reload_and_back(visit):
    page = visit()
    ask_words(page, "cat")
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label("dog").check()
    kept = scores(page)
    page.reload()
    expect(page.locator("#status")).to_have_text("The best 20 of 20 images")
    assert scores(page) == kept
    expect(page.get_by_role("group", name="Label").get_by_label("dog")).to_be_checked()
    with new_search(page):
        page.go_back()
    expect(page.locator("#status")).to_have_text("The best 24 of 40 images")
    cards(page).nth(2).locator(".open").click()
    expect(page.locator("#viewer")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#chips .name")).to_have_text(["“cat”"])


# --- owners


def test_images_are_added_with_metadata_and_each_file_has_a_status(visit, server):
    page = visit()
    page.get_by_role("button", name="Add images").click()
    dialog = page.locator("#adding")
    broken = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
    files = [picture(200, name="new.jpg"), picture(200, name="again.jpg"), broken]
    page.locator("#add-chosen").set_input_files(files)
    dialog.get_by_label("Label").fill("bird")
    dialog.get_by_label("Price").fill("7.5")
    dialog.get_by_label("Tags").fill("winter, new ,")
    with page.expect_response(lambda answer: answer.url.endswith("/upload")) as sent:
        dialog.get_by_role("button", name="Add 3 images").click()
    expect(dialog.locator(".file")).to_have_count(3)
    expect(dialog.locator("#add-summary")).to_have_text("1 added, 1 already there, 1 refused")
    expect(dialog.locator(".file .state").first).to_have_text("Added")
    expect(dialog.locator(".file .state").last).to_contain_text("Refused: ")
    (added,) = [one["id"] for one in sent.value.json()["images"] if one["status"] == "added"]
    metadata = server.ask(f"images/{added}")["metadata"]
    assert (metadata["label"], metadata["price"], metadata["tags"]) == ("bird", 7.5, ["winter", "new"])
    dialog.get_by_role("button", name="Close").last.click()
    expect(page.locator("#status")).to_have_text("41 images, newest first")
    expect(cards(page).first.locator(".label")).to_have_text("bird")
    expect(page.get_by_role("group", name="Label").get_by_label("bird")).to_be_visible()
    server.ask(f"images/{added}", "DELETE")


def test_many_images_are_sent_in_parts_and_what_was_not_sent_can_be_sent_again(visit, server):
    page, sizes = visit(complains=True), []

    def count_and_break_the_second(route):
        sizes.append(route.request.post_data_buffer or b"")
        if len(sizes) == 2:
            return route.abort()
        names = [f"{number}.jpg" for number in range(8 if len(sizes) < 3 else 4)]
        answer = [{"name": name, "status": "known", "id": "0"} for name in names]
        return route.fulfill(json={"images": answer})

    page.route("**/upload", count_and_break_the_second)
    page.get_by_role("button", name="Add images").click()
    dialog = page.locator("#adding")
    page.locator("#add-chosen").set_input_files([picture(number) for number in range(12)])
    dialog.get_by_role("button", name="Leave out 0.jpg").click()
    page.locator("#add-chosen").set_input_files([picture(0)])
    dialog.get_by_role("button", name="Add 12 images").click()
    expect(dialog.locator("#add-summary")).to_contain_text("8 already there")
    dialog.get_by_role("button", name="Add 4 images").click()
    expect(dialog.locator("#add-summary")).to_have_text("12 already there")
    assert len(sizes) == 3
    box = dialog.bounding_box()
    page.mouse.click(box["x"] + 6, box["y"] + 6)  # its own margin
    expect(dialog).to_be_visible()
    page.mouse.click(box["x"] - 20, box["y"] + 20)
    expect(dialog).to_be_hidden()


def test_empty_collection_offers_to_add_images(visit):
    nothing = {"results": [], "total": 0, "next": None, "search": None, "seconds": 0, "random_weights": False}

    def empty(page):
        page.route("**/search", lambda route: route.fulfill(json=nothing))
        page.route("**/facets", lambda route: route.fulfill(json={"total": 0, "columns": []}))

    page = visit(prepare=empty)
    expect(page.get_by_role("heading", name="This collection has no images yet")).to_be_visible()
    page.locator("#empty").get_by_role("button", name="Add images").click()
    expect(page.locator("#adding")).to_be_visible()


def add(page, server, seed, **metadata):
    """Add an image by the API and return its id."""
    fields = {"files": picture(seed), "metadata": json.dumps(metadata)}
    return page.request.post(f"{server.address}upload", multipart=fields).json()["images"][0]["id"]


def test_image_is_edited_and_deleted(visit, server):
    page = visit()
    name = add(page, server, 201, label="fish", price=3, tags=["wet"])
    page.reload()
    cards(page).first.locator(".open").click()
    viewer = page.locator("#viewer")
    viewer.get_by_role("button", name="Edit").click()
    viewer.get_by_label("Label").fill("eel")
    viewer.get_by_label("Price").fill("")
    with page.expect_request(lambda request: request.method == "PATCH") as sent:
        viewer.get_by_role("button", name="Save").click()
    assert sent.value.post_data_json == {"label": "eel", "price": None}
    expect(viewer.get_by_role("heading", name="eel")).to_be_visible()
    metadata = server.ask(f"images/{name}")["metadata"]
    assert (metadata["label"], metadata["tags"], "price" in metadata) == ("eel", ["wet"], False)
    viewer.get_by_role("button", name="Delete").click()
    page.locator("#confirm").get_by_role("button", name="Cancel").click()
    assert server.ask(f"images/{name}")["id"] == name
    viewer.get_by_role("button", name="Delete").click()
    page.locator("#confirm").get_by_role("button", name="Delete the image").click()
    expect(viewer.get_by_role("heading", name="dog")).to_be_visible()  # the next one
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("40 images, newest first")
    assert server.ask("search", "POST", {"k": 1})["total"] == 40


def test_who_may_only_search_sees_no_buttons_to_write(visit):
    def reader(page):
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), "scopes": ["search"]}))

    page = visit(prepare=reader)
    expect(page.locator("#collection")).to_have_text("photos")
    cards(page).first.locator(".open").click()
    expect(page.get_by_role("button", name="More like this").last).to_be_visible()
    for control in ("#add", "#edit", "#delete"):
        expect(page.locator(control)).to_be_hidden()


def test_names_with_html_are_text(visit, server):
    page = visit()
    name = add(page, server, 202, label=ODD, category=ODD, tags=["<b>bold</b>"])
    page.reload()
    expect(cards(page).first.locator(".label")).to_have_text(ODD)
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label(ODD).check()
    expect(page.locator("#status")).to_have_text("1 match the filters")
    expect(page.locator("#chosen-filters")).to_contain_text(ODD)
    cards(page).first.hover()
    with new_search(page):
        cards(page).first.get_by_role("button", name="More like this").click()
    expect(page.locator("#chips .name")).to_have_text(ODD)
    page.goto(f"{server.address}#show={name}")
    page.reload()
    expect(page.locator("#viewer-title")).to_have_text(ODD)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Add images").click()
    page.locator("#add-chosen").set_input_files([picture(1, name="<b>x</b>.jpg")])
    expect(page.locator("#add-files .name")).to_have_text("<b>x</b>.jpg")
    assert page.locator("b").count() == 0 and "read as HTML" not in page.title()
    server.ask(f"images/{name}", "DELETE")


# --- looks and hands


def test_phone_has_two_columns_no_sideways_scrolling_and_filters_in_a_sheet(visit):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = visit(**phone)
    expect(cards(page)).to_have_count(24)
    ask_words(page, "cat")
    for opened in (None, "#open-history", "#add", "#photograph", ".card .open"):
        if opened:
            page.locator(opened).first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for dialog in page.locator("dialog[open]").all():
            box = dialog.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390
            assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth")
            page.keyboard.press("Escape")
    widths = {round(card.bounding_box()["x"]) for card in cards(page).all()[:4]}
    assert len(widths) == 2
    page.get_by_role("button", name="Filters").click()
    sheet = page.locator("#filter-sheet")
    with new_search(page):
        sheet.get_by_label("dog").check()
    sheet.get_by_role("button", name="Show the results").click()
    expect(sheet).to_be_hidden()
    expect(page.locator("#status")).to_have_text("The best 20 of 20 images")
    expect(page.get_by_role("button", name="Filters, 1 in use")).to_be_visible()


def test_dark_follows_the_system_until_it_is_chosen_and_is_remembered(visit):
    dark, light = visit(color_scheme="dark"), visit(color_scheme="light")
    assert luminance(dark) < 60 and luminance(light) > 200
    switch = light.get_by_role("button", name="Dark", exact=True)
    expect(switch).to_have_attribute("aria-pressed", "false")
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "true")
    assert luminance(light) < 60
    light.reload()
    assert luminance(light) < 60


def test_keyboard_alone_is_enough(visit):
    page = visit()
    expect(cards(page)).to_have_count(24)
    page.keyboard.press("/")
    expect(page.get_by_role("textbox", name="Words")).to_be_focused()
    page.keyboard.type("cat")
    with new_search(page):
        page.keyboard.press("Enter")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.card .open')"):
            break
    expect(cards(page).first.locator(".open")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    second = cards(page).nth(1)
    expect(second.locator(".open")).to_be_focused()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    for _ in range(12):  # the focus stays in the dialog
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(second.locator(".open")).to_be_focused()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    expect(page.locator("#chips .name")).to_have_text(["“cat”"])
    second.locator(".open").focus()
    page.keyboard.press("Tab")
    name = second.get_attribute("data-id")
    with new_search(page):
        page.keyboard.press("Enter")
    assert page.watch.searches[-1]["like"] == [{"id": name}]


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))])
def test_axe_finds_no_serious_fault(visit, scheme, rules):
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("details")).not_to_have_count(0)
    assert faults(page, *rules) == []
    ask_words(page, "cat")
    ask_words(page, "dog")
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label("dog").check()
    with new_search(page):
        page.get_by_role("button", name="Without “cat”").click()
    expect(page.locator("#filter-side .dot")).to_have_count(1)
    assert faults(page, *rules) == []
    opened = {"#add": "#add-send", "#open-history": ".past", "#photograph": "[data-state=live]", ".open": ".metadata"}
    for button, ready in opened.items():
        page.locator(button).first.click()
        page.locator(ready).first.wait_for()
        if button == "#add":
            page.locator("#add-chosen").set_input_files([picture(1)])
        assert faults(page, *rules) == []
        if button != ".open":
            page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit").click()
    assert faults(page, *rules) == []


# --- trouble


def test_server_gone_and_back(visit, server):
    page = visit(complains=True)  # the browser logs that nobody answers
    expect(cards(page)).to_have_count(24)
    server.stop()
    try:
        page.get_by_role("textbox", name="Words").fill("cat")
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_contain_text("The service does not answer")
        expect(page.locator("#chips .name")).to_have_text(["“cat”"])
        expect(page.locator("#trouble .clock")).to_contain_text("Next try in")
    finally:
        server.start()
    expect(page.locator("#status")).to_have_text("The best 24 of 40 images", timeout=15_000)  # by itself
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#toast")).to_contain_text("The service is back")


def test_page_that_was_opened_while_the_service_was_busy_waits_and_completes(visit):
    def busy_once(page):
        detail = {"title": "", "status": 429, "detail": "More than 60 per 1 minute."}
        answer = {"status": 429, "headers": {"Retry-After": "1"}, "json": detail}
        page.route("**/search", lambda route: route.fulfill(**answer), times=1)
        page.route("**/about", lambda route: route.fulfill(**answer), times=1)
        page.route("**/facets", lambda route: route.fulfill(**answer), times=1)

    page = visit(complains=True, prepare=busy_once)
    expect(page.locator("#trouble")).to_contain_text("Too many requests")
    expect(page.locator("#trouble")).to_contain_text("More than 60 per 1 minute.")
    expect(cards(page)).to_have_count(24)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#collection")).to_have_text("photos")
    expect(page.get_by_role("group", name="Label")).to_be_visible()


def test_without_a_session_the_page_says_where_to_get_one(visit):
    def unknown(page):
        detail = {"title": "", "status": 401, "detail": "This needs a key."}
        for path in ("search", "about", "facets"):
            page.route(f"**/{path}", lambda route: route.fulfill(status=401, json=detail))

    page = visit(complains=True, prepare=unknown)
    expect(page.locator("#empty")).to_contain_text("one-time link")
    expect(cards(page)).to_have_count(0)


def test_results_that_mean_nothing_are_marked(visit):
    def untrained(page):
        flags = {"random_weights": True, "generated_images": True}
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), **flags}))

    page = visit(prepare=untrained)
    expect(page.locator("#warnings")).to_contain_text("scores and order mean nothing")
    expect(page.locator("#warnings")).to_contain_text("drawings")
    assert faults(page) == []
