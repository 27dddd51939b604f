"""The dashboard's pages over HTTP: what each one shows, who gets to see it, and what many viewers share."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import web.kept
from config import Settings, parse_speed
from model import Counts, Failure, ListedPage, Page, Result
from parse_ import aid_to_bvid
from redisConnect import Queue
from web import create_app
from web.actions import in_words
from web.kept import LONGEST_SECONDS, MAX_ENTRIES, STALE_SECONDS, Kept
from web.outlook import in_detail, look_ahead, seen_worker
from web.session import SESSION_SECONDS, Sessions
from web.units import moment_text, speed_setting

TOKEN = "correct horse battery staple"
HOSTILE = "<img src=x onerror=alert(1)>\"'><svg/onload=alert(2)>{{7717*9973}}"
PAGES = ("/", "/ui/machines", "/ui/jobs", "/ui/failures", "/ui/sources", "/ui/add", "/ui/actions", "/ui/access")
VIDEO, OTHER_VIDEO, THIRD_VIDEO = (aid_to_bvid(number) for number in (1001, 1002, 1003))


@pytest.fixture
def sharing(queue: Queue, settings: Settings) -> FlaskClient:
    """For those who look at the same time."""
    return create_app(settings, queue).test_client()


@pytest.fixture
def client(sharing: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """For who looks again only after a while."""
    monkeypatch.setattr(web.kept, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(web.kept, "SHARE", 0)
    return sharing


@pytest.fixture
def guarded(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(replace(settings, token=TOKEN), queue).test_client()


class Tags(HTMLParser):
    """Gathers the tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page_of(queue: Queue, bvid: str = VIDEO, cid: int = 11, title: str = "A title") -> Any:
    queue.add([bvid], "music", "mid:137137")
    (lease,) = queue.lease("w1", 1)
    page = queue.expand(lease.url, lease.token, [Page(1, cid, title, 300)]).lease
    assert page is not None
    return page


def finish(queue: Queue, page: Any, title: str = "A title", path: str = "music/A title.mp4") -> None:
    queue.ack(page.url, page.token, Result(path, 123_456_789, 212.0, title, "1080P AVC · 192K"))


def fail(queue: Queue, page: Any, kind: str = "permanent", code: str = "-404", title: str = "") -> None:
    queue.nack(page.url, page.token, Failure(kind, code, f"reason of {code}", title))


def beat(queue: Queue, worker: str = "w1", **state: Any) -> None:
    queue.heartbeat(worker, [], {"state": "running", "jobs": []} | state)


def told(answer: TestResponse, status: int = 200) -> str:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "text/html; charset=utf-8"
    return answer.text


# ------------------------------------------------------------------------------------------ each page


def test_every_page_stands_in_the_frame_and_is_quiet_when_there_is_nothing(client: FlaskClient) -> None:
    for path in PAGES:
        tags = Tags(told(client.get(path)))
        assert [names["href"] for names in tags.of("a") if names.get("aria-current") == "page"] == [path]
        assert tags.of("a")[0]["href"] == "#content", "the first thing is a way round the menu"
        assert len(tags.of("h1")) == len(tags.of("main")) == len(tags.of("nav")) == 1
        assert all("src" in names for names in tags.of("script")), "no script in the page itself"
        assert not [names for _tag, names in tags.found if "style" in names or any(n.startswith("on") for n in names)]
    empty = {"/": "python add_url.py BV…", "/ui/machines": "python run.py", "/ui/jobs": "The queue is empty"}
    empty |= {
        "/ui/failures": "Nothing has failed",
        "/ui/sources": "No source yet",
        "/ui/actions": "Nobody did anything",
        "/ui/access": "No token was made yet",
    }
    for path, sentence in empty.items():
        assert sentence in client.get(path).text


