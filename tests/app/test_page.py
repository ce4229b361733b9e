"""Searching on the page, driven in a real browser against the real service: opening, asking, results, filters."""

import ast
import re
import time

import pytest
from makers.browsing import BROWSING, ask_words, cards, delay, expect, hand_over, new_search, picture, prices, scores

from rectrio_lib.app.routes import PAGE

pytestmark = BROWSING


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


def test_policy_forbids_everything_inline_and_the_page_has_nothing_inline_and_can_be_installed(visit, server):
    page = visit()
    policy = page.request.get(server.address).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?://", text.replace("http://www.w3", ""))
    assert not [path.name for path in PAGE.glob("*.js") if re.search(r"https?://(?!www\.w3\.org)", path.read_text())]
    manifest = page.locator("link[rel=manifest]").evaluate(
        "async (link) => ({...await (await fetch(link.href)).json(), at: link.href})"
    )
    assert manifest["display"] == "standalone" and manifest["start_url"] == "../"
    base = manifest["at"].rsplit("/", 1)[0]
    for icon in manifest["icons"]:
        answer = page.request.get(f"{base}/{icon['src']}")
        assert answer.ok and answer.headers["content-type"] == icon["type"]


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


def test_page_whose_scripts_are_kept_from_it_says_so(visit):
    def refuse(page):
        page.route("**/main.js", lambda route: route.abort())

    page = visit(complains=True, prepare=refuse, until="body.starting")
    expect(page.locator("#no-start")).to_be_hidden()
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")  # six seconds later
    expect(page.locator("#no-start")).to_be_visible()
    fine = visit()
    expect(fine.locator("#status")).to_be_visible()
    assert not fine.locator("#no-start").is_visible()


# --- asking


def test_chosen_images_are_one_query_and_the_same_image_is_the_best_result_and_what_is_no_image_is_not_sent(visit):
    page = visit()
    expect(cards(page)).to_have_count(24)
    page.locator("#chosen").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.locator("#toast")).to_contain_text("1 file is not an image")
    assert len(page.watch.searches) == 1
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    assert max(scores(page)) == scores(page)[0] > 0.98
    expect(cards(page).first.locator(".label")).to_have_text("cat")
    assert page.watch.searches[-1]["like"] == [{"file": 0}]
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(51), picture(52)])
    expect(page.locator("#chips li")).to_have_count(3)
    assert page.watch.searches[-1]["like"] == [{"file": 0}, {"file": 1}, {"file": 2}]


def test_large_photograph_is_made_smaller_before_it_is_sent(visit):
    page = visit()
    large = picture(3, 2000, "large.png")
    assert len(large["buffer"]) > 1 << 20
    with page.expect_request(lambda request: request.url.endswith("/search")) as sent:
        page.locator("#chosen").set_input_files([large])
    assert int(sent.value.all_headers()["content-length"]) < 400_000
    expect(page.locator("#status")).to_have_text("The best 24 of 40 images")
    assert scores(page)[0] > 0.97
    for side in ("naturalWidth", "naturalHeight"):
        expect(page.locator("#chips img")).to_have_js_property(side, 1024)


def test_pasted_or_dropped_image_is_a_query_or_an_addition(visit):
    page = visit()
    with new_search(page):
        hand_over(page, "paste", [picture(5)])
    assert scores(page)[0] > 0.98
    expect(page.locator("#chips li")).to_have_count(1)
    with new_search(page):
        page.get_by_role("button", name="Clear").click()
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
    expect(page.locator("#camera video")).to_have_js_property("srcObject", None)
    expect(page.locator("#chips li")).to_have_count(1)
    page.wait_for_function("document.querySelector('#chips img').naturalWidth >= 320")
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


def test_more_adds_the_next_page_without_repeating_and_results_are_sorted_by_a_column_both_ways(visit):
    page = visit()
    with new_search(page):
        page.get_by_role("button", name="More", exact=True).click()
    expect(cards(page)).to_have_count(40)
    assert len(set(cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)"))) == 40
    assert page.watch.searches[-1]["offset"] == 24
    expect(page.locator("#more")).to_be_hidden()
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


def found_colours(server):
    """Wait until the service, while nobody asked, has found the colours; return their column."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := [column for column in server.ask("facets")["columns"] if column["kind"] == "colour"]:
            return found[0]
        time.sleep(0.1)
    pytest.fail("no colours were found")


def test_ranges_colours_and_dates_are_filters(visit, server):
    colours = found_colours(server)
    page = visit(prepare=lambda page: delay(page, "facets", 1500))  # a box may be older than what was chosen last
    with new_search(page):
        page.get_by_label("Lowest price").fill("300")
        page.get_by_label("Lowest price").dispatch_event("change")
    assert page.watch.searches[-1]["where"] == "price >= 300"
    assert min(prices(page)) == 300
    with new_search(page):
        page.get_by_role("button", name="Remove the filter Price").click()
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


def test_value_is_found_among_many_and_by_its_name_beyond_the_most_frequent(visit):
    def many(page):
        values = [{"value": f"brand {number}", "count": 100 - number} for number in range(50)]
        column = {"name": "label", "kind": "category", "count": 4000, "values": values, "distinct": 80}
        page.route("**/facets*", lambda route: route.fulfill(json={"total": 4000, "columns": [column]}))

    page = visit(prepare=many)
    group = page.get_by_role("group", name="Label")
    expect(group.get_by_role("checkbox")).to_have_count(8)
    group.get_by_role("button", name="Show 42 more").click()
    expect(group.get_by_role("checkbox")).to_have_count(50)
    find = group.get_by_role("searchbox", name="Find in Label")
    find.fill("BRAND 4")
    expect(group.get_by_role("checkbox")).to_have_count(11)
    find.fill("dog")
    expect(group.get_by_role("checkbox")).to_have_count(0)
    with new_search(page):
        find.press("Enter")
    expect(group.get_by_label("dog")).to_be_checked()
    expect(page.locator("#status")).to_have_text("20 match the filters")


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
