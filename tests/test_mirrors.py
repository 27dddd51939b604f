from __future__ import annotations

from pathlib import Path

import pytest
from multidict import CIMultiDict

from transfer import mirrors
from transfer.mirrors import Cooldown, Health, Mirrors, Patience, is_pcdn, media_allowed
from transfer.range_reply import Asked, Meaning, Verdict, judge

REAL = media_allowed(("bilivideo.com", "szbdyd.com"), ("127.0.0.1:8000", "media.test", "[::1]:9"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://upos-sz-mirrorcos.bilivideo.com/a.m4s?x=1", True),
        ("https://bilivideo.com/a", True),
        ("https://BILIVIDEO.com./a", True),
        ("https://x.szbdyd.com:4480/a", True),
        ("http://upos.bilivideo.com/a", False),
        ("https://evilbilivideo.com/a", False),
        ("https://bilivideo.com.evil.test/a", False),
        ("https://bilivideo.com@evil.test/a", False),
        ("https://user:pass@bilivideo.com/a", False),
        ("https://evil.test\\@bilivideo.com/a", False),
        ("https://evil.test /bilivideo.com", False),
        ("http://127.0.0.1:8000/a", True),
        ("http://127.0.0.1:6379/a", False),
        ("https://127.0.0.1/a", False),
        ("https://10.0.0.1/a", False),
        ("https://[::1]/a", False),
        ("http://[::1]:9/a", True),
        ("https://169.254.169.254/latest", False),
        ("https://2130706433/a", False),
        ("http://media.test/a", True),
        ("http://a.media.test:81/a", True),
        ("ftp://media.test/a", False),
        ("file:///etc/passwd", False),
        ("https://[bilivideo.com/a", False),
        ("https://bilivideo.com:99999/a", False),
        ("", False),
    ],
)
def test_media_come_only_from_known_hosts(url: str, expected: bool) -> None:
    assert REAL(url) is expected


def test_an_extra_suffix_never_means_an_ip_address() -> None:
    allowed = media_allowed(("0.0.1",), ("0.0.1",))
    assert not allowed("https://127.0.0.1/a")
    assert media_allowed((), ("127.0.0.1",))("http://127.0.0.1:1234/a")


def test_pcdn_hosts_are_told_from_mirrors() -> None:
    assert is_pcdn("https://xy1x2x3x4xy.mcdn.bilivideo.cn:4483/upgcxcode/1")
    assert is_pcdn("https://a.szbdyd.com/1")
    assert is_pcdn("https://b.mountaintoys.cn/1")
    assert is_pcdn("https://upos.bilivideo.com:8082/1")
    assert not is_pcdn("https://upos-sz-mirrorcos.bilivideo.com/1")
    assert not is_pcdn("https://upos-hz-mirrorakam.akamaized.net:443/1")


def test_failures_side_by_side_count_once_and_the_wait_grows() -> None:
    cooldown = Cooldown()
    assert cooldown.fail(began=0, now=1, wait_seconds=float)
    assert not cooldown.fail(began=0.5, now=1.5, wait_seconds=float)
    assert (cooldown.failures, cooldown.until) == (1, 2)
    assert cooldown.fail(began=2, now=3, wait_seconds=float)
    assert (cooldown.failures, cooldown.until) == (2, 5)


async def test_the_order_of_mirrors() -> None:
    health = Health(lambda: 0.0)
    urls = ["https://x.mcdn.bilivideo.cn:4483/", "https://a.bilivideo.com/", "https://b.bilivideo.com/"]
    group = Mirrors(health, [*urls, urls[1]], draw=lambda: 1.0)
    pcdn, a, b = group.all
    assert group.pick(0) is a
    a.active = 1
    assert group.pick(0) is b
    group.failed(b, judge(502, CIMultiDict(), Asked(0, 1)), began=0, now=0)
    assert group.pick(0.1) is a
    assert group.pick(0.6) is a  # b is cool again, but has failed
    group.failed(a, judge(403, CIMultiDict(), Asked(0, 1)), began=0, now=0)
    assert group.pick(0.1) is pcdn  # only while no mirror is ready
    assert group.pick(0.6) is b
    other = Mirrors(health, ["https://b.bilivideo.com/other-stream"])
    assert other.pick(0.1) is None, "a host that fails is left alone by all streams"
    assert other.wait_seconds(0.1) == pytest.approx(0.4)
    other.worked(other.all[0])
    group.failed(b, judge(503, CIMultiDict(), Asked(0, 1)), began=1, now=1)
    assert other.pick(1.1) is not None, "but what has served a stream is not left for another file's failures"


