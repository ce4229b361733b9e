"""The page around its search, in a real browser: history, additions and edits, phones, keyboards, trouble."""

import pytest
from makers import browsing
from makers.browsing import add, ask_words, cards, delay, expect, faults, luminance, new_search, picture, scores

pytestmark = browsing.BROWSING
ODD = """<img src=x onerror="document.title='read as HTML'"> it's \\ odd"""


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


def test_image_is_edited_and_deleted(visit, server):
    page = visit(prepare=lambda page: delay(page, "about", 1000))  # opened before it is known who may edit
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


def test_who_may_only_search_sees_neither_buttons_to_write_nor_insights(visit):
    def reader(page):
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), "scopes": ["search"]}))

    page = visit(prepare=reader)
    expect(page.locator("#collection")).to_have_text("photos")
    cards(page).first.locator(".open").click()
    expect(page.get_by_role("button", name="More like this").last).to_be_visible()
    for control in ("#add", "#edit", "#delete", "#open-insights"):
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
    page.keyboard.press("ArrowRight")
    third = cards(page).nth(2)
    expect(viewer.locator(".metadata")).to_contain_text(third.get_attribute("data-id"))
    for _ in range(12):  # the focus stays in the dialog
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(third.locator(".open")).to_be_focused()
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
