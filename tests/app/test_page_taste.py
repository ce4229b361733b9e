"""What people like, on the page: judging, "For you", saved searches, sure answers, insights, retraining, privacy."""

import re

import pytest
from makers.browsing import BROWSING, ask_words, cards, delay, expect, faults, feed, held, judge, new_search, picture

from rectrio_lib.search.collection import Collection

pytestmark = [*BROWSING, pytest.mark.usefixtures("nothing_said")]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
HISTORY, JUDGEMENTS = re.compile(r"/history\?"), re.compile(r"/feedback\?")
RULES = ("aria-valid-attr-value", "aria-toggle-field-name", "button-name", "color-contrast", "label", "target-size")


def said(server):
    return [(one["image"], one["kind"], one["anchor"]) for one in server.ask("feedback")["judgements"]]


def found_by(server, name):
    answer = server.ask("search", "POST", {"like": [{"id": name}], "k": 24})
    return [result["id"] for result in answer["results"]]


# --- judging


def test_like_and_dislike_exclude_each_other_are_taken_back_and_survive_a_reload(visit, server):
    page = visit()
    name = judge(page, 1, "like")
    buttons = {kind: cards(page).nth(1).locator(f"[data-judge={kind}]") for kind in ("like", "dislike")}
    expect(buttons["like"]).to_have_attribute("aria-pressed", "true")
    assert judge(page, 1, "dislike") == name
    expect(buttons["like"]).to_have_attribute("aria-pressed", "false")
    assert said(server) == [(name, "dislike", None)]
    page.reload()
    expect(buttons["dislike"]).to_have_attribute("aria-pressed", "true")
    judge(page, 1, "dislike")
    expect(buttons["dislike"]).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#toast")).to_have_text("Taken back.")
    assert said(server) == []


def test_not_the_same_is_said_of_a_query_and_taking_it_back_leaves_the_like(visit, server, ids):
    page = visit()
    expect(cards(page).first.locator("[data-judge=different]")).to_have_count(0)  # nothing was asked for
    with new_search(page):
        page.goto(f"{server.address}#id={ids[30]}")
    name = judge(page, 0, "different")
    assert judge(page, 0, "like") == name
    assert said(server) == [(name, "like", ids[30]), (name, "different", ids[30])]
    judge(page, 0, "different")
    expect(cards(page).first.locator("[data-judge=like]")).to_have_attribute("aria-pressed", "true")
    assert [kind for _, kind, _ in said(server)] == ["like"]
    judge(page, 0, "different")
    another = next(one for one in ids if one not in (ids[30], name) and name in found_by(server, one))
    with new_search(page):
        page.goto(f"{server.address}#id={another}")  # of another query it was not said
    expect(page.locator(f".card[data-id='{name}'] [data-judge=different]")).to_have_attribute("aria-pressed", "false")


