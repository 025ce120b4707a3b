"""``dispatch``, ``stop``, ``notify``, ``retry`` and ``explain``: what they do, print, and exit with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import corepool
from tests.waiting import until

from .conftest import Cli


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []

    async def start(self, job: corepool.Job) -> None:
        if job.payload == b"fail":
            raise RuntimeError("this one never starts")
        self.seen.append(("start", job.key, job.payload))

    async def stop(self, key: str) -> None:
        self.seen.append(("stop", key, b""))

    async def notify(self, key: str, payload: bytes) -> None:
        if payload == b"fail":
            raise RuntimeError("not now")
        self.seen.append(("notify", key, payload))


@pytest.fixture
async def recorder(memory_url: str) -> AsyncIterator[Recorder]:
    handler = Recorder()
    async with corepool.connect(memory_url) as backend, corepool.Node(backend, "p") as node:
        await node.add_worker(handler)
        yield handler


async def test_a_jobs_life(cli: Cli, recorder: Recorder) -> None:
    started = await cli("dispatch", "k", "payload")
    assert (started.exit_code, started.stdout) == (0, "started k\n")
    notified = await cli("notify", "k", "again")
    assert (notified.exit_code, notified.stdout) == (0, "notified k\n")
    explained = await cli("explain", "k")
    assert explained.exit_code == 0
    assert "running" in explained.stdout
    stopped = await cli("stop", "k")
    assert (stopped.exit_code, stopped.stdout) == (0, "stopped k\n")
    assert recorder.seen == [("start", "k", b"payload"), ("notify", "k", b"again"), ("stop", "k", b"")]


async def test_json_is_all_that_a_script_sees(cli: Cli, recorder: Recorder) -> None:
    assert json.loads((await cli("dispatch", "k", "--json")).stdout) == {"key": "k", "started": True}
    found = json.loads((await cli("explain", "k", "--json")).stdout)
    assert found["key"] == "k"
    assert found["state"] == "running"
    assert json.loads((await cli("stop", "k", "--json")).stdout) == {"key": "k", "stopped": True}


async def test_payloads_come_from_a_file_or_standard_input(cli: Cli, recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\x00\xff")
    assert (await cli("dispatch", "file", "--file", str(tmp_path / "payload"))).exit_code == 0
    assert (await cli("dispatch", "stdin", "-", stdin=b"\xfe\x00")).exit_code == 0
    assert recorder.seen == [("start", "file", b"\x00\xff"), ("start", "stdin", b"\xfe\x00")]


async def test_both_kinds_of_payload_or_no_such_file_is_a_usage_error(cli: Cli, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert (await cli("dispatch", "k", "text", "--file", missing)).exit_code == 2
    result = await cli("dispatch", "k", "--file", missing, "--json")
    assert result.exit_code == 2
    assert "cannot read the payload" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("command", ["stop", "notify", "retry", "explain"])
async def test_no_such_job_exits_with_4(command: str, cli: Cli, recorder: Recorder) -> None:
    result = await cli(command, "missing", "--json")
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "JobNotFoundError"
    assert "missing" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_job_that_exists_exits_with_5(cli: Cli, recorder: Recorder) -> None:
    assert (await cli("dispatch", "k")).exit_code == 0
    result = await cli("dispatch", "k")
    assert result.exit_code == 5
    assert result.stdout == ""


async def test_a_handler_that_fails_exits_with_6_and_its_own_words(cli: Cli, recorder: Recorder) -> None:
    result = await cli("dispatch", "k", "fail")
    assert result.exit_code == 6
    assert "this one never starts" in result.stderr
    assert (await cli("explain", "k")).exit_code == 4
    await cli("dispatch", "k")
    assert (await cli("notify", "k", "fail")).exit_code == 6


async def test_no_worker_in_time_exits_with_7(cli: Cli) -> None:
    result = await cli("dispatch", "k", "--timeout", "0.3", pool="empty")
    assert result.exit_code == 7


@pytest.mark.parametrize(("key", "payload"), [("", ""), ("k" * 5000, "")])
async def test_a_bad_key_exits_with_2(key: str, payload: str, cli: Cli, recorder: Recorder) -> None:
    result = await cli("dispatch", key, payload)
    assert result.exit_code == 2
    assert recorder.seen == []


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf"])
async def test_a_bad_timeout_exits_with_2(timeout: str, cli: Cli, recorder: Recorder) -> None:
    assert (await cli("dispatch", "k", "--timeout", timeout)).exit_code == 2
    assert recorder.seen == []


async def test_an_unknown_scheme_exits_with_9(cli: Cli) -> None:
    result = await cli("dispatch", "k", url="memry://x")
    assert result.exit_code == 9
    assert "did you mean memory://" in result.stderr


async def test_without_a_url_or_a_pool_the_variables_are_named(cli: Cli) -> None:
    assert "COREPOOL_URL" in (await cli("dispatch", "k", url="")).stderr
    assert "COREPOOL_POOL" in (await cli("dispatch", "k", pool="")).stderr


async def test_retry_leaves_a_job_alone_that_has_not_failed(cli: Cli, recorder: Recorder) -> None:
    await cli("dispatch", "k")
    done = await cli("retry", "k")
    assert (done.exit_code, done.stdout) == (0, "k has not failed: left alone\n")
    assert json.loads((await cli("retry", "k", "--json")).stdout) == {"key": "k", "retried": False}
    assert [what for what, *_ in recorder.seen] == ["start"]


async def test_retry_starts_a_failed_job_again(cli: Cli, memory_url: str) -> None:
    handler = Recorder()

    class Broken(Recorder):
        async def start(self, job: corepool.Job) -> None:
            raise RuntimeError("not here")

    async with corepool.connect(memory_url) as backend, corepool.Node(backend, "p", max_start_attempts=1) as node:
        first = await node.add_worker(handler)
        await node.dispatch_job("k")
        await node.remove_worker(first)
        broken = await node.add_worker(Broken())

        async def failed() -> bool:
            told = await node.explain("k")
            return told is not None and told.state is corepool.JobState.FAILED

        await until(failed)
        await node.remove_worker(broken)
        await node.add_worker(handler)
        done = await cli("retry", "k")
        assert (done.exit_code, done.stdout) == (0, "retried k\n")
        await until(lambda: [what for what, *_ in handler.seen] == ["start", "stop", "start"])
