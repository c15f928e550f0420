"""Requests drawn from the description of the service: each has an answer that the description holds."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from fbjax.serve.search.searching import Searcher
from fbjax.serve.web.app import make_app
from fbjax.serve.web.limits import Limits
from tests.support.service import KEY, PRODUCTS, make_index
from tests.support.tables import encode

PHOTO = encode(PRODUCTS[3]["image"], "JPEG")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with Searcher(make_index(tmp_path_factory.mktemp("openapi"))) as searcher:
        searcher.warm_up()
        yield schemathesis.openapi.from_asgi("/openapi.json", make_app(searcher, Limits(), KEY))


def test_whatever_is_asked_the_answer_is_described(api):
    operations = [found.ok() for found in api.get_all_operations()]
    assert {"/search", "/match", "/products/{identity}", "/readyz"} <= {operation.path for operation in operations}
    for operation in operations:

        @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(), st.booleans())
        def ask(case, with_picture):
            if with_picture and isinstance(case.body, dict) and "image" in case.body:
                case.body |= {"image": PHOTO}
            case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)

        ask()