def test_keys_judge_the_image_that_has_the_focus_and_typing_does_not(visit, server, ids):
    page = visit()
    cards(page).nth(2).locator(".open").focus()
    for key, kind in (("l", "like"), ("d", "dislike")):
        with page.expect_response(lambda answer: answer.url.endswith("/feedback")):
            page.keyboard.press(key)
        assert said(server) == [(ids[2], kind, None)]
    page.keyboard.press("Enter")
    expect(page.locator("#viewer [data-judge=dislike]")).to_have_attribute("aria-pressed", "true")
    with page.expect_response(lambda answer: answer.url.endswith("/feedback")):
        page.keyboard.press("l")
    assert said(server) == [(ids[2], "like", None)]
    page.keyboard.press("Escape")
    expect(cards(page).nth(2).locator("[data-judge=like]")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("textbox", name="Words").fill("")
    page.keyboard.type("lld")
    assert said(server) == [(ids[2], "like", None)]


def test_a_judgement_that_fails_is_not_shown_as_one(visit, server, ids):
    page = visit(complains=True)
    page.route("**/feedback", lambda route: route.abort())
    cards(page).first.hover()
    cards(page).first.locator("[data-judge=like]").click()
    expect(page.locator("#toast")).to_contain_text("This was not noted")
    expect(cards(page).first.locator("[data-judge=like]")).to_have_attribute("aria-pressed", "false")
    page.unroute("**/feedback")
    gone = {"kept": 0, "ignored": [{"id": ids[0], "reason": "not in the collection"}]}
    page.route("**/feedback", lambda route: route.fulfill(json=gone))
    cards(page).first.locator("[data-judge=like]").click()
    expect(page.locator("#toast")).to_contain_text("not in the collection any more")
    expect(cards(page).first.locator("[data-judge=like]")).to_have_attribute("aria-pressed", "false")


def test_what_is_opened_counts_once_for_its_search(visit, server):
    page = visit()
    ask_words(page, "cat")
    with page.expect_response(lambda answer: answer.url.endswith("/feedback")):
        cards(page).nth(1).locator(".open").click()
    page.keyboard.press("Escape")
    cards(page).nth(1).locator(".open").click()
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    judge(page, 0, "like")
    kinds = [one["kind"] for one in server.ask("feedback")["judgements"]]
    assert sorted(kinds) == ["click", "like"]
    assert server.ask("stats")["click_through"] == 1


def test_a_like_counts_although_its_search_was_deleted_from_the_history(visit, server):
    page = visit(complains=True)
    ask_words(page, "cat")
    server.ask("history")
    server.ask("history", "DELETE")
    name = cards(page).first.get_attribute("data-id")
    cards(page).first.hover()
    cards(page).first.locator("[data-judge=like]").click()
    expect(page.locator("#toast")).to_contain_text("Liked")
    assert said(server) == [(name, "like", None)]


# --- for you


def test_feed_says_what_to_do_goes_by_likes_and_does_not_repeat_itself(visit, server):
    page = visit()
    assert feed(page)["strategy"] == "diverse"
    expect(page.locator("#feed-why")).to_contain_text("You have not liked anything yet")
    expect(page.locator("#feed-forget")).to_be_hidden()
    liked, disliked = judge(page, 0, "like"), judge(page, 1, "dislike")
    expect(page.locator("#feed-why")).to_have_text("By your 1 like and 1 dislike.")
    expect(page.locator("#feed-said li")).to_have_count(2)
    before = cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")
    with page.expect_response(lambda answer: answer.url.endswith("/recommend")) as answer:
        page.get_by_role("button", name="New suggestions").click()
    after = answer.value.json()
    assert (after["liked"], after["disliked"], after["strategy"]) == (1, 1, "logistic")
    names = [result["id"] for result in after["results"]]
    assert names and not {liked, disliked, *before} & set(names)
    page.reload()
    expect(page.locator("#feed-said li")).to_have_count(2)
    expect(page.locator("#empty")).to_contain_text("You have seen everything")
    with page.expect_response(lambda answer: answer.url.endswith("/recommend")):
        page.get_by_role("button", name="Show them again").click()
    expect(cards(page)).to_have_count(24)


def test_feed_works_with_dislikes_alone_and_with_filters(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "dislike"})
    page = visit("#feed=1")
    expect(page.locator("#feed-why")).to_contain_text("By your 1 dislike: images unlike those.")
    expect(cards(page)).not_to_have_count(0)
    with page.expect_response(lambda answer: answer.url.endswith("/recommend")):
        page.get_by_role("group", name="Label").get_by_label("dog").check()
    expect(page.locator(".card .label").first).to_have_text("dog")
    assert set(page.locator(".card .label").all_inner_texts()) == {"dog"}
    for hidden in ("#sort-control", "#save", "#sure-control"):
        expect(page.locator(hidden)).to_be_hidden()
    with new_search(page):
        cards(page).first.get_by_role("button", name="More like this").click()
    expect(page.locator("#feed")).to_be_hidden()
    expect(page.locator("#for-you")).to_have_attribute("aria-pressed", "false")
    page.go_back()
    expect(page.locator("#feed")).to_be_visible()


def test_more_suggestions_come_after_those_that_are_there_and_likes_can_be_forgotten(visit, server, ids):
    server.ask("feedback", "POST", [{"image": name, "kind": "like"} for name in ids[:3]])
    page = visit("#feed=1")
    expect(cards(page)).to_have_count(24)
    page.get_by_role("button", name="More", exact=True).click()
    expect(cards(page)).to_have_count(37)
    names = cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")
    assert len(set(names)) == 37 and not set(ids[:3]) & set(names)
    expect(page.locator("#feed-said li")).to_have_count(3)
    page.get_by_role("button", name="Forget my likes").click()
    page.locator("#confirm").get_by_role("button", name="Delete them").click()
    expect(page.locator("#feed-said li")).to_have_count(0)
    expect(page.locator("#feed-why")).to_contain_text("You have not liked anything yet")
    assert said(server) == []


