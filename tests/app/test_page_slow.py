"""The page on a slow network: answers that come late, in another order or not at all, and what people do meanwhile."""

import io

import pytest
from makers.browsing import BROWSING, add, ask_words, cards, delay, expect, first, held, judge, new_search, picture
from PIL import Image

pytestmark = [*BROWSING, pytest.mark.usefixtures("nothing_said")]
BUSY = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"title": "", "status": 429, "detail": "Too many."}}


def shown(page):
    return cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")


def look(page, place):
    cards(page).nth(place).locator(".open").click()
    expect(page.locator("#viewer")).to_be_visible()


def centre(page):
    """Return the pixels in the middle of the large view's picture, where no button is."""
    seen = Image.open(io.BytesIO(page.locator("#viewer .stage").screenshot()))
    return seen.crop((seen.width // 3, seen.height // 3, seen.width // 2, seen.height // 2)).tobytes()


# --- the large view


@pytest.mark.parametrize("closed", [True, False])
def test_a_late_deletion_leaves_the_large_view_as_it_is_by_then(visit, server, closed):
    page = visit(complains=True)  # the thumbnail of what was deleted may be missed
    name = add(page, server, 210)
    page.reload()
    look(page, 0)
    release = held(page, f"**/images/{name}", "DELETE")
    page.locator("#delete").click()
    page.locator("#confirm").get_by_role("button", name="Delete the image").click()
    if closed:
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
    else:
        page.locator("#next").click()
        page.locator("#next").click()
    release()
    expect(page.locator("#toast")).to_have_text("Deleted.")
    expect(cards(page).first).not_to_have_attribute("data-id", name)
    expect(page.locator("#viewer")).to_be_visible(visible=not closed)
    if not closed:
        expect(page.locator(".metadata")).to_contain_text(cards(page).nth(1).get_attribute("data-id"))
        expect(page.locator("#viewer-place")).to_contain_text("2 of")


def test_a_late_edit_changes_the_image_it_was_made_of(visit, server):
    page = visit()
    name = add(page, server, 211, label="fish")
    page.reload()
    try:
        look(page, 0)
        release = held(page, f"**/images/{name}", "PATCH")
        page.locator("#edit").click()
        page.locator("#viewer").get_by_label("Label").fill("eel")
        page.locator("#viewer").get_by_role("button", name="Save").click()
        page.locator("#next").click()
        expect(page.locator("#viewer-title")).to_have_text("dog")
        release()
        expect(page.locator("#toast")).to_have_text("Saved.")
        expect(page.locator("#viewer-title")).to_have_text("dog")
        expect(cards(page).first.locator(".label")).to_have_text("eel")
        assert len(set(shown(page))) == 24
    finally:
        server.ask(f"images/{name}", "DELETE")


def test_an_edit_is_sent_once_and_its_failure_is_told_after_the_view_was_closed(visit, server, ids):
    page, sent = visit(complains=True), []

    def refuse(route):
        if route.request.method == "PATCH":
            sent.append(route)
        else:
            route.continue_()

    page.route(f"**/images/{ids[0]}", refuse)
    look(page, 0)
    page.locator("#edit").click()
    page.locator("#viewer").get_by_label("Label").fill("wolf")
    page.locator("#viewer").get_by_role("button", name="Save").dblclick()
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    first(page, sent).fulfill(**BUSY)
    expect(page.locator("#toast")).to_contain_text("Too many.")
    assert len(sent) == 1
    look(page, 1)
    assert page.locator("#viewer-problem").text_content() == ""


def test_the_large_view_follows_results_that_come_late(visit, ids):
    page = visit()
    release = held(page, "**/search", "POST")
    page.get_by_label("Sort").select_option("price")
    page.get_by_role("button", name="Descending order").click()
    look(page, 0)
    expect(page.locator("#viewer-place")).to_have_text("1 of 40")
    release()
    expect(page.locator("#viewer-place")).to_have_text("")
    expect(page.locator("#next")).to_be_disabled()


def test_who_steps_back_while_more_loads_is_not_brought_forward(visit, ids):
    page = visit()
    look(page, 23)
    release = held(page, "**/search", "POST")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-place")).to_have_text("23 of 40")
    release()
    expect(cards(page)).to_have_count(40)
    expect(page.locator("#viewer-place")).to_have_text("23 of 40")


def test_arrow_keys_work_on_whatever_had_the_focus(visit, ids):
    page = visit("#where=price+>+350")
    expect(cards(page)).to_have_count(4)
    look(page, 2)
    page.locator("#viewer [data-judge=like]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-place")).to_have_text("2 of 4")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("3 of 4")
    page.locator("#next").click()
    expect(page.locator("#next")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-place")).to_have_text("3 of 4")


def test_a_picture_that_comes_late_is_not_stood_in_for_by_the_one_before(visit, ids):
    page, late, free = visit(), [], []
    page.route(f"**/images/{ids[1]}/view", lambda route: route.continue_() if free else late.append(route))
    look(page, 0)
    expect(page.locator("#viewer-image")).to_have_js_property("naturalWidth", 64)
    before = centre(page)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("2 of 40")
    assert centre(page) != before
    free.append(True)
    for route in late:
        route.continue_()
    expect(page.locator("#viewer-image")).to_have_js_property("naturalWidth", 64)


def test_a_double_click_opens_the_large_view_and_leaves_it_open(visit, ids):
    page = visit("#where=price+>+200", viewport={"width": 2000, "height": 1000})
    cards(page).nth(5).locator(".open").dblclick()  # at the right, beside where the large view will be
    expect(page.locator("#viewer")).to_be_visible()
    page.wait_for_timeout(300)
    expect(page.locator("#viewer")).to_be_visible()
    page.mouse.click(1900, 500)
    expect(page.locator("#viewer")).to_be_hidden()


def test_the_address_forgets_an_image_that_is_not_there(visit):
    page = visit("#show=0123456789abcdef", complains=True)
    expect(page.locator("#toast")).to_contain_text("not in the collection any more")
    ask_words(page, "cat")
    assert "show" not in page.url


def test_trouble_behind_the_large_view_is_told_in_it(visit, ids):
    page = visit(complains=True)
    look(page, 23)
    page.route("**/search", lambda route: route.abort())
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer #toast")).to_have_text("The service does not answer.")


# --- results


def test_after_a_deletion_the_next_page_skips_nothing(visit, server):
    page = visit()
    add(page, server, 212)
    page.reload()
    look(page, 0)
    page.locator("#delete").click()
    page.locator("#confirm").get_by_role("button", name="Delete the image").click()
    expect(page.locator("#viewer-title")).to_have_text("dog")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="More", exact=True).click()
    expect(cards(page)).to_have_count(40)


def test_more_of_a_query_is_not_added_to_the_results_of_the_one_before(visit):
    page = visit()
    delay_search = held(page, "**/search", "POST")
    page.get_by_label("Sort").select_option("price")
    page.get_by_role("button", name="More", exact=True).click()
    page.wait_for_timeout(300)
    assert len(page.watch.searches) == 2
    delay_search()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    assert len(shown(page)) == 24


def test_the_least_score_stays_where_it_was_put_when_an_answer_comes(visit, ids):
    page = visit(f"#id={ids[0]}")
    slider = page.get_by_label("Least score")
    release = held(page, "**/search", "POST")
    with page.expect_request("**/search"):
        slider.fill("0.3")
    slider.fill("0.6")
    release()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    with page.expect_request(lambda sent: sent.url.endswith("/search") and sent.post_data_json["minimum"] == 0.61):
        slider.press("ArrowRight")


SCORE_AND_CLICK = """() => {
  const slider = document.querySelector('#minimum');
  slider.value = 0.9;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  document.querySelectorAll('.card')[1].querySelector('[aria-label^="More like this"]').click();
}"""  # at once: the score alone would be asked for after a quarter of a second


def test_a_least_score_of_the_query_before_is_not_that_of_the_next(visit, ids):
    page = visit(f"#id={ids[0]}")
    expect(cards(page)).to_have_count(24)
    with new_search(page):
        page.evaluate(SCORE_AND_CLICK)
    page.wait_for_timeout(400)
    assert "minimum" not in page.watch.searches[-1]


# --- likes


def test_suggestions_go_by_a_like_that_is_on_its_way(visit, server, ids):
    page = visit("#feed=1", prepare=lambda page: delay(page, "POST .*/feedback", 700))
    expect(cards(page)).to_have_count(24)
    cards(page).first.hover()
    cards(page).first.locator("[data-judge=like]").click()
    with page.expect_response("**/recommend") as answer:
        page.get_by_role("button", name="New suggestions").click()
    assert answer.value.json()["liked"] == 1


def test_a_like_that_fails_late_leaves_what_was_said_since(visit, server, ids):
    page, sent = visit(complains=True), []
    page.route("**/feedback", lambda route: route.continue_() if sent else sent.append(route))
    cards(page).first.hover()
    for kind in ("like", "dislike"):
        cards(page).first.locator(f"[data-judge={kind}]").click()
    first(page, sent).fulfill(**BUSY)
    expect(page.locator("#toast")).to_contain_text("Disliked")
    expect(cards(page).first.locator("[data-judge=dislike]")).to_have_attribute("aria-pressed", "true")


def test_not_the_same_is_said_of_the_query_whose_results_are_shown(visit, server, ids):
    page = visit(f"#id={ids[30]}")
    expect(cards(page)).to_have_count(24)
    name = cards(page).nth(1).get_attribute("data-id")
    release = held(page, "**/search", "POST")
    cards(page).first.get_by_role("button", name="More like this").click()
    judge(page, 1, "different")
    release()
    assert [
        (one["image"], one["anchor"]) for one in server.ask("feedback")["judgements"] if one["kind"] != "click"
    ] == [(name, ids[30])]


def test_a_like_made_while_all_are_forgotten_is_kept(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "like"})
    page = visit("#feed=1")
    expect(page.locator("#feed-said li")).to_have_count(1)
    release = held(page, "**/feedback", "DELETE")
    page.get_by_role("button", name="Forget my likes").click()
    page.locator("#confirm").get_by_role("button", name="Delete them").click()
    cards(page).first.hover()
    cards(page).first.locator("[data-judge=like]").click()
    with page.expect_response(lambda answer: answer.url.endswith("/feedback") and answer.request.method == "POST"):
        release()
    expect(page.locator("#feed-said li")).to_have_count(1)
    assert len(server.ask("feedback")["judgements"]) == 1