def test_now_answers_what_a_person_wants_to_know_first(client: FlaskClient, queue: Queue) -> None:
    finish(queue, page_of(queue))
    fail(queue, page_of(queue, OTHER_VIDEO, 12))
    queue.add([THIRD_VIDEO])
    beat(queue, "w1", speed_bytes_per_second=3 * 1024**2, disk_free_bytes=5 * 1024**3)
    beat(queue, "w2", speed_bytes_per_second=1024**2, disk_free_bytes=9 * 1024**3)
    html = told(client.get("/"))
    for text in ("4.0 MiB/s", "5.0 GiB", "reason of -404", "music/A title.mp4", "About to begin", "118 MiB"):
        assert text in html, text
    assert re.search(r'class="counts">.*?<b>1</b> ready.*?<b>0</b> in work.*?<b>1</b> done', html, re.DOTALL)
    assert '"code": "-404"' in html, "what failed can be retried here"


def test_a_machine_is_shown_as_it_says_with_its_order_and_its_login(client: FlaskClient, queue: Queue) -> None:
    page = page_of(queue)
    stream = {"name": "v80-7", "done_bytes": 1024**2, "total_bytes": 4 * 1024**2, "mirror": "a.mirror.test"}
    job = {"url": page.url, "title": "Its title", "stage": "downloading"}
    job["streams"] = [stream | {"speed_bytes_per_second": 2048}, stream | {"name": "a30280"}]
    working = {"stop": 1, "count": 3, "max_speed": 2.5 * 1024**2, "drain": 0}
    login = {"id": "x", "state": "scan", "link": "https://passport.bilibili.com/h5?key=1", "note": ""}
    beat(queue, "w1", working=working, jobs=[job], note="says something", account="abc", login=login, done=17, failed=2)
    queue.steer(["w1"], {"stop": 0, "count": 5}, "192.0.2.1", login["id"])
    html = told(client.get("/ui/machines"))
    for text in (
        "at most 3 at once",
        "at most 2.5 MiB/s",
        "says something",
        "with an account",
        "a.mirror.test",
        "done: 17",
        "failed: 2",
    ):
        assert text in html, text
    assert "1.0 MiB / 4.0 MiB" in html and "2.0 KiB/s" in html
    assert re.search(r"told, not obeyed yet.*pause · at most 5 at once", html)
    assert "<svg" in html and "Scan this" in html
    tags = Tags(html)
    assert [names["value"] for names in tags.of("progress")] == [str(1024**2)] * 2
    assert [names.get("value") for names in tags.of("input")[-2:]] == ["3", "2.5M"]
    assert "Its title" not in told(client.get("/ui/machines?find=other"))
    assert "No machine has that in its name" in client.get("/ui/machines?find=other").text
    beat(queue, "w1", login=login | {"link": "https://evil.test/"})
    html = told(client.get("/ui/machines?fragment"))
    assert "<svg" not in html and "evil.test" not in html, "a machine's word is not believed"


def test_machines_come_by_pages(client: FlaskClient, queue: Queue) -> None:
    for number in range(65):
        beat(queue, f"m{number:03d}")
    assert Tags(client.get("/ui/machines").text).of("article")[0]["aria-label"] == "m000"
    shown = [len(Tags(client.get(f"/ui/machines?page={number}").text).of("article")) for number in (1, 2, 3, 4)]
    assert shown == [30, 30, 5, 0]
    assert "/ui/machines" in client.get("/ui/machines?page=3").text


def test_jobs_are_found_filtered_and_paged(client: FlaskClient, queue: Queue) -> None:
    finish(queue, page_of(queue, title="Snow"), "Snow")
    fail(queue, page_of(queue, OTHER_VIDEO, 12), title="Rain")
    for state, there, missing in (("done", "Snow", "Rain"), ("dead", "Rain", "Snow")):
        html = told(client.get(f"/ui/jobs?state={state}"))
        assert there in html and missing not in html
    assert "Snow" in told(client.get("/ui/jobs?find=sno"))
    assert "Rain" in told(client.get("/ui/jobs?category=music&source=mid:137137"))
    assert "No job is like that" in told(client.get("/ui/jobs?category=nothing&state=dead"))
    assert 'action="/ui/jobs"' in client.get("/ui/jobs").text
    assert "one of" in told(client.get("/ui/jobs?state=odd"), 400)


