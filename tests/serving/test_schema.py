"""Requests made from the server's own OpenAPI document, valid and not: no 5xx, and every refusal says what is wrong."""

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from steersman.models.load import LoadedModel
from steersman.serving.app import ServerOptions, create_app
from steersman.serving.service import Limits

NUM_REQUESTS = 40  # of each operation, valid ones and others


def test_every_operation_keeps_to_its_word(listening, loaded: LoadedModel) -> None:
    limits = Limits(max_tokens=4, max_choices=4, max_queue=16)
    with listening(create_app(loaded, loaded, ServerOptions(limits=limits))) as port:
        document = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        operations = [found.ok() for found in document.get_all_operations()]
        assert {"/generate", "/v1/completions", "/v1/chat/completions"} <= {one.path for one in operations}
        for operation in operations:
            ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
            if operation.body:  # without a body there is nothing to get wrong
                ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))


def ask(cases: SearchStrategy[schemathesis.Case]) -> None:
    """Send some of the cases."""

    @given(case=cases)
    @settings(max_examples=NUM_REQUESTS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def send(case: schemathesis.Case) -> None:
        reply = case.call(timeout=30)
        assert reply.status_code < 500, (reply.status_code, reply.text, case.as_curl_command())
        if reply.status_code in (400, 404, 413, 422):
            said = reply.json()
            assert len(said if isinstance(said, str) else said["error"]["message"]) > 5

    send()