def test_who_left_the_suggestions_before_all_was_forgotten_is_not_disturbed(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "like"})
    page = visit("#feed=1")
    release = held(page, "**/feedback", "DELETE")
    page.get_by_role("button", name="Forget my likes").click()
    page.locator("#confirm").get_by_role("button", name="Delete them").click()
    with new_search(page):
        page.locator("#for-you").click()
    page.get_by_role("button", name="More", exact=True).click()
    expect(cards(page)).to_have_count(40)
    release()
    expect(cards(page).first.locator("[data-judge=like]")).to_have_attribute("aria-pressed", "false")
    page.wait_for_timeout(300)
    expect(cards(page)).to_have_count(40)


def test_for_you_is_pressed_at_once(visit, ids):
    page = visit()
    release = held(page, "**/recommend", "POST")
    page.locator("#for-you").click()
    expect(page.locator("#for-you")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#status")).to_have_text("Searching …")
    release()
    expect(page.locator("#feed-why")).to_be_visible()


def test_suggestions_wait_for_the_likes_of_the_past_and_the_page_does_not(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "like"})
    releases = []
    page = visit("#feed=1", prepare=lambda page: releases.append(held(page, "**/feedback?*")))
    expect(page.locator("#status")).to_have_text("Searching …")
    expect(page.locator("#sort-control")).to_be_hidden()
    expect(page.locator("#collection")).to_have_text("photos")
    releases[0]()
    expect(page.locator("#feed-why")).to_have_text("By your 1 like.")


