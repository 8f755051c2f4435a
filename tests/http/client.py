"""What a program in Python does with the HTTP API: a token by the official Kubernetes client, all else by httpx."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import httpx
from kubernetes import client, config

API, NAMESPACE = os.environ["API"], os.environ["NAMESPACE"]


def token():
    config.load_kube_config()
    wanted = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600))
    return client.CoreV1Api().create_namespaced_service_account_token("shop", NAMESPACE, wanted).status.token


def answer(run, text):
    """A person answers: no service account may."""
    plugin = ["target/bin/kubectl-lockstep", "-n", NAMESPACE, "--as", "ann", "answer", f"{run}/budget", text]
    subprocess.run(plugin, check=True, stdout=subprocess.DEVNULL)


def events(lines):
    """Server-sent events, as their names and data."""
    name, data = None, []
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())
        elif not line and name:
            yield name, json.loads("\n".join(data) or "null")
            name, data = None, []


def one_call(http):
    reply = http.post("/run", json={"input": "a shop", "story_id": "one", "parameters": {"depth": 2}})
    assert reply.status_code == 200, reply.text
    assert (reply.json()["result"], reply.json()["pending_docs"]) == ("a shop", None), reply.text
    run = reply.json()["run"]
    assert http.get(f"/runs/{run}/result").json()["result"] == "a shop"
    assert [r["run"] for r in http.get("/runs", params={"session": "one"}).json()["runs"]] == [run]
    # What is wrong is told by field; what is not there, with what there is.
    wrong = http.post("/run", json={"story_id": "../etc", "parameters": []})
    assert wrong.status_code == 400, wrong.text
    assert {"input", "story_id", "parameters"} <= {error["field"] for error in wrong.json()["errors"]}, wrong.text
    unknown = http.post("/run", json={"input": "x", "story_id": "one", "flow": "no-such"})
    assert unknown.status_code == 404 and "default" in unknown.json()["flows"], unknown.text
    stranger = httpx.post(f"{API}/run", json={}, headers={"Authorization": "Bearer nobody"})
    assert stranger.status_code == 401, stranger.text


def repeated(http):
    body, key = {"input": "x", "story_id": "again"}, {"Idempotency-Key": "order-7"}
    runs = {http.post("/run", json=body, headers=key).json()["run"] for _ in range(3)}
    assert len(runs) == 1, runs
    other = http.post("/run", json={**body, "input": "y"}, headers=key)
    assert other.status_code == 422, other.text


def documents(http):
    put = {"type": "brief", "content": "# A shop", "story_id": "one"}
    assert [http.post("/documents", json=put).status_code for _ in range(2)] == [201, 200]
    for _ in range(5000):
        found = http.get("/runs/one/documents/brief")
        if found.status_code == 200:
            break
        assert found.status_code == 404 and int(found.headers["retry-after"]) > 0, found.text
    assert found.text == "# A shop", found.text
    same = http.get("/runs/one/documents/brief", headers={"If-None-Match": found.headers["etag"]})
    assert same.status_code == 304 and not same.content


def person_answers(http):
    reply = http.post("/run", json={"flow": "asks", "input": "x", "story_id": "asked", "wait": 20})
    assert reply.status_code == 202, reply.text
    run = reply.json()["run"]
    assert reply.json()["waiting"], reply.text
    names = []
    with http.stream("GET", f"/runs/{run}/events", timeout=60) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for name, data in events(stream.iter_lines()):
            names.append(name)
            if name == "step.waiting":
                threading.Thread(target=answer, args=(run, "12")).start()
            if name in ("result", "failure", "error"):
                break
    assert names[-1] == "result" and data["result"] == 12, (names, data)
    assert {"run.created", "step.answered", "step.ended", "run.ended"} <= set(names), names
    history = http.get(f"/runs/{run}/history").json()
    assert history["steps"][0]["StepId"] == "budget" and history["steps"][0]["Output"] == 12, history


async def many_at_once(headers):
    async with httpx.AsyncClient(base_url=API, headers=headers, timeout=60) as http:
        bodies = [{"input": f"input {n}", "story_id": f"many-{n}"} for n in range(20)]
        replies = await asyncio.gather(*(http.post("/run", json=body) for body in bodies))
    assert [reply.json()["result"] for reply in replies] == [body["input"] for body in bodies]


def main():
    own = token()
    headers = {"Authorization": f"Bearer {own}"}
    with httpx.Client(base_url=API, headers=headers, timeout=60) as http:
        one_call(http)
        repeated(http)
        documents(http)
        person_answers(http)
    asyncio.run(many_at_once(headers))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(own)
    print(f"httpx {httpx.__version__}: fine")


main()