def test_all_that_a_search_lists_can_be_cancelled_at_once(client: FlaskClient, queue: Queue) -> None:
    queue.add([VIDEO, OTHER_VIDEO], "music")
    queue.add([THIRD_VIDEO], "other")
    assert "Cancel these" not in told(client.get("/ui/jobs"))
    html = told(client.get("/ui/jobs?category=music"))
    (body,) = [names["data-body"] for names in Tags(html).of("button") if names.get("data-ask")]
    assert client.post("/cancel", json=json.loads(str(body))).json == {"cancelled": 2}
    assert "Retry these 2" in told(client.get("/ui/jobs?category=music"))


def test_a_long_list_of_jobs_goes_on(client: FlaskClient, queue: Queue) -> None:
    queue.add([aid_to_bvid(5000 + number) for number in range(120)])
    seen: list[str] = []
    path: str | None = "/ui/jobs?state=ready"
    while path:
        tags = Tags(told(client.get(path)))
        seen += [str(names["id"]) for names in tags.of("li") if str(names.get("id")).startswith("job-")]
        path = next((names["href"] for names in tags.of("a") if names.get("rel") == "next"), None)
    assert len(seen) == len(set(seen)) == 120


def test_the_life_of_a_job_is_told(client: FlaskClient, queue: Queue) -> None:
    page = page_of(queue)
    fail(queue, page, "transient", "transfer")
    html = told(client.get("/ui/job", query_string={"url": page.url}))
    for text in ("reason of transfer", "attempt 1", "delayed", "mid:137137", "Retry", "Put first", "Cancel"):
        assert text in html, text
    queue.redrive([page.url])
    (lease,) = queue.lease("w2", 1)
    finish(queue, lease)
    html = told(client.get("/ui/job", query_string={"url": page.url, "fragment": ""}))
    for text in ("music/A title.mp4", "1080P AVC · 192K", "reason of transfer", "118 MiB", "Forget"):
        assert text in html, text
    assert "knows no such job" in told(client.get("/ui/job?url=BV1xx411c7mD"), 404)


def test_a_job_that_is_in_work_shows_how_far_its_machine_is(client: FlaskClient, queue: Queue) -> None:
    page = page_of(queue)
    address = {"path": "/ui/job", "query_string": {"url": page.url}}
    assert "progress" not in told(client.get(**address)), "nothing was told of it yet"
    stream = {"name": "v80-7", "done_bytes": 1024**2, "total_bytes": 3 * 1024**2, "speed_bytes_per_second": 1024**2}
    job = {"url": page.url, "stage": "downloading", "streams": [stream | {"mirror": "a.mirror.test"}]}
    beat(queue, "w1", jobs=[job])
    html = told(client.get(**address))
    for text in ("downloading", "about 2 s left", "1.0 MiB / 3.0 MiB", "a.mirror.test", "1.0 MiB/s"):
        assert text in html, text
    html = told(client.get("/ui/jobs"))
    assert f'max="{3 * 1024**2}" value="{1024**2}"' in html and "downloading · about 2 s left" in html
    beat(queue, "w2", jobs=[job | {"stage": "merging"}])
    assert "merging" not in told(client.get("/ui/jobs")), "another machine that still speaks of it"
    finish(queue, page)
    for where in ({"path": "/ui/jobs"}, address):
        assert "progress" not in told(client.get(**where))


def test_what_is_not_found_is_told_with_what_can_be(client: FlaskClient, queue: Queue) -> None:
    queue.add([VIDEO])
    assert "by its id only" in told(client.get("/ui/jobs?find=Some+title"))
    html = told(client.get("/ui/jobs?state=dead"))
    assert "No job is like that" in html and "by its id only" not in html


def test_failures_are_grouped_and_each_kind_opens(client: FlaskClient, queue: Queue) -> None:
    for number in range(3):
        fail(queue, page_of(queue, aid_to_bvid(2000 + number), 100 + number), title=f"Title {number}")
    fail(queue, page_of(queue, VIDEO, 200), "transient", "transfer", "Later")
    html = told(client.get("/ui/failures"))
    assert "failed: 3" in html and "tried again: 1" in html and "Title 0" not in html
    html = told(client.get("/ui/failures?code=-404"))
    assert all(f"Title {number}" in html for number in range(3)) and "Later" not in html


