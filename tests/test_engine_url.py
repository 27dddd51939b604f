"""REDIS_URL: each form is understood, each wrong one is one sentence, and no password is ever repeated."""

from __future__ import annotations

import pytest

from config import parse_settings
from engine_url import Address, read_url
from errors import UsageError

SECRET = "t0psecret"


@pytest.mark.parametrize(
    ("text", "place", "kind"),
    [
        ("redis://host", "host:6379", "single"),
        ("redis://:t0psecret@host:7000/3", "host:7000", "single"),
        ("valkeys://user:t0psecret@host", "host:6379", "single"),
        ("rediss://[2001:db8::1]:6380", "[2001:db8::1]:6380", "single"),
        ("unix://:t0psecret@/run/a.sock?db=1", "/run/a.sock", "socket"),
        ("redis+sentinel://a,b:1,[::1]/main", "main (a:26379,b:1,[::1]:26379)", "sentinel"),
        ("rediss+sentinel://u:t0psecret@a/main/2", "main (a:26379)", "sentinel"),
        ("valkey+cluster://u:t0psecret@a:1,b:2", "a:1,b:2", "cluster"),
    ],
)
def test_each_form_is_understood(text: str, place: str, kind: str) -> None:
    url = read_url(text)
    assert (url.place, url.kind) == (place, kind)
    assert SECRET not in repr(url)


def test_all_parts_are_found() -> None:
    url = read_url(
        "rediss+sentinel://us%40er:pa%3Ass%2F@a:1,b/ma%20in/4?sentinel_username=su&sentinel_password=s%26p"
        "&ssl_ca_certs=/ca.pem&ssl_check_hostname=no&wait_replicas=2&wait_fsync=yes&socket_timeout=2.5"
    )
    assert url.servers == (Address("a", 1), Address("b", 26379)) and url.service == "ma in" and url.database == 4
    assert (url.username, url.password) == ("us@er", "pa:ss/")
    assert (url.sentinel_username, url.sentinel_password) == ("su", "s&p")
    assert url.is_tls and url.wait_replicas == 2 and url.wait_fsync
    assert url.options == {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False, "socket_timeout": 2.5}
    assert read_url("redis://host?username=u&password=p&db=7") == read_url("redis://u:p@host/7")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must look like"),
        ("host:6379", "must look like"),
        ("http://:t0psecret@host", "must look like"),
        ("redis://", "a host is expected"),
        ("redis://:t0psecret@", "a host is expected"),
        ("redis://:t0psecret@host:0", "a host is expected"),
        ("redis://:t0psecret@host:99999", "a host is expected"),
        ("redis://:t0psecret/x@host", "%2F"),
        ("redis://:t0psecret#x@host", "%23"),
        ("redis://:t0psecret?x@host", "only these are known"),
        ("redis://host/one", "the number of a database"),
        ("redis://host/1/2", "the number of a database"),
        ("redis://t0psecret@host", "the user has no password"),
        ("redis://a,b", "several hosts"),
        ("redis+sentinel://a:1,b:2", "the name of the service is missing"),
        ("redis+sentinel://a:1,,b:2/main", "a host is expected"),
        ("redis+sentinel://a/main?sentinel_username=t0psecret", "sentinel_password is missing"),
        ("redis+cluster://a/1", "a cluster has database 0 only"),
        ("redis+cluster://a?sentinel_password=t0psecret", "belongs to redis+sentinel"),
        ("redis://a?ssl_ca_certs=/t0psecret", "belongs to an address with TLS"),
        ("rediss://a?ssl_cert_reqs=none", "always verified"),
        ("rediss://a?ssl_check_hostname=t0psecret", "ssl_check_hostname: yes or no"),
        ("redis://a?t0psecret=1", "only these are known"),
        ("redis://a?wait_replicas=10", "wait_replicas: a whole number from 0 to 9"),
        ("redis://a?socket_timeout=0", "socket_timeout: a number of seconds"),
        ("unix://run/a.sock", "a whole path"),
    ],
)
def test_each_wrong_form_is_one_sentence_without_its_password(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_url(text)
    assert sentence in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_wrong_address_is_a_wrong_setting() -> None:
    with pytest.raises(UsageError, match="REDIS_URL: several hosts") as caught:
        parse_settings({"REDIS_URL": f"redis://:{SECRET}@a,b"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("redis://127.0.0.1", False),
        ("redis://localhost", False),
        ("redis://[::1]", False),
        ("unix:///a.sock", False),
        ("redis://:x@192.0.2.1", False),
        ("redis://192.0.2.1", True),
        ("redis+cluster://127.0.0.1,192.0.2.1", True),
    ],
)
def test_an_engine_that_others_reach_without_a_password_is_known(text: str, is_open: bool) -> None:
    assert read_url(text).is_open is is_open
