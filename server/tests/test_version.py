import platform
from importlib.metadata import version

from certctl_sdk.http import httpx


async def test_anybody_may_ask_which_build_answers(connect):
    async with connect() as client:
        answer = await client.get("/api/v1/version")
    assert answer.status_code == httpx.codes.OK
    found = answer.json()
    assert found.keys() == {"version", "commit", "modified", "build_time", "go_version", "python_version"}
    assert (found["version"], found["python_version"]) == (version("certctl-server"), platform.python_version())
    assert (found["go_version"], isinstance(found["modified"], bool)) == ("", True)