def test_a_source_shows_its_ledger_and_what_may_be_done(client: FlaskClient, queue: Queue) -> None:
    queue.add(["mid:137137"])
    (lease,) = queue.lease("w1", 1)
    page = ListedPage(1, "Her", 3, 1, {"gone": 1}, ended="end")
    queue.expand(lease.url, lease.token, (), [VIDEO, OTHER_VIDEO], ledger=page)
    html = told(client.get("/ui/sources"))
    for text in ("Her", "complete", "listed: 2 of 3", "gone: 1", "https://space.bilibili.com/137137", "every 1 h"):
        assert text in html, text
    queue.watch("mid:137137", 7200)
    assert "Watch no more" in told(client.get("/ui/sources?after="))


def test_a_wrong_address_is_a_page_that_says_so(client: FlaskClient) -> None:
    assert "nothing at this address" in told(client.get("/ui/nothing"), 404)
    assert "error" in (client.get("/nothing").json or {})


@pytest.mark.parametrize("path", [*PAGES, "/ui/failures?code=" + "x", "/ui/jobs?state=done", "/ui/jobs?state=dead"])
def test_no_text_becomes_markup(client: FlaskClient, queue: Queue, path: str) -> None:
    finish(queue, page_of(queue, VIDEO, 1), HOSTILE, f"other/{HOSTILE}.mp4")
    page = page_of(queue, OTHER_VIDEO, 2)
    queue.nack(page.url, page.token, Failure("permanent", "x", HOSTILE, HOSTILE))
    job = {"url": page.url, "title": HOSTILE, "stage": HOSTILE, "streams": [{"name": HOSTILE, "mirror": HOSTILE}]}
    state = {"state": HOSTILE, "note": HOSTILE, "order_problem": HOSTILE, "jobs": [job]}
    login = {"id": HOSTILE, "state": "failed", "note": HOSTILE}
    queue.heartbeat(HOSTILE, [], state | {"login": login})
    queue.steer([HOSTILE], {}, HOSTILE, login["id"])
    queue.note_action(HOSTILE, HOSTILE, HOSTILE)
    for suffix in ("", "&fragment" if "?" in path else "?fragment"):
        html = told(client.get(path + suffix))
        tags = Tags(html)
        assert [names for names in tags.of("img") if names["src"] != "/static/icon.svg"] == []
        assert not [names for _tag, names in tags.found if "style" in names or any(n.startswith("on") for n in names)]
        assert "76961641" not in html
        assert not any(str(names.get("href", "")).lower().startswith("javascript:") for names in tags.of("a"))


# ------------------------------------------------------------------------------------------ adding lines


def test_each_line_gets_its_answer(client: FlaskClient, queue: Queue) -> None:
    body = {"urls": [VIDEO, "rubbish", f" {VIDEO} ", "mid:137137", "https://b23.tv/abc"], "category": "course"}
    answer = client.post("/ui/add", json=body)
    found = answer.json or {}
    assert (answer.status_code, found["added"], found["known"], found["rejected"]) == (200, 2, 1, 2)
    states = ["added", "rejected", "known", "added", "rejected"]
    assert [item["state"] for item in found["items"]] == states
    assert [item["url"] for item in found["items"]] == body["urls"]
    assert all(bool(item["reason"]) == (item["state"] == "rejected") for item in found["items"])
    assert queue.counts().ready == 2
    assert queue.actions(5)[0]["what"] == "add"
    assert client.post("/ui/add", json={"urls": [VIDEO], "category": "a/b"}).status_code == 400


def test_what_is_added_may_be_watched_from_then_on(client: FlaskClient, queue: Queue) -> None:
    answer = client.post("/ui/add", json={"urls": ["mid:137137", "mid:5"], "watch": 3600})
    assert (answer.json or {})["added"] == 2
    assert [item["watched"] for item in queue.sources("", 9)[0]] == [3600, 3600]
    assert client.post("/ui/add", json={"urls": ["mid:6"], "watch": 0}).status_code == 200
    assert [item["watched"] for item in queue.sources("", 9)[0]].count(3600) == 2


def test_lines_that_are_sent_twice_count_the_same(client: FlaskClient) -> None:
    body = {"urls": [VIDEO, OTHER_VIDEO], "request": "abc"}
    answers = [client.post("/ui/add", json=body).json for _unused in range(2)]
    assert answers[0] == answers[1] and (answers[0] or {})["added"] == 2