def test_a_slow_mirror_need_not_cool_down_for_long() -> None:
    health = Health(lambda: 0.0)
    [mirror] = (group := Mirrors(health, ["https://a.bilivideo.com/"], draw=lambda: 1.0)).all
    for now in range(Patience().fruitless_rounds):
        assert not group.are_hopeless()
        group.failed(mirror, Verdict(Meaning.BROKEN, slow=True), began=now, now=now)
        assert mirror.ready_at == now + Patience().backoff_seconds
    assert group.are_hopeless()
    group.gained()
    assert not group.are_hopeless()


def test_the_longest_unused_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer.mirrors.MOST_HOSTS", 3)
    health = Health(lambda: 5)
    health.host("cools").cooldown.until = 6
    kept = health.host("again")
    for host in ("b", "again", "c"):
        health.host(host)
    assert list(health.hosts) == ["cools", "again", "c"]
    assert health.host("again") is kept


# ------------------------------------------------------------------------------------------ how they fare


A, B, C = (f"https://{name}.bilivideo.com/1.m4s?upsig=secret" for name in "abc")


def met(*urls: str, health: Health | None = None, **more: object) -> Mirrors:
    return Mirrors(health or Health(lambda: 0.0), urls, Patience(**more), draw=lambda: 1.0)  # type: ignore[arg-type]


def test_the_quicker_mirror_comes_first_and_equals_share() -> None:
    group = met(A, B, C)
    a, b, c = group.all
    for mirror, speed in ((a, 50e3), (b, 4e6), (c, 3e6)):
        mirror.saw_first_byte(0.05, 0)
        mirror.saw_speed(speed, 0)
    picked = []
    for _n in range(6):
        mirror = group.pick(0)
        assert mirror is not None
        mirror.begin()
        picked.append(mirror)
    assert picked.count(a) == 0
    assert picked.count(b) == picked.count(c) == 3


def test_what_nobody_knows_is_tried_with_one_request_beside_what_works() -> None:
    group = met(A, B)
    a, b = group.all
    a.saw_speed(1e6, 0)
    picked = []
    for _n in range(5):
        mirror = group.pick(0)
        assert mirror is not None
        mirror.begin()
        picked.append(mirror)
    assert picked.count(b) == 1


def test_a_quick_peer_to_peer_host_is_better_than_a_mirror_that_is_far_behind() -> None:
    pcdn = "https://x.mcdn.bilivideo.cn:4483/1"
    group = met(A, pcdn)
    a, p = group.all
    a.saw_speed(1e6, 0)
    p.saw_speed(2e6, 0)
    assert group.pick(0) is a
    a.saw_speed(1.0, 0)
    for _n in range(20):
        a.saw_speed(50e3, 0)
    assert group.pick(0) is p


def test_an_old_measurement_is_no_measurement() -> None:
    group = met(A, B)
    a, b = group.all
    a.saw_speed(1.0, 0)
    b.saw_speed(1e6, 0)
    assert group.pick(0) is b
    later = mirrors.KNOWN_SECONDS + 1
    assert group.pick(later) is a, "the first of the site's, as if nothing were known"
    a.saw_speed(5e6, later)
    assert a.speed(later) == 5e6


def test_an_address_has_a_health_of_its_own_beside_that_of_its_host() -> None:
    health = Health(lambda: 0.0)
    refused, fine = (f"https://a.bilivideo.com/{name}.m4s" for name in ("refused", "fine"))
    [mirror] = met(refused, health=health).all
    met(refused, health=health).failed(mirror, Verdict(Meaning.BROKEN, cause="cut"), began=0, now=0)
    [same] = met(refused, health=health).all
    [other] = met(fine, health=health).all
    assert same.ready_at > 0
    assert other.ready_at < 0