# --- privacy, saved searches


def test_with_history_off_nothing_is_kept_but_likes_count_while_the_page_is_open(visit, server):
    page = visit(prepare=lambda page: delay(page, "PUT .*/history", 500))  # judged before that has arrived
    page.get_by_role("button", name="Your searches").click()
    page.get_by_role("switch", name="Keep my searches and likes").uncheck()
    expect(page.locator("#keep-off")).to_be_visible()
    page.keyboard.press("Escape")
    liked = judge(page, 0, "like")
    expect(page.locator("#toast")).to_contain_text("It is not kept")
    cards(page).nth(1).locator(".open").click()
    page.keyboard.press("Escape")
    assert feed(page)["liked"] == 1
    assert liked not in cards(page).evaluate_all("cards => cards.map((card) => card.dataset.id)")
    assert said(server) == []
    page.reload()
    expect(page.locator("#feed-said li")).to_have_count(0)
    page.get_by_role("button", name="Your searches").click()
    expect(page.get_by_role("switch", name="Keep my searches and likes")).not_to_be_checked()
    page.get_by_role("switch", name="Keep my searches and likes").check()
    expect(page.locator("#keep-off")).to_be_hidden()


def test_a_switch_made_while_the_history_loads_stays_as_it_was_set(visit, server):
    page = visit()
    release = held(page, HISTORY)
    page.get_by_role("button", name="Your searches").click()
    switch = page.get_by_role("switch", name="Keep my searches and likes")
    page.wait_for_timeout(200)
    expect(switch).to_be_disabled()
    release()
    expect(switch).to_be_enabled()
    page.keyboard.press("Escape")
    release = held(page, HISTORY)
    page.get_by_role("button", name="Your searches").click()
    page.wait_for_timeout(200)
    with page.expect_response(lambda answer: answer.request.method == "PUT"):
        switch.uncheck()
    expect(page.locator("#keep-off")).to_be_visible()
    with page.expect_response(lambda answer: "/history" in answer.url and answer.request.method == "GET"):
        release()
    page.wait_for_timeout(200)
    expect(page.locator("#keep-off")).to_be_visible()
    assert server.ask("history")["keep"] is False
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Your searches").click()
    page.wait_for_timeout(200)
    expect(switch).not_to_be_checked()


