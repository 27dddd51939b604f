"""The picture of a QR code that a page shows while a machine logs in."""

from __future__ import annotations

from urllib.parse import urlsplit

from markupsafe import Markup

from account import SITE, origin

LINK_CHARACTERS = 1000
"""As much as a heartbeat may carry; a code of this length can still be scanned from a screen."""
BORDER = 4
"""In squares: less of it, and some cameras do not find the code (ISO/IEC 18004)."""


def qr_svg(link: str, passport_url: str = "") -> Markup:
    """Return an inline SVG of a link to the site's login; nothing for any other link.

    A worker's text is not believed: what a phone is made to open must be of the site, over https, or of the stand-in
    that ``passport_url`` names, the server's setting.
    """
    if len(link) > LINK_CHARACTERS or not link.isascii() or not is_login_link(link, passport_url):
        return Markup("")
    import segno  # most pages show no code

    code = segno.make(link, micro=False)
    # No style and no script in it, so that the Content-Security-Policy need not allow any; white behind it in the dark.
    picture = code.svg_inline(scale=4, border=BORDER, dark="#000", light="#fff", svgclass="qr", lineclass=None)
    return Markup(picture)  # of squares alone: the link is in it as a picture only


def is_login_link(link: str, passport_url: str) -> bool:
    """Tell whether a link leads to the site, or to its stand-in."""
    try:
        place = scheme, host, port = origin(link)
        has_user = urlsplit(link).username is not None
    except ValueError:
        return False
    is_site = (scheme, port) == ("https", 443) and (host == SITE or host.endswith(f".{SITE}"))
    return not has_user and (is_site or (bool(passport_url) and place == origin(passport_url)))
