"""What a program with the SDK of CloudEvents does: it publishes events in every mode, as both generations of the SDK write
them, follows the runs that they start, and reads what the operator tells of them."""

import json
import os
import sys
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import httpx
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v03.event import CloudEvent as Event03
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent as EarlierEvent

API, TOKEN, LISTEN = os.environ["API"], os.environ["TOKEN"], os.environ["LISTEN"]
TIMEOUT = 60


class Told:
    """A receiver of notifications: the types that were told of each run."""

    def __init__(self):
        self.types = {}
        self.wrong = []
        self.news = threading.Condition()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with told.news:
                    try:
                        event = from_http_event(HTTPMessage(dict(self.headers.items()), body))
                        assert event.get_source().endswith(f"/workflows/{event.get_data()['run']}"), body
                        told.types.setdefault(event.get_data()["run"], set()).add(event.get_type().rsplit(".", 1)[-1])
                    except Exception as wrong:  # whatever the SDK finds wrong is what is looked for
                        told.wrong.append(f"{wrong!r}: {body!r}")
                    told.news.notify_all()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        host, port = LISTEN.split(":")
        server = ThreadingHTTPServer((host, int(port)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def waits_for(self, run, types):
        with self.news:
            known = self.news.wait_for(lambda: self.wrong or self.types.get(run, set()) >= types, TIMEOUT)
            assert known and not self.wrong, (run, self.types.get(run), self.wrong)


def event(number, more=None, data=None):
    attributes = {"id": f"order-{number}", "source": "/shop", "type": "order", "specversion": "1.0"}
    return CloudEvent({**attributes, **(more or {})}, {"text": f"bikes {number}"} if data is None else data)


def published(http, headers, body, code):
    """What is answered to it, which must have that code."""
    reply = http.post("/events", headers=headers, content=body)
    assert reply.status_code == code, (reply.status_code, reply.text, headers, body)
    return reply.json()


def sent(http, message, code=202):
    return published(http, message.headers, message.body, code)


def result(http, run):
    """The run is followed to its end."""
    with http.stream("GET", f"/runs/{run}/events") as stream:
        assert stream.status_code == 200, stream.read()
        name = None
        for line in stream.iter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:") and name in ("result", "failure", "error"):
                assert name == "result", line
                return json.loads(line[5:])["result"]
    raise AssertionError(f"the stream of {run} has no end")


def every_mode(http, told):
    """One event in each mode is one run: the others find it."""
    now = datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=timezone.utc)
    one = event(1, {"time": now, "subject": "Räder & 100 %", "datacontenttype": "application/json", "shopnumber": 7})
    earlier = EarlierEvent(
        {"id": "order-1", "source": "/shop", "type": "order", "time": now.isoformat(), "subject": "x"},
        {"text": "bikes 1"},
    )
    runs = set()
    modes = [(message.headers, message.body) for message in (to_structured_event(one), to_binary_event(one))]
    modes += [to_structured(earlier), to_binary(earlier)]
    for number, (headers, body) in enumerate(modes):
        said = published(http, headers, body, 202 if number == 0 else 200)
        assert said["duplicate"] == (number > 0), said
        runs.add(said["runs"][0]["run"])
        assert said["runs"][0]["session_id"] == "order-1", said
    assert len(runs) == 1, runs
    run = runs.pop()
    assert result(http, run) == "bikes 1"
    told.waits_for(run, {"started", "completed"})
    # The other way round: the first in binary mode.
    said = sent(http, to_binary_event(event(2)))
    assert result(http, said["runs"][0]["run"]) == "bikes 2"
    assert sent(http, to_structured_event(event(2)), 200)["duplicate"]


def every_sort_of_data(http):
    """Text and bytes are the same in both modes, and attributes keep what no header can hold."""
    for write in (to_structured_event, to_binary_event):
        mode = write.__name__.split("_")[1]
        text = event(f"{mode}-text", {"type": "note", "datacontenttype": "text/plain", "subject": "für \"Ann\" 100%"}, "sixty bikes")
        run = sent(http, write(text))["runs"][0]["run"]
        assert result(http, run) == 'sixty bikes für "Ann" 100%', mode
        blob = event(f"{mode}-blob", {"type": "blob", "datacontenttype": "application/octet-stream"}, b"\xff\x00\xfe")
        run = sent(http, write(blob))["runs"][0]["run"]
        assert result(http, run) == "/wD+", mode


def batch(http):
    """The SDK knows no batches; a batch is a list of what it writes."""
    headers = {"content-type": "application/cloudevents-batch+json"}
    body = b"[" + b",".join(JSONFormat().write(event(f"batch-{n}")) for n in range(20)) + b"]"
    said = published(http, headers, body, 202)
    assert [run["event"] for run in said["runs"]] == [f"order-batch-{n}" for n in range(20)], said
    for number, run in enumerate(said["runs"]):
        assert result(http, run["run"]) == f"bikes batch-{number}"
    again = published(http, headers, body, 200)
    assert again["duplicate"] and [r["run"] for r in again["runs"]] == [r["run"] for r in said["runs"]], again


def refused(http):
    """An older version of the format is told by its field; an event that nobody wants, with what is wanted."""
    old = Event03({"id": "old", "source": "/shop", "type": "order", "specversion": "0.3"}, {"text": "x"})
    for write in (to_structured_event, to_binary_event):
        said = sent(http, write(old), 400)
        assert [error["field"].removeprefix("ce-") for error in said["errors"]] == ["specversion"], said
    said = sent(http, to_structured_event(event("unwanted", {"type": "refund"})), 404)
    assert "orders takes the type order" in said["detail"], said


def main():
    told = Told()
    with httpx.Client(base_url=API, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=TIMEOUT) as http:
        every_mode(http, told)
        every_sort_of_data(http)
        batch(http)
        refused(http)
    assert not told.wrong, told.wrong
    print(f"cloudevents {version('cloudevents')}: fine")


sys.exit(main())