# --- dialogs


def test_earlier_searches_asked_for_twice_are_listed_once(visit, server):
    for number in range(32):
        server.ask("search", "POST", {"like": [{"text": "cat"}], "k": 1 + number})
    page = visit(prepare=lambda page: delay(page, "history.*before", 500))
    page.get_by_role("button", name="Your searches").click()
    page.get_by_role("button", name="Earlier searches").focus()
    for _ in range(2):
        page.keyboard.press("Enter")
    expect(page.locator("#history-more")).to_be_hidden()
    expect(page.locator("#history-close")).to_be_focused()
    page.wait_for_timeout(700)
    expect(page.locator("#history-list .past")).to_have_count(32)


def test_what_is_deleted_twice_is_deleted_and_does_not_come_back(visit, server):
    for title in ("one", "two"):
        server.ask("saved", "POST", {"query": {"like": [{"text": "cat"}]}, "title": title})
    server.ask("search", "POST", {"like": [{"text": "cat"}]})
    page = visit(complains=True, prepare=lambda page: delay(page, "DELETE", 500))
    page.get_by_role("button", name="Your searches").click()
    page.get_by_role("button", name="Delete the search").dblclick()
    expect(page.locator("#history-none")).to_be_visible()
    page.wait_for_timeout(700)
    expect(page.locator("#history-problem")).to_be_empty()
    page.keyboard.press("Escape")
    release = held(page, "**/saved")
    page.get_by_role("button", name="Your searches").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.get_by_role("button", name="Delete the saved search one").click()
    with page.expect_response("**/saved"):
        release()
    page.wait_for_timeout(300)
    expect(page.locator("#saved-list .past")).to_have_count(1)


