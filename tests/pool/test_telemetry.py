"""What a pool tells OpenTelemetry, as an SDK hears it. Each in a process of its own: providers are global, and stay."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEARING = """
import asyncio, json, sys
import corepool

SILENT = "--silent" in sys.argv
if not SILENT:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    metrics.set_meter_provider(MeterProvider([reader]))

def current():
    return None if SILENT else trace.get_current_span().name

def spans():
    return [
        {"name": span.name, "kind": span.kind.name, "attributes": dict(span.attributes), "status": span.status.status_code.name,
         "trace": span.context.trace_id, "parent": span.parent and span.parent.span_id, "id": span.context.span_id}
        for span in exporter.get_finished_spans()
    ]

def points():
    found = []
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    found.append([metric.name, dict(point.attributes), getattr(point, "count", None) or point.value])
    return found

class Async:
    seen = []
    async def start(self, job):
        self.seen.append(current())
        if job.payload == b"fail":
            raise ValueError("no")
        if job.payload == b"hang":
            await asyncio.Event().wait()
    async def stop(self, key): ...
    async def notify(self, key, payload): ...

class Plain:
    seen = []
    def start(self, job):
        import threading
        self.seen.append([current(), threading.current_thread() is threading.main_thread()])
    def stop(self, key):
        async def rest(): self.seen.append(current())
        return rest()

async def play(handler, tell):
    async with corepool.connect("memory://") as backend, corepool.Node(backend, "p") as node:
        await node.add_worker(handler)
        await tell(node)
"""


def hear(story: str, *arguments: str) -> Any:
    """Run the story in a process of its own; what it prints."""
    command = [sys.executable, "-W", "error", "-c", HEARING + story, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


LIFE = """
async def tell(node):
    if SILENT:
        await node.dispatch_job("k", b"x")
        return
    with trace.get_tracer("app").start_as_current_span("request"):
        await node.dispatch_job("k", b"x")
    await node.notify_worker("k")
    running = points()
    await node.stop_job("k")
    print(json.dumps({"spans": spans(), "running": running, "after": points(), "seen": Async.seen}))
asyncio.run(play(Async(), tell))
"""


def test_calls_and_handlers_are_spans_and_durations() -> None:
    told = hear(LIFE)
    spans = {span["name"]: span for span in told["spans"]}
    assert len(spans) == len(told["spans"]) == 7
    request, dispatch, start = (spans[name] for name in ("request", "corepool dispatch_job", "corepool handler.start"))
    assert (dispatch["parent"], dispatch["kind"]) == (request["id"], "CLIENT")
    assert dispatch["attributes"] == {"corepool.pool": "p", "corepool.job.key": "k"}
    assert (start["parent"], start["kind"]) == (None, "CONSUMER"), "a trace of its own"
    assert start["attributes"].pop("corepool.job.token").startswith("0.")
    assert start["attributes"] == {"corepool.pool": "p", "corepool.job.key": "k", "corepool.job.attempt": 1}
    assert {name.partition(" ")[2] for name in spans if name.startswith("corepool ")} == {
        *("dispatch_job", "notify_worker", "stop_job"),
        *("handler.start", "handler.notify", "handler.stop"),
    }
    assert told["seen"] == ["corepool handler.start"], "the handler's own spans belong to it"
    assert {span["status"] for span in told["spans"]} == {"UNSET"}
    assert ["corepool.jobs.running", {"corepool.pool": "p"}, 1] in told["running"]
    assert ["corepool.jobs.running", {"corepool.pool": "p"}, 0] in told["after"]
    for name, operations in (
        ("corepool.call.duration", ("dispatch_job", "notify_worker", "stop_job")),
        ("corepool.handler.duration", ("start", "notify", "stop")),
    ):
        for operation in operations:
            assert [name, {"corepool.pool": "p", "corepool.operation": operation}, 1] in told["after"]


FAILURES = """
async def tell(node):
    import logging
    logging.disable()
    for payload in (b"fail", b"hang"):
        try:
            await node.dispatch_job("k", payload, timeout=0.3)
        except corepool.CorepoolError as error:
            Async.seen.append(type(error).__name__)
    print(json.dumps({"spans": spans(), "points": points(), "seen": Async.seen}))
asyncio.run(play(Async(), tell))
"""


def test_errors_are_told_and_an_interrupted_start_is_no_job_that_runs() -> None:
    told = hear(FAILURES)
    assert [name for name in told["seen"] if name.startswith("Job")] == ["JobStartError", "JobGoneError"]
    statuses = [(span["name"].removeprefix("corepool "), span["status"]) for span in told["spans"]]
    assert statuses.count(("handler.start", "ERROR")) == 1
    assert statuses.count(("dispatch_job", "ERROR")) == 2
    errors = {
        (point[0], point[1]["corepool.operation"], point[1]["error.type"]): point[2]
        for point in told["points"]
        if "error.type" in point[1]
    }
    assert errors == {
        ("corepool.call.duration", "dispatch_job", "JobStartError"): 1,
        ("corepool.call.duration", "dispatch_job", "JobGoneError"): 1,
        ("corepool.handler.duration", "start", "ValueError"): 1,
        ("corepool.handler.duration", "start", "CancelledError"): 1,
    }
    assert ["corepool.jobs.running", {"corepool.pool": "p"}, 0] in told["points"]


PLAIN = """
async def tell(node):
    await node.dispatch_job("k")
    await node.stop_job("k")
    print(json.dumps({"spans": spans(), "points": points(), "seen": Plain.seen}))
asyncio.run(play(Plain(), tell))
"""


def test_a_plain_handler_still_runs_in_a_thread_and_one_without_notify_has_none() -> None:
    told = hear(PLAIN)
    assert told["seen"] == [["corepool handler.start", False], "corepool handler.stop"]
    names = [span["name"] for span in told["spans"]]
    assert sorted(name for name in names if "handler" in name) == ["corepool handler.start", "corepool handler.stop"]
    assert ["corepool.jobs.running", {"corepool.pool": "p"}, 0] in told["points"]


@pytest.mark.parametrize("block", [False, True])
def test_who_does_not_use_it_neither_loads_nor_needs_it(block: bool) -> None:
    story = "if sys.argv[2] == 'True': sys.modules['opentelemetry'] = None\n" + LIFE
    story += "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry.')]))\n"
    assert hear(story, "--silent", str(block)) == []
