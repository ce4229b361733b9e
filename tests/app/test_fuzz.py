"""Whatever is sent, the service answers as its own description says, and never with an error of its own."""

import os

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from makers.served import build_collection, copied  # noqa: E402
from schemathesis.config import SchemathesisConfig  # noqa: E402

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("RECTRIO_EXAMPLES", "15"))  # per route


# What JSON Schema cannot say, such as the grammar of a condition, is refused with 400; files by what they hold.
REFUSED = ["2xx", "3xx", "400", "401", "403", "404"]
EXPECTED = {"positive_data_acceptance": {"expected-statuses": REFUSED}}
OF_FILES = {"positive_data_acceptance": {"expected-statuses": [*REFUSED, "413", "415", "422"]}}
WITH_FILES = [{"include-path": path, "checks": OF_FILES} for path in ("/upload", "/search", "/recommend")]
CONFIG = SchemathesisConfig.from_dict({"checks": EXPECTED, "operations": WITH_FILES})


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    template = build_collection(tmp_path_factory.mktemp("template")).workspace.root
    service = copied(template, tmp_path_factory.mktemp("fuzz")).serve()
    described = schemathesis.openapi.from_url(f"{service.address}openapi.json", config=CONFIG)
    found = [result.ok() for result in described.get_all_operations()]
    yield {f"{operation.method.upper()} {operation.path}": operation for operation in found}
    service.stop()


ROUTES = [
    "POST /search", "POST /upload", "GET /images/{image_id}", "GET /images/{image_id}/view", "PATCH /images/{image_id}",
    "DELETE /images/{image_id}", "GET /thumbnails/{image_id}", "GET /facets", "GET /history", "DELETE /history",
    "DELETE /history/{search_id}", "GET /about", "GET /health", "GET /ready", "GET /metrics", "GET /session",
    "DELETE /session", "PUT /history", "POST /recommend", "POST /feedback", "GET /feedback", "DELETE /feedback",
    "GET /saved", "POST /saved", "DELETE /saved/{saved_id}", "GET /stats", "GET /retrain", "POST /retrain",
    "DELETE /retrain",
]  # fmt: skip


def test_every_route_is_described(operations):
    assert sorted(operations) == sorted(ROUTES)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_keeps_to_its_description(operations, route):
    @given(case=operations[route].as_strategy())
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case):
        case.call_and_validate()

    check()
