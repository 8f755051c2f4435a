#!/usr/bin/env python3
"""Outlines a brief: its headings down to a depth. Standard library only."""
import json
import os
import pathlib
import re
import urllib.request

IN, OUT = (pathlib.Path(os.environ[name]) for name in ("LOCKSTEP_IN", "LOCKSTEP_OUT"))


def call(verb, body):
    """The same as `lockstep progress ...`, over HTTP."""
    request = urllib.request.Request(f"{os.environ['LOCKSTEP_URL']}/{verb}", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    urllib.request.urlopen(request).close()


context = json.loads((IN / "context.json").read_text(encoding="utf-8"))
call("progress", {"percent": 10, "message": "reading the brief"})
brief = (IN / context["documents"]["brief"]["path"]).read_text(encoding="utf-8")
depth = context["parameters"].get("depth", 2)

title, lines = "", []
for line in brief.split("\n"):
    heading = re.match(r"(#+) +(.*)$", line)
    if not heading or len(heading[1]) > depth:
        continue
    title = title or heading[2]
    lines.append("  " * (len(heading[1]) - 1) + "- " + heading[2])

if not lines:
    # No attempt will do better: it ends here.
    call("fail", {"retryable": False, "message": "the brief has no heading"})

result = {"title": title, "headings": len(lines), "words": len(brief.split())}
(OUT / "outline.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
(OUT / "result.json").write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