# ------------------------------------------------------------------------------------------ choices, fragments


def test_language_and_colours_are_chosen_by_a_link_and_stay(client: FlaskClient) -> None:
    answer = client.get("/ui/jobs?state=done&language=zh-CN")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/jobs?state=done")
    assert '<html lang="zh-CN"' in client.get("/", headers={"Accept-Language": "en"}).text
    answer = client.get("/?theme=dark&language=en")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    for wish, sheets in (
        ("dark", [None]),
        ("auto", ["(prefers-color-scheme: dark)"]),
        ("light", []),
    ):
        client.get(f"/?theme={wish}")
        tags = Tags(client.get("/").text)
        found = [names.get("media") for names in tags.of("link") if "dark.css" in str(names["href"])]
        assert (found, tags.of("html")) == (sheets, [{"lang": "en"}]), wish
    assert client.get("/?theme=pink&language=xx").status_code == 200


def test_a_fragment_is_what_changes_and_nothing_where_nothing_did(sharing: FlaskClient, queue: Queue) -> None:
    client = sharing
    answer = client.get("/ui/failures?fragment")
    assert "<html" not in answer.text and "Nothing has failed" in answer.text
    tag = answer.headers["ETag"]
    same = client.get("/ui/failures?fragment", headers={"If-None-Match": tag})
    assert (same.status_code, same.text) == (304, "")
    fail(queue, page_of(queue))
    client.post("/redrive", json={"urls": [OTHER_VIDEO]})  # whoever did something sees at once what came of it
    changed = client.get("/ui/failures?fragment", headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["ETag"] != tag


def test_all_viewers_share_one_look(sharing: FlaskClient, queue: Queue, monkeypatch: Any) -> None:
    client = sharing
    looks = 0
    groups = queue.failure_groups

    def counted() -> Any:
        nonlocal looks
        looks += 1
        return groups()

    monkeypatch.setattr(queue, "failure_groups", counted)
    for _unused in range(20):
        assert client.get("/ui/failures?fragment").status_code == 200
    assert looks == 1
    client.get("/ui/failures?fragment&code=x")
    assert looks == 2, "another page"


# ------------------------------------------------------------------------------------------ what is kept


def test_what_was_made_is_kept_for_a_second_and_longer_where_it_took_long() -> None:
    now, made = 100.0, 0
    cost = 0.0

    def make() -> int:
        nonlocal made, now
        made += 1
        now += cost
        return made

    kept: Kept[int] = Kept(lambda: now)
    assert [kept.get("a", make), kept.get("a", make), kept.get("b", make)] == [1, 1, 2]
    now += 1.01
    cost = 0.1
    assert kept.get("a", make) == 3
    now += 4.9
    assert kept.get("a", make) == 3
    now += 0.2
    cost = 60.0
    assert kept.get("a", make) == 4
    now += LONGEST_SECONDS + 0.1
    assert kept.get("a", make) == 5
    kept.clear()
    assert kept.get("a", make) == 6
    for number in range(MAX_ENTRIES + 50):
        kept.get(number, make)
    assert len(kept._entries) == MAX_ENTRIES


def test_one_makes_it_and_the_others_take_the_old_one_meanwhile() -> None:
    now = 0.0
    kept: Kept[str] = Kept(lambda: now)
    assert kept.get("a", lambda: "old") == "old"
    now = 2.0
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(10)
        return "new"

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(kept.get("a", slow)))
    thread.start()
    assert begun.wait(10)
    assert kept.get("a", lambda: "another") == "old"
    go_on.set()
    thread.join(10)
    assert found == ["new"] and kept.get("a", lambda: "another") == "new"
    now += STALE_SECONDS * 3
    assert kept.get("a", lambda: "another") == "another"


def test_a_failure_is_not_kept() -> None:
    kept: Kept[str] = Kept(lambda: 0.0)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: str(1 / 0))
    assert kept.get("a", lambda: "good") == "good"


# ------------------------------------------------------------------------------------------ signing in


def sign_in(client: FlaskClient, password: str, address: str = "192.0.2.9") -> TestResponse:
    return client.post("/ui/sign-in", json={"password": password}, environ_base={"REMOTE_ADDR": address})