def test_a_like_made_while_those_of_the_past_load_stays_pressed(visit, server, ids):
    server.ask("feedback", "POST", {"image": ids[0], "kind": "like"})
    releases = []
    page = visit(prepare=lambda page: releases.append(held(page, JUDGEMENTS)))
    judge(page, 0, "dislike")
    releases[0]()
    expect(cards(page).first.locator("[data-judge=dislike]")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(200)
    expect(cards(page).first.locator("[data-judge=dislike]")).to_have_attribute("aria-pressed", "true")
    assert said(server) == [(ids[0], "dislike", None)]


@pytest.mark.parametrize("late", ["image", "about"])
def test_an_image_that_comes_late_does_not_replace_the_one_opened_since(visit, ids, late):
    releases = []
    path = f"**/images/{ids[-1]}" if late == "image" else "**/about"
    page = visit(f"#show={ids[-1]}", prepare=lambda page: releases.append(held(page, path)))
    cards(page).first.locator(".open").click()
    title = page.locator("#viewer-image")
    before = title.get_attribute("src")
    releases[0]()
    page.wait_for_timeout(1000)
    assert title.get_attribute("src") == before
    assert ids[0] in page.url and ids[-1] not in page.url


def test_a_search_is_saved_opened_and_deleted(visit, server):
    page = visit()
    expect(page.locator("#save")).to_be_hidden()  # nothing is asked
    ask_words(page, "cat")
    with new_search(page):
        page.get_by_role("group", name="Label").get_by_label("dog").check()
    page.get_by_role("button", name="Save this search").click()
    page.get_by_label("Name, if you like").fill("<b>dogs</b> like cats")
    page.locator("#saving").get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#saving")).to_be_hidden()
    (kept,) = server.ask("saved")["saved"]
    assert (kept["title"], kept["query"]["where"]) == ("<b>dogs</b> like cats", "label == 'dog'")
    page.goto(server.address)
    page.reload()
    page.get_by_role("button", name="Your searches").click()
    with new_search(page):
        page.locator("#saved-list .repeat", has_text="<b>dogs</b> like cats").click()
    expect(page.locator("#chips .name")).to_have_text(["“cat”"])
    expect(page.locator("#status")).to_have_text("The best 20 of 20 images")
    page.get_by_role("button", name="Your searches").click()
    page.get_by_role("button", name="Delete the saved search").click()
    expect(page.locator("#saved")).to_be_hidden()
    assert server.ask("saved")["saved"] == []
    page.keyboard.press("Escape")
    with new_search(page):
        page.locator("#chosen").set_input_files([picture(3)])
    page.get_by_role("button", name="Save this search").click()
    expect(page.locator("#toast")).to_contain_text("cannot be saved")  # with an uploaded image
    expect(page.locator("#saving")).to_be_hidden()


# --- sure answers


def test_sure_answers_are_offered_where_it_is_known_what_scores_mean(visit, server, ids):
    page = visit(f"#id={ids[0]}")
    switch = page.get_by_role("switch", name="At least 90 % sure")
    expect(cards(page)).to_have_count(24)
    file = server.collection.workspace.path("indexes", "photos") / "calibration.json"
    if not file.exists():
        expect(switch).to_be_hidden()
        Collection.open("photos", server.collection.folder, server.collection.workspace).calibrate()
        page.reload()
    try:
        with new_search(page):
            switch.check()
        asked = page.watch.searches[-1]
        assert asked["sure"] == 0.9
        expected = server.ask("search", "POST", {"like": [{"id": ids[0]}], "sure": 0.9})
        if expected["results"]:
            expect(page.locator("#status")).to_contain_text("at least 90 % of them are right")
        else:
            expect(page.get_by_role("heading", name="Nothing here is like that")).to_be_visible()
        page.reload()
        expect(switch).to_be_checked()
        expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
        assert page.watch.searches[-1]["sure"] == 0.9
        with new_search(page):
            page.get_by_role("textbox", name="Words").fill("cat")
            page.keyboard.press("Enter")
        expect(switch).to_be_hidden()  # of words nobody knows it
        assert "sure" not in page.watch.searches[-1]
    finally:
        file.unlink()


def test_nothing_here_is_like_that_is_said_and_the_nearest_can_be_seen_anyway(visit, ids):
    def calibrated(page):
        page.route("**/about", lambda route: route.fulfill(json={**route.fetch().json(), "calibrated": True}))
        reason = "Nothing here is like that: the most similar image is of the same kind with a probability of 7%."
        answer = {"results": [], "total": 40, "next": None, "search": None, "reason": reason, "seconds": 0}
        page.route("**/search", lambda route: route.fulfill(json=answer) if '"sure"' in (route.request.post_data or "")
                   else route.continue_())  # fmt: skip

    page = visit(f"#id={ids[0]}&sure=0.9", prepare=calibrated)
    expect(page.get_by_role("heading", name="Nothing here is like that")).to_be_visible()
    expect(page.locator("#empty p")).to_have_text(
        "The most similar image is of the same kind with a probability of 7%."
    )
    with new_search(page):
        page.get_by_role("button", name="Show the nearest anyway").click()
    expect(cards(page)).to_have_count(24)


# --- insights, retraining

VERDICT = {
    "accepted": True, "reason": "The new encoder is kept.", "encoder": "photos-learned-1", "judgements": 480,
    "held_out": {"count": 812, "before": 0.612, "after": 0.847, "low": 0.18, "high": 0.29}, "labels": None,
    "notes": [], "seconds": 3,
}  # fmt: skip


def test_the_owner_sees_how_the_collection_is_used(visit, server):
    page = visit()
    ask_words(page, "cat")
    ask_words(page, "dog")
    judge(page, 0, "like")
    page.get_by_role("button", name="Insights").click()
    figures = page.locator("#insights .figures .figure")
    expect(figures.first).to_contain_text("2")
    stats = server.ask("stats")
    assert stats["searches"] == 2 and stats["click_through"] == 0.5
    expect(figures.nth(2)).to_contain_text("50 %")
    titles = [query["title"] for query in stats["top"]]
    expect(page.locator("#insights .panels section").first.locator(".name")).to_have_text(titles)
    expect(page.locator("#insights .bars rect")).to_have_count(30)
    heights = page.locator("#insights .bars rect").evaluate_all("bars => bars.map((bar) => bar.height.baseVal.value)")
    assert heights[-1] > 0 and not any(heights[:-1])
    with page.expect_response(lambda answer: "days=365" in answer.url):
        page.locator("#insights-days").select_option("365")
    expect(page.locator("#insights h3").first).to_have_text("Searches per week")
    assert page.locator("#insights .bars rect").count() == 53


def test_an_encoder_that_cannot_learn_says_so(visit):
    page = visit(complains=True)
    page.get_by_role("button", name="Insights").click()
    page.get_by_role("button", name="Retrain").click()
    expect(page.locator("#learning .problem")).to_contain_text("Encoders with a pretrained backbone learn")
    expect(page.get_by_role("button", name="Retrain")).to_be_enabled()


def test_before_and_after_of_a_retraining_are_shown_and_it_is_undone(visit):
    asked, state = [], {"running": False, "encoder": "backbone", "can_undo": False, "last": None}

    def learner(page):
        def answer(route):
            asked.append(route.request.method)
            if route.request.method == "POST":
                state.update(encoder="photos-learned-1", can_undo=True, last=VERDICT)
                return route.fulfill(json=VERDICT)
            if route.request.method == "DELETE":
                state.update(encoder="backbone", can_undo=False)
            return route.fulfill(json=state)

        page.route("**/retrain", answer)

    page = visit(prepare=learner)
    page.get_by_role("button", name="Insights").click()
    learning = page.locator("#learning")
    expect(learning).to_contain_text("Now: backbone")
    with new_search(page):  # what was found by the old encoder is out of date
        learning.get_by_role("button", name="Retrain").click()
    expect(learning.locator(".verdict")).to_contain_text("The new encoder is kept.")
    expect(learning.locator(".comparison").first).to_contain_text(
        "+0.235, 95 % interval +0.180 to +0.290, 812 held out"
    )
    expect(learning.locator("svg.chart")).to_have_attribute("aria-label", "Judgements: before 0.612, after 0.847")
    widths = [float(learning.locator(f"svg .{kind}").get_attribute("width")) for kind in ("old", "new")]
    assert widths[1] / widths[0] == pytest.approx(0.847 / 0.612, rel=0.01)
    learning.get_by_role("button", name="Undo").click()
    page.locator("#confirm").get_by_role("button", name="Go back").click()
    expect(learning).to_contain_text("Now: backbone")
    expect(learning.get_by_role("button", name="Undo")).to_have_count(0)
    assert [method for method in asked if method != "GET"] == ["POST", "DELETE"]


# --- for everyone


LOOKS = {"light": {"color_scheme": "light"}, "dark": {"color_scheme": "dark"}, "phone": PHONE}


@pytest.mark.parametrize("options", LOOKS.values(), ids=LOOKS)
def test_what_is_new_can_be_read_and_pressed_by_everyone(visit, server, ids, options):
    server.ask("feedback", "POST", [{"image": ids[0], "kind": "like"}, {"image": ids[1], "kind": "dislike"}])
    page = visit("#feed=1", **options)
    expect(page.locator("#feed-said li")).to_have_count(2)
    expect(cards(page)).not_to_have_count(0)
    assert faults(page, *RULES) == []
    page.route("**/retrain", lambda route: route.fulfill(
        json={"running": False, "encoder": "x", "can_undo": True, "last": VERDICT}))  # fmt: skip
    for opened, ready in (("#open-history", "#history"), ("#open-insights", "#learning .comparison")):
        page.locator(opened).click()
        page.locator(ready).first.wait_for()
        assert faults(page, *RULES) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("dialog[open]").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        page.keyboard.press("Escape")
    page.goto(f"{server.address}#id={ids[0]}")
    expect(page.locator("#save")).to_be_visible()
    page.locator("#save").click()
    assert faults(page, *RULES) == []
    page.keyboard.press("Escape")
    cards(page).first.locator(".open").click()
    expect(page.locator("#viewer [data-judge]")).to_have_count(3)
    assert faults(page, *RULES) == []