def test_a_search_is_saved_once_and_a_late_answer_does_not_close_the_dialog_of_the_next(visit, server):
    page = visit(complains=True, prepare=lambda page: delay(page, "POST .*/saved", 700))
    ask_words(page, "cat")
    page.get_by_role("button", name="Save this search").click()
    dialog = page.locator("#saving")
    dialog.get_by_role("button", name="Save", exact=True).dblclick()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Save this search").click()
    expect(page.locator("#toast")).to_contain_text("Saved")
    expect(dialog).to_be_visible()
    assert len(server.ask("saved")["saved"]) == 1
    page.route("**/saved", lambda route: route.fulfill(**BUSY))
    dialog.get_by_role("button", name="Save", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.locator("#toast")).to_contain_text("was not saved: Too many.")


def test_what_became_of_an_upload_is_told_after_its_dialog_was_closed(visit, server):
    page, sent = visit(complains=True), []
    page.route("**/upload", lambda route: sent.append(route))
    page.get_by_role("button", name="Add images").click()
    page.locator("#add-chosen").set_input_files([picture(220)])
    page.get_by_role("button", name="Add 1 image").click()
    page.keyboard.press("Escape")
    expect(page.locator("#adding")).to_be_hidden()
    first(page, sent).fulfill(**BUSY)
    expect(page.locator("#toast")).to_contain_text("1 not sent")


def test_a_retraining_under_way_is_not_started_again(visit):
    state = {"running": False, "encoder": "backbone", "can_undo": False, "last": None}
    page, started = visit(), []

    def answer(route):
        started.append(route) if route.request.method == "POST" else route.fulfill(json=state)

    page.route("**/retrain", answer)
    page.get_by_role("button", name="Insights").click()
    page.get_by_role("button", name="Retrain").click()
    expect(page.get_by_role("button", name="Retrain")).to_be_disabled()
    page.keyboard.press("Escape")
    with page.expect_response("**/retrain"):
        page.get_by_role("button", name="Insights").click()
    page.wait_for_timeout(300)
    expect(page.get_by_role("button", name="Retrain")).to_be_disabled()
    assert len(started) == 1


CAMERAS = """
window.opened = [];
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wish) => {
  const stream = await ask(wish);
  await new Promise((resolve) => setTimeout(resolve, 500));
  window.opened.push(stream);
  return stream;
};
window.live = () => window.opened.flatMap((one) => one.getTracks()).filter((one) => one.readyState === 'live').length;
"""


def test_a_camera_that_opens_late_is_switched_off_and_a_photograph_is_taken_once(visit):
    page = visit(prepare=lambda page: page.add_init_script(CAMERAS))
    for _ in range(2):
        page.get_by_role("button", name="Photo").click()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Photo").click()
    expect(page.locator("#camera[data-state=live]")).to_be_visible()
    page.wait_for_function("window.opened.length === 3")
    assert page.evaluate("window.live()") == 1
    page.locator("#turn").evaluate("button => button.click()")
    expect(page.locator("#shutter")).to_be_disabled()
    expect(page.locator("#camera[data-state=live]")).to_be_visible()
    page.locator("#shutter").evaluate("button => { button.click(); button.click(); }")
    expect(page.locator("#camera")).to_be_hidden()
    page.wait_for_timeout(500)
    expect(page.locator("#chips li")).to_have_count(1)
    assert page.evaluate("window.live()") == 0


# --- trouble


def fail_once(page, *paths):
    for path in paths:
        page.route(path, lambda route: route.abort(), times=1)


def test_an_image_of_the_address_and_the_results_are_both_tried_again(visit, ids):
    page = visit(
        f"#show={ids[-1]}", complains=True, prepare=lambda page: fail_once(page, "**/search", f"**/images/{ids[-1]}")
    )
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(cards(page)).to_have_count(24)
    expect(page.locator("#trouble")).to_be_hidden()


def test_the_banner_of_an_image_that_was_tried_again_goes(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[30], "kind": "like"})
    page = visit("#feed=1", complains=True)
    fail_once(page, f"**/images/{ids[30]}")
    page.locator("#feed-said button").click()
    expect(page.locator("#trouble")).to_be_visible()
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#trouble")).to_be_hidden()