def test_a_browser_is_asked_by_a_page_and_stays_signed_in(guarded: FlaskClient) -> None:
    for path in (*PAGES, "/?fragment"):
        answer = guarded.get(path)
        assert 'type="password"' in told(answer, 401)
        assert [value.split()[0].lower() for value in answer.headers.getlist("WWW-Authenticate")] == ["bearer"]
        assert "Now" not in answer.text
    answer = sign_in(guarded, TOKEN)
    assert answer.status_code == 200
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Secure" not in cookie and TOKEN not in cookie
    for path in (*PAGES, "/status"):
        assert guarded.get(path).status_code == 200
    assert "data-sign-out" in guarded.get("/").text
    assert guarded.post("/add_url", json={"urls": [VIDEO]}).status_code == 200
    assert guarded.get("/get_url").status_code == 401, "nothing that a browser remembers leases"
    assert guarded.post("/ui/sign-out", json={}).status_code == 200
    assert guarded.get("/").status_code == 401


def test_a_session_does_nothing_for_other_sites_and_forms(guarded: FlaskClient, queue: Queue) -> None:
    sign_in(guarded, TOKEN)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "same-site"}):
        for path in ("/add_url", "/ui/add", "/ui/sign-in", "/ui/sign-out", "/steer"):
            assert guarded.post(path, json={"urls": [VIDEO]}, headers=headers).status_code == 403
        assert guarded.get("/status", headers=headers).status_code == 403
    assert guarded.post("/ui/add", data={"urls": VIDEO}).status_code == 415
    assert guarded.post("/ui/sign-out", data="{}", content_type="text/plain").status_code == 415
    assert queue.counts().ready == 0


