#!/usr/bin/env python3
"""Receives Lockstep's notifications and posts a line to the webhook of a chat.

    SIGNING_SECRET=... CHAT_WEBHOOK=https://chat.example/hook ./receiver.py 8080

Only Python's own library. It checks the signature of Standard Webhooks and takes each id once.
"""
import base64
import hashlib
import hmac
import html
import json
import os
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["SIGNING_SECRET"].encode()
KEY = base64.b64decode(SECRET[6:]) if SECRET.startswith(b"whsec_") else SECRET
CHAT = os.environ["CHAT_WEBHOOK"]
SEEN = {}  # ids that were taken; a busy receiver keeps them in a database
ONE = threading.Lock()  # two requests with one id are one post


def is_genuine(headers, body):
    stamp = headers.get("webhook-timestamp", "0")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16) or abs(time.time() - int(stamp)) > 300:
        return False
    signed = b".".join([headers.get("webhook-id", "").encode(), stamp.encode(), body])
    ours = b"v1," + base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256))
    return any(hmac.compare_digest(ours, one) for one in headers.get("webhook-signature", "").encode().split())


def line(event):
    data = event["data"]
    words = [f"{data['namespace']}/{data['run']}", event["type"].rsplit(".", 1)[-1], event.get("subject", "")]
    # Authors and agents wrote parts of it: no markup of the chat, and no line that looks like a command.
    text = ": ".join(filter(None, [" ".join(filter(None, words)), " ".join(data.get("message", "").split())]))
    quoted = [f"| {one}" for one in data.get("document", {}).get("firstLines", "").splitlines()]
    return html.escape("\n".join([text, *data.get("commands", []), *quoted]), quote=False)


def is_posted(event):
    text = json.dumps({"text": line(event)}).encode()
    request = urllib.request.Request(CHAT, text, {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    SEEN[event["id"]] = True
    if len(SEEN) > 10_000:
        SEEN.pop(next(iter(SEEN)))
    return True


class Receiver(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a sender may be silent

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 8 and int(length) <= 1 << 20):
            return self.answer(413 if length.isdigit() else 411)
        body = self.rfile.read(int(length))
        if not is_genuine(self.headers, body):
            return self.answer(401)
        event = json.loads(body)
        with ONE:
            self.answer(204 if event["id"] in SEEN or is_posted(event) else 503)  # Lockstep sends it again

    def answer(self, code):
        self.send_response(code)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Receiver).serve_forever()
