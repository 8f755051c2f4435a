"""An agent whose runtime is the official Python client of MCP: every way to connect, the same tools."""

import asyncio
import json
import os

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

URL = os.environ["LOCKSTEP_URL"] + "/mcp"
STDIO = StdioServerParameters(command="lockstep-shim", args=["mcp"], env=dict(os.environ))
TOOLS = {
    "progress", "journal", "usage", "history", "memory_get", "memory_set", "memory_delete", "memory_list",
    "document_list", "document_get", "result", "ask", "request_approval", "permission_prompt", "fail",
}


async def use(name: str, server, mode: str) -> str:
    async with Client(server, mode=mode) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools >= TOOLS, (name, TOOLS - tools)

        async def call(tool: str, arguments: dict, is_error: bool = False) -> dict:
            told = await client.call_tool(tool, arguments)
            assert bool(told.is_error) == is_error, (name, tool, told)
            answer = json.loads(told.content[0].text)
            assert told.structured_content == answer, (name, tool, told)
            return answer

        await call("progress", {"percent": 50, "message": name})
        await call("journal", {"state": "busy"})
        assert (await call("usage", {"tokensIn": 1}))["tokensIn"] >= 1
        revision = (await call("memory_set", {"key": name, "value": {"via": name}}))["revision"]
        assert await call("memory_get", {"key": name}) == {"value": {"via": name}, "revision": revision}
        await call("memory_set", {"key": name, "value": 1, "ifRevision": revision + 7}, is_error=True)
        assert name in [entry["key"] for entry in (await call("memory_list", {}))["entries"]]
        await call("memory_delete", {"key": name})
        assert [found["type"] for found in (await call("document_list", {}))["documents"]] == ["glossary"]
        assert (await call("document_get", {"type": "glossary"}))["content"] == "the words"
        await call("document_get", {"type": "nothing"}, is_error=True)
        question = {"question": "How many?", "key": name}
        assert (await call("ask", {"questions": [question], "waitSeconds": 60}))["answers"] == {name: 7}
        assert any("How many?" in json.dumps(entry) for entry in (await call("history", {}))["entries"])
        mail = {"action": "send", "payload": {"via": name}, "waitSeconds": 60}
        sent = await call("request_approval", mail)
        assert (sent["decision"], sent["payload"]) == ("allowed", {"via": name}), sent
        for command, behavior in [(f"ls {name}", "allow"), (f"rm -r {name}", "deny")]:
            prompt = {"tool_name": "Bash", "input": {"command": command}, "tool_use_id": "t"}
            told = await call("permission_prompt", prompt)
            assert told["behavior"] == behavior, told
            assert told["updatedInput"] == prompt["input"] if behavior == "allow" else "ann" in told["message"], told
        faults = (await call("result", {"result": {"n": "two"}}, is_error=True))["faults"]
        assert faults[0]["pointer"] == "/n" and "two" in faults[0]["message"], faults
        assert await call("result", {"result": {"n": 2}}) == {"faults": []}
    return name


async def main() -> None:
    for name, server, mode in [
        ("http", URL, "auto"),
        ("http-of-2025", URL, "legacy"),
        ("stdio", STDIO, "auto"),
        ("stdio-of-2025", STDIO, "legacy"),
    ]:
        print("used by", await use(name, server, mode), flush=True)


asyncio.run(main())