def test_behind_a_proxy_with_tls_the_cookie_is_for_tls_only(guarded: FlaskClient) -> None:
    answer = guarded.post("/ui/sign-in", json={"password": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in answer.headers["Set-Cookie"]


def test_wrong_tokens_count_in_the_same_lock_out(guarded: FlaskClient) -> None:
    statuses = [sign_in(guarded, f"guess {number}").status_code for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    headers = {"Authorization": "Bearer another"}
    answer = guarded.get("/status", headers=headers, environ_base={"REMOTE_ADDR": "192.0.2.9"})
    assert answer.status_code == 429
    assert sign_in(guarded, TOKEN).status_code == 200


def test_without_a_token_nobody_is_asked(client: FlaskClient) -> None:
    answer = sign_in(client, "anything")
    assert answer.status_code == 200 and "Set-Cookie" not in answer.headers
    assert "data-sign-out" not in client.get("/").text


def test_a_session_is_of_its_token_and_its_time() -> None:
    now = 1_000_000.0
    sessions, same, other = Sessions(TOKEN, lambda: now), Sessions(TOKEN, lambda: now), Sessions("x", lambda: now)
    value = sessions.issue()
    assert sessions.holds(value) and same.holds(value), "all servers with that token"
    assert sessions.cookie == same.cookie != other.cookie
    assert not other.holds(value), "another token ends all sessions"
    for wrong in (
        "",
        value[:-1],
        value[1:],
        f"9{value}",
        value.replace(".", ".0", 1),
        "9" * 12 + value[7:],
        value + "\n",
    ):
        assert not sessions.holds(wrong), wrong
    now += SESSION_SECONDS - 1
    assert sessions.holds(value)
    now += 2
    assert not sessions.holds(value)
    assert not Sessions("").holds(Sessions("").issue())


# ------------------------------------------------------------------------------------------ words and numbers


def worker(**more: Any) -> dict[str, Any]:
    return {"worker": "w", "state": "running"} | more


@pytest.mark.parametrize(
    ("counts", "workers", "state"),
    [
        (Counts(0, 0, 0, 0, 0), [], "empty"),
        (Counts(0, 0, 0, 5, 0), [worker()], "done"),
        (Counts(0, 0, 0, 0, 5), [], "done"),
        (Counts(1, 0, 0, 0, 0), [], "nobody"),
        (Counts(1, 0, 0, 0, 0), [worker(state="away"), worker(state="silent"), worker(state="ended")], "nobody"),
        (Counts(1, 1, 0, 0, 0), [worker(), worker(state="paused")], "working"),
        (Counts(1, 1, 0, 0, 0), [worker(state="paused")], "paused"),
        (Counts(1, 1, 0, 0, 0), [worker(state="paused"), worker(state="silent")], "paused"),
        (Counts(1, 0, 0, 0, 0), [worker(state="parked")], "parked"),
        (Counts(1, 0, 0, 0, 0), [worker(state="drained")], "drained"),
        (Counts(1, 0, 1, 0, 0), [worker()], "starting"),
        (Counts(0, 0, 1, 0, 0), [worker()], "waiting"),
    ],
)
def test_the_farm_in_one_word(counts: Counts, workers: list[dict[str, Any]], state: str) -> None:
    assert look_ahead(counts, workers, None).state == state


def test_the_outlook_adds_up_and_finds_the_least_room() -> None:
    workers = [
        worker(worker="a", speed_bytes_per_second=5, disk_free_bytes=9),
        worker(worker="b", speed_bytes_per_second=7, disk_free_bytes=8),
        worker(worker="c", state="silent", speed_bytes_per_second=0, disk_free_bytes=1),
    ]
    found = look_ahead(Counts(1, 1, 0, 0, 0), workers, 60.0)
    assert (found.speed_bytes_per_second, found.least_room, found.seconds_left) == (12, ("b", 8), 60.0)
    assert (found.machines, found.here) == ({"running": 2, "silent": 1}, 2)


def test_a_machine_that_says_no_more_has_no_speed_and_later_nothing_but_a_name() -> None:
    stream = {"name": "v80-7", "done_bytes": 10, "total_bytes": 30, "speed_bytes_per_second": 5}
    job = {"url": "BV1", "stage": "downloading", "streams": [stream, stream | {"done_bytes": 30}]}
    told = {"worker": "w", "state": "running", "speed_bytes_per_second": 9, "jobs": [job]}
    here, silent, away = (seen_worker(told | {"seen_seconds": seconds}, 1000.0, 60.0) for seconds in (2, 31, 181))
    assert [one["state"] for one in (here, silent, away)] == ["running", "silent", "away"]
    assert (here["speed_bytes_per_second"], silent["speed_bytes_per_second"]) == (9, 0)
    assert away == {"worker": "w", "seen": 819.0, "state": "away"}
    assert seen_worker(told | {"seen_seconds": 100, "state": "ended"}, 1000.0, 1.0)["state"] == "ended"
    assert seen_worker({"worker": "w", "seen_seconds": 1, "working": {"stop": 0}}, 9.0, 60.0)["state"] == "paused"
    (job,) = in_detail(here)["jobs"]
    assert [one["speed_bytes_per_second"] for one in job["streams"]] == [5, 0], "what is whole does not move"
    assert job["seconds_left"] == 4.0
    for standing in (silent, here | {"state": "paused"}):
        (job,) = in_detail(standing)["jobs"]
        assert job["seconds_left"] is None
        assert [one["speed_bytes_per_second"] for one in job["streams"]] == [0, 0]
    assert in_detail(away)["jobs"] == []


def test_an_order_of_old_is_told_in_words_and_what_is_none_as_it_stands() -> None:
    order = {"what": "steer", "about": 'cellar, a: b: "stop": 0, "max_speed": "2M"', "who": "192.0.2.1"}
    assert in_words(order) == order | {"about": "cellar, a: b", "working": {"stop": 0, "max_speed": "2M"}}
    for about in ('cellar: "stop": ', "cellar", 'cellar: "else": 1'):
        assert in_words(order | {"about": about}) == order | {"about": about, "working": {}}
    added = {"what": "add", "about": 'x: "stop": 0'}
    assert in_words(added) == added | {"working": {}}


@pytest.mark.parametrize(
    ("speed", "text"),
    [(0, "0"), (16384, "16K"), (2.5 * 1024**2, "2.5M"), (1024**3, "1G"), (800 * 1024, "800K"), (20000, "20000")],
)
def test_a_limit_is_written_as_it_is_set(speed: float, text: str) -> None:
    assert speed_setting(speed) == text
    assert parse_speed(text) == speed


def test_a_moment_is_written_for_the_browser() -> None:
    assert moment_text(1795363949.7) == "2026-11-22T16:12:30Z"
