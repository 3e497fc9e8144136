"""Bodies made up from the server's own schema, right ones and wrong ones: no fault of its own."""

from collections.abc import Iterator

import pytest

for _needed in ("fastapi", "uvicorn", "httpx", "schemathesis"):
    pytest.importorskip(_needed)

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from tests.host.server.served import Served, served, small_model

from lutra.server.limits import Limits

_EXAMPLES = {GenerationMode.POSITIVE: 20, GenerationMode.NEGATIVE: 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model(tmp_path_factory.mktemp("models") / "small")
    with served(model, limits=Limits(parallel=8, queue=8, tokens=2)) as found:
        yield found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_is_the_fault_of_the_server(server: Served, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    paths, statuses = set[str](), set[int]()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if mode == GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue  # there is nothing to be wrong
        paths.add(operation.path)

        @seed(1)
        @settings(
            max_examples=_EXAMPLES[mode],
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call()
            statuses.add(answer.status_code)
            assert answer.status_code < 500
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["message"] and error["type"]

        ask()
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"} <= paths
    assert statuses & {200, 400}
    assert server.get("/health").status_code == 200
