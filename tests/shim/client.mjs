// An agent whose runtime is the official TypeScript client of MCP: every way to connect, the same tools.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

// The packages lie where hack/mcp-clients has installed them, not beside this file.
const require = createRequire(path.join(process.env.MCP_CLIENTS, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/${name}`)).href);
const { Client } = await load("client/index.js");
const { StdioClientTransport } = await load("client/stdio.js");
const { StreamableHTTPClientTransport } = await load("client/streamableHttp.js");

const TOOLS = ["progress", "journal", "usage", "history", "memory_get", "memory_set", "memory_delete", "memory_list",
  "document_list", "document_get", "result", "ask", "request_approval", "permission_prompt", "fail"];

async function use(name, transport) {
  const client = new Client({ name: "agent", version: "1" });
  await client.connect(transport);
  const { tools } = await client.listTools();
  const names = tools.map((tool) => tool.name);
  assert.deepEqual(TOOLS.filter((tool) => !names.includes(tool)), [], name);
  const call = async (tool, args, isError = false) => {
    const told = await client.callTool({ name: tool, arguments: args });
    assert.equal(Boolean(told.isError), isError, `${name} ${tool}: ${JSON.stringify(told)}`);
    const answer = JSON.parse(told.content[0].text);
    assert.deepEqual(told.structuredContent, answer);
    return answer;
  };
  await call("progress", { percent: 50, message: name });
  await call("journal", { state: "busy" });
  assert.ok((await call("usage", { tokensIn: 1 })).tokensIn >= 1);
  const { revision } = await call("memory_set", { key: name, value: { via: name } });
  assert.deepEqual(await call("memory_get", { key: name }), { value: { via: name }, revision });
  await call("memory_set", { key: name, value: 1, ifRevision: revision + 7 }, true);
  assert.ok((await call("memory_list", {})).entries.some((entry) => entry.key === name));
  await call("memory_delete", { key: name });
  assert.deepEqual((await call("document_list", {})).documents.map((found) => found.type), ["glossary"]);
  assert.equal((await call("document_get", { type: "glossary" })).content, "the words");
  await call("document_get", { type: "nothing" }, true);
  const question = { question: "How many?", key: name };
  const { answers } = await call("ask", { questions: [question], waitSeconds: 60 });
  assert.deepEqual(answers, { [name]: 7 });
  assert.ok((await call("history", {})).entries.some((entry) => JSON.stringify(entry).includes("How many?")));
  const sent = await call("request_approval", { action: "send", payload: { via: name }, waitSeconds: 60 });
  assert.deepEqual([sent.decision, sent.payload], ["allowed", { via: name }]);
  const input = { command: `ls ${name}` };
  const allowed = await call("permission_prompt", { tool_name: "Bash", input, tool_use_id: "t" });
  assert.deepEqual(allowed, { behavior: "allow", updatedInput: input });
  const denied = await call("permission_prompt", { tool_name: "Bash", input: { command: `rm -r ${name}` }, tool_use_id: "u" });
  assert.ok(denied.behavior === "deny" && denied.message.includes("ann"), JSON.stringify(denied));
  const { faults } = await call("result", { result: { n: "two" } }, true);
  assert.ok(faults[0].pointer === "/n" && faults[0].message.includes("two"), JSON.stringify(faults));
  assert.deepEqual(await call("result", { result: { n: 2 } }), { faults: [] });
  await client.close();
  console.log("used by", name);
}

await use("http", new StreamableHTTPClientTransport(new URL(`${process.env.LOCKSTEP_URL}/mcp`)));
await use("stdio", new StdioClientTransport({ command: "lockstep-shim", args: ["mcp"], env: { ...process.env } }));
