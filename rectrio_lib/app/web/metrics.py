"""Figures of the service for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "rectrio_requests", "Requests by route and status.", ["method", "route", "status"], registry=REGISTRY
)
SECONDS = Histogram(
    "rectrio_seconds", "Time of a stage.", ["stage"], registry=REGISTRY,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)  # fmt: skip
IMAGES = Gauge("rectrio_images", "Images that can be found.", registry=REGISTRY)
TAIL = Gauge("rectrio_tail", "Images that came after the index was built.", registry=REGISTRY)


class Counted:
    """ASGI middleware: counts requests by route and status."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                REQUESTS.labels(scope["method"], route, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, send_and_count if scope["type"] == "http" else send)
