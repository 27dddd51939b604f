from __future__ import annotations

import aiohttp
import pytest
from multidict import CIMultiDict

from config import Settings
from transfer.media_client import MediaClient, judge_failure
from transfer.mirrors import media_allowed


def test_the_causes_of_failures_hold_no_address() -> None:
    secret = "http://h.test/?upsig=secret"
    request = aiohttp.RequestInfo(aiohttp.client.URL(secret), "GET", CIMultiDict(), aiohttp.client.URL(secret))  # type: ignore[arg-type, attr-defined]
    errors: list[BaseException] = [
        aiohttp.ClientResponseError(request, (), status=400, message=secret),
        aiohttp.InvalidURL(secret),
        aiohttp.ServerDisconnectedError(secret),
        aiohttp.ClientOSError(104, secret),
        aiohttp.ClientPayloadError(secret),
        TimeoutError(secret),
    ]
    for error in errors:
        assert "secret" not in judge_failure(error).cause


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://a.bilivideo.com/1?x=http://y", "https://a.bilivideo.com/1?x=http://y"),
        ("https://a.bilivideo.com/1", "https://a.bilivideo.com/1"),
        ("http://127.0.0.1:9/1", "http://127.0.0.1:9/1"),
        ("http://elsewhere.example/1", "http://elsewhere.example/1"),
    ],
)
async def test_a_plain_address_of_the_site_is_asked_over_https(given: str, asked: str) -> None:
    allowed = media_allowed(("bilivideo.com",), ("127.0.0.1:9",))
    async with MediaClient(Settings(), allowed, {}) as client:
        assert client.secured(given) == asked