def test_what_fails_once_beside_a_search_that_succeeds_comes_later(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "like"})
    page = visit(complains=True, prepare=lambda page: fail_once(page, "**/about", "**/facets", "**/feedback?*"))
    expect(cards(page)).to_have_count(24)
    expect(page.get_by_role("button", name="Add images")).to_be_visible()
    expect(page.get_by_role("group", name="Label")).to_be_visible()
    expect(cards(page).first.locator("[data-judge=like]")).to_have_attribute("aria-pressed", "true")


def test_sure_answers_are_asked_for_once_it_is_known_that_they_can_be(visit, ids):
    def late(page):
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), "calibrated": True}))
        page.route("**/about", lambda route: route.fulfill(**BUSY), times=1)
        page.route("**/search", lambda route: route.fulfill(json={**route.fetch().json(), "next": None}))

    page = visit(f"#id={ids[0]}&sure=0.9", complains=True, prepare=late)
    expect(page.get_by_role("switch", name="At least 90 % sure")).to_be_checked()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    assert page.watch.searches[-1].get("sure") == 0.9


def test_an_older_count_does_not_replace_a_newer_one(visit, server):
    page = visit()
    expect(page.locator("#images")).to_have_text("40 images")
    older = []
    page.route("**/about", lambda route: older.append((route, route.fetch())), times=1)
    page.get_by_role("button", name="Add images").click()
    page.locator("#add-chosen").set_input_files([picture(221)])
    page.get_by_role("button", name="Add 1 image").click()
    expect(page.locator("#add-summary")).to_have_text("1 added")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("41 images, newest first")
    look(page, 0)
    with page.expect_response("**/about"):
        page.locator("#delete").click()
        page.locator("#confirm").get_by_role("button", name="Delete the image").click()
    ((route, answer),) = older
    with page.expect_response("**/about"):
        route.fulfill(response=answer)
    page.wait_for_timeout(300)
    expect(page.locator("#images")).to_have_text("40 images")


def test_a_service_that_was_not_asked_is_not_said_to_be_back(visit):
    page = visit(complains=True)
    page.route("**/search", lambda route: route.abort())

    page.evaluate("location.hash = 'text=cat'")
    expect(page.locator("#trouble")).to_be_visible()
    page.evaluate("location.hash = '-text=cat'")
    expect(page.get_by_role("heading", name="What should the results look like?")).to_be_visible()
    assert page.locator("#toast").text_content() == ""


def test_what_loads_says_so(visit):
    page = visit(prepare=lambda page: delay(page, "history|saved|stats|retrain", 20_000))
    for button, bodies in (
        ("#open-history", ["#history-list"]),
        ("#open-insights", ["#insights-body", "#learning-body"]),
    ):
        page.locator(button).click()
        for body in bodies:
            text = "element => getComputedStyle(element, '::before').content"
            assert page.locator(body).evaluate(text) == '"Loading …"'
        page.keyboard.press("Escape")


# --- filters, focus


def test_a_slider_that_is_dragged_stays_when_counts_come(visit):
    page = visit(prepare=lambda page: delay(page, "facets.where", 800))
    slider = page.get_by_label("Lowest price")
    box = slider.bounding_box()
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label("cat").check()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 10, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, y)
    page.wait_for_timeout(1200)
    page.mouse.move(box["x"] + box["width"] / 2, y)
    with new_search(page):
        page.mouse.up()
    assert "price >= 1" in page.watch.searches[-1]["where"] or "price >= 2" in page.watch.searches[-1]["where"]


def test_a_date_can_be_typed(visit):
    page = visit()
    page.get_by_role("group", name="Created").get_by_label("From").focus()
    page.keyboard.type("02022025", delay=200)
    expect(page.locator("#status")).to_have_text("8 match the filters")
    expect(page.get_by_role("group", name="Created").get_by_label("From")).to_have_value("2025-02-02")


def test_the_focus_stays_near_what_is_taken_away(visit):
    page = visit("#where=price+>+1000")
    with new_search(page):
        page.get_by_role("button", name="Clear the filters").press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label("cat").check()
    with new_search(page):
        page.get_by_role("button", name="Remove the filter").press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("button", name="More", exact=True).press("Enter")
    expect(cards(page).nth(24).locator(".open")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(25).locator(".open")).to_be_focused()
