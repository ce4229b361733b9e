"""What every request passes first: which host and page it comes by, how long it is, who sends it and how often."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Iterable
from functools import cache, partial
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from limits import RateLimitItem, parse_many
from limits.errors import ConfigurationError
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rectrio_lib.app.web import problems
from rectrio_lib.core.errors import ArgumentError

if TYPE_CHECKING:
    from rectrio_lib.app.web.access import Access

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MOST_BYTES, MOST_JSON = 64 << 20, 1 << 20  # of a body with files; of any other
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
SELF = ("script", "style", "connect", "manifest", "font", "worker")
POLICY = "; ".join([
    "default-src 'none'", *(f"{kind}-src 'self'" for kind in SELF), "img-src 'self' blob: data:", "media-src blob:",
    "base-uri 'none'", "form-action 'self'", "frame-ancestors 'self'",
])  # fmt: skip
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "private, no-cache",  # unless the route knows better
}
SLOWEST = 10_000  # bytes per second of a body; slower ones only hold a connection
PROBES = frozenset({"/health", "/ready"})  # need no key, and no rate counts them
PARTS = ("/thumbnails/", "/page/", "/docs/")  # of one look at the page, some forty of them: no rate counts them
NO_KEY = "This needs a key (`rectrio keys add`), as `Authorization: Bearer KEY`; or a link from `rectrio keys link`."
REDIS = {"socket_timeout": 1, "socket_connect_timeout": 1}
log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Shield:
    """ASGI middleware: refuses foreign hosts, foreign pages and long bodies; adds the headers that protect the page.

    It is added last, so that it is the outermost layer.

    Attributes:
        allowed: names that `Host` may hold, in lower case.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        allowed_hosts: Iterable[str] = (),
        most_bytes: int = MOST_BYTES,
        frames: Iterable[str] = (),
        grace: float = 30,
    ) -> None:
        """Wrap an application.

        Args:
            app: what to protect.
            host: the address it listens on; beyond loopback, `Host` may also be any IP address or this machine's name.
            allowed_hosts: more names, such as photos.example.org, .example.org for all below it, or * for any.
            most_bytes: of a body with files; any other has 1 MiB.
            frames: origins that may show the page in a frame, such as http://localhost:* for Jupyter.
            grace: seconds that a body may take besides those of SLOWEST.
        """
        self.app, self.most_bytes, self.grace = app, most_bytes, grace
        self.by_address = not is_loopback(host)
        names = {host, *allowed_hosts, *([socket.gethostname()] if self.by_address else [])}
        self.allowed = LOOPBACK | {name.lower() for name in names}
        self.headers = HEADERS | {"Content-Security-Policy": " ".join([POLICY, *frames])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, headers = True, MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["method"], headers := Headers(scope=scope))
            await self.app(scope, self._counted(headers, receive), send_with_headers)
        except Exception as error:  # a server error that has been logged is raised again after its answer
            if not started:
                await problems.of(error)(scope, receive, send_with_headers)
            elif not isinstance(error, HTTPException):
                log.error("the answer broke off", exc_info=error)
                raise

    def _check(self, method: str, headers: Headers) -> None:
        name = _name(headers.get("host", ""))
        if not self._allows(name):
            raise HTTPException(400, f"This service does not go by the name {name!r:.100}: --allowed-host adds a name.")
        if self._from_elsewhere(method, headers):
            raise HTTPException(403, "Another site's page sent this request: use the page of the service itself.")
        if (length := headers.get("content-length", "")).isdecimal():
            _measure(int(length), self._limit(headers))

    def _allows(self, name: str) -> bool:
        if name in self.allowed or "*" in self.allowed:
            return True
        below = any(allowed.startswith(".") and name.endswith(allowed) for allowed in self.allowed)
        return below or (self.by_address and _is_address(name))

    def _from_elsewhere(self, method: str, headers: Headers) -> bool:
        """Tell whether another site's page sent a request; programs send neither header, old browsers only Origin."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            opens = method in SAFE and headers.get("sec-fetch-mode") == "navigate"
            return site not in ("same-origin", "none") and not opens
        if method in SAFE or origin is None:
            return False
        host = headers.get("host", "").lower()
        try:
            place = urlsplit(origin.lower()).netloc
        except ValueError:  # such as http://[evil
            return True
        return place != host and _name(place) not in self.allowed - LOOPBACK - {"*"}

    def _limit(self, headers: Headers) -> int:
        with_files = headers.get("content-type", "").lower().startswith("multipart/form-data")
        return self.most_bytes if with_files else MOST_JSON

    def _counted(self, headers: Headers, receive: Receive) -> Receive:
        """Return `receive`, which refuses what comes after the limit, announced or not, and what does not come."""
        limit, so_far, complete, waited = self._limit(headers), 0, False, 0.0

        async def receive_counted() -> Message:
            nonlocal so_far, complete, waited
            began, left = time.monotonic(), None if complete else self.grace + so_far / SLOWEST - waited
            try:
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                raise HTTPException(408, "The request came too slowly: send fewer or smaller files at once.") from None
            waited += time.monotonic() - began
            so_far, complete = so_far + len(message.get("body", b"")), not message.get("more_body", False)
            _measure(so_far, limit)
            return message

        return receive_counted


def _measure(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"The request is longer than {limit:,} bytes: send fewer or smaller files at once.")


def _name(host: str) -> str:
    """Return the name in `Host`, without its port and the brackets of an IPv6 address, in lower case."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