def test_a_push_back_halves_what_a_host_gets_and_time_gives_it_back() -> None:
    group = met(A, B)
    a, _b = group.all
    for _n in range(8):
        a.begin()
    a.end()
    pushed = Verdict(Meaning.BROKEN, cause="status 429", host_wide=True, pushback=True)
    group.failed(a, pushed, began=1, now=2)
    assert a.host.room(2) == 3.5
    group.failed(a, pushed, began=1.5, now=2.5)
    assert a.host.room(2) == 3.5, "what ran beside it was refused for the same reason"
    assert a.ready_at < 0, "those that it serves go on"
    assert a not in group.ready(2)
    for _n in range(4):
        a.end()
    assert a in group.ready(2)
    assert a.host.room(2 + 10 * mirrors.ROOM_GROWS_SECONDS) == 13.5


def test_a_refusal_of_the_only_request_is_waited_out() -> None:
    group = met(A)
    [a] = group.all
    group.failed(a, Verdict(Meaning.BROKEN, cause="status 503", host_wide=True, pushback=True), began=0, now=0)
    assert a.ready_at > 0


def test_a_mirror_is_behind_only_if_another_one_is_ready_and_far_quicker() -> None:
    group = met(A, B)
    a, b = group.all
    assert not group.is_behind(a, 10e3, 0)
    b.saw_speed(100e3, 0)
    assert group.is_behind(a, 20e3, 0)
    assert not group.is_behind(a, 30e3, 0)
    group.failed(b, Verdict(Meaning.BROKEN, cause="x"), began=0, now=0)
    assert not group.is_behind(a, 20e3, 0)


def test_a_late_mirror_is_waited_for_if_all_are_late_or_it_is_known_to_be() -> None:
    group = met(A, B)
    a, b = group.all
    assert group.late_after_seconds(a, 0) == Patience().late_seconds
    a.saw_first_byte(2.0, 0)
    assert group.late_after_seconds(a, 0) == 6.0
    b.was_late(1.0, 0)
    assert group.late_after_seconds(a, 0) == float("inf")
    b.saw_first_byte(0.1, 0)
    assert group.late_after_seconds(a, 0) == 6.0


# ------------------------------------------------------------------------------------------ over restarts


def test_what_is_known_outlives_the_process_and_holds_no_address(tmp_path: Path) -> None:
    before, path = Health(lambda: 1000.0), tmp_path / "mirrors.json"
    group = met(A, B, health=before)
    a, b = group.all
    a.saw_first_byte(0.25, 1000)
    a.saw_speed(2e6, 1000)
    group.failed(b, Verdict(Meaning.BROKEN, cause="x", host_wide=True, retry_after_seconds=500), began=1000, now=1000)
    before.save(path)
    assert "secret" not in path.read_text()
    assert "upsig" not in path.read_text()
    after = Health(lambda: 7.0)
    after.load(path)
    a, b = met(A, B, health=after).all
    assert (a.speed(7), a.first_byte_seconds) == (2e6, 0.25)
    assert 7 + 490 < b.ready_at <= 7 + 500
    assert [path.name for path in tmp_path.iterdir()] == ["mirrors.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"at": 1, "hosts": {"a": 5}, "urls": {}}', b"\xff\xfe", b"null"]
)
def test_whatever_is_in_the_file_a_worker_starts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mirrors.json"
    path.write_bytes(content)
    health = Health()
    health.load(path)
    health.load(tmp_path / "nowhere.json")
    assert health.hosts == {}
    assert health.urls == {}


def test_what_was_known_long_ago_is_not_counted_on(tmp_path: Path) -> None:
    path, now = tmp_path / "mirrors.json", mirrors.KNOWN_SECONDS + 10
    before = Health(lambda: now)
    [a] = met(A, health=before).all
    a.saw_speed(2e6, 0)
    a.saw_first_byte(0.5, 0)
    before.save(path)
    after = Health(lambda: now)
    after.load(path)
    assert met(A, health=after).all[0].speed(now) == 0