class Gate:
    """ASGI middleware: finds the caller, counts the request, and lets nobody send a body without being known."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self.app(scope, receive, send)
        try:
            address = (scope.get("client") or ("",))[0]
            caller = await self.access.identify(Headers(scope=scope), address)
            if scope["path"].startswith(PARTS):
                pass
            elif caller is None or caller.keyless:
                await self.access.rates.count(self.access.rate, "address", address)
            else:
                await self.access.rates.count(caller.rate, "key", caller.name)
            if caller is None and scope["method"] not in SAFE:
                raise HTTPException(401, NO_KEY, {"WWW-Authenticate": "Bearer"})
        except Exception as error:
            return await problems.of(error)(scope, receive, send)
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)


class Rates:
    """Counts requests in a moving window: in this process, or in redis together with others."""

    def __init__(self, redis_url: str = "", workers: int = 1) -> None:
        """Prepare counting; see `Access`."""
        if workers > 1 and not redis_url:
            log.warning("%d processes count rates each by itself: RECTRIO_REDIS=redis://… lets them share.", workers)
        self._here, self._shared = MovingWindowRateLimiter(MemoryStorage()), None
        if redis_url:
            try:
                self._shared = MovingWindowRateLimiter(storage_from_string(redis_url, key_prefix="rectrio", **REDIS))
            except (ConfigurationError, ValueError) as error:
                said = f"{redis_url!r:.100} is no redis: write redis://host:6379; pip install redis."
                raise ArgumentError(said) from error

    async def count(self, rate: str, *who: str) -> None:
        """Count a request; refuse it with 429 if there were too many."""
        for item in read_rate(rate):
            hit = partial(self._hit, item, *who)
            wait = await run_in_threadpool(hit) if self._shared else hit()
            if wait:
                raise HTTPException(429, f"More than {item}: try again in {wait} s.", {"Retry-After": str(wait)})

    def _hit(self, item: RateLimitItem, *who: str) -> int:
        """Count, and return for how many seconds there were too many: 0 if there were not."""
        if self._shared:
            try:
                return _hit(self._shared, item, *who)
            except self._shared.storage.base_exceptions as error:
                log.warning("redis does not answer (%s): this process counts by itself.", type(error).__name__)
        return _hit(self._here, item, *who)


def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItem, *who: str) -> int:
    if limiter.hit(item, *who):
        return 0
    return max(1, math.ceil(limiter.get_window_stats(item, *who).reset_time - time.time()))


@cache
def read_rate(rate: str) -> list[RateLimitItem]:
    """Read a rate such as 60/minute, or several joined by semicolons; ArgumentError if it is none."""
    try:
        rates = parse_many(rate) if rate else []
        if not all(item.amount for item in rates):
            raise ValueError("nothing would be allowed")
        return rates
    except ValueError as error:
        raise ArgumentError(f"{rate!r:.100} is no rate: write one such as 60/minute or 5/second;1000/day.") from error
