#!/usr/bin/env node
// Outlines a brief: its headings down to a depth. Node 18 or newer, no packages.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const { LOCKSTEP_IN: input, LOCKSTEP_OUT: output, LOCKSTEP_URL: url } = process.env;

// The same as `lockstep progress ...`, over HTTP.
async function call(verb, body) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${url}/${verb}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${verb}: ${answer.status} ${await answer.text()}`);
}

const context = JSON.parse(readFileSync(join(input, "context.json"), "utf8"));
await call("progress", { percent: 10, message: "reading the brief" });
const brief = readFileSync(join(input, context.documents.brief.path), "utf8");
const depth = context.parameters.depth ?? 2;

let title = "";
const lines = [];
for (const line of brief.split("\n")) {
  const heading = /^(#+) +(.*)$/.exec(line);
  if (!heading || heading[1].length > depth) continue;
  title ||= heading[2];
  lines.push("  ".repeat(heading[1].length - 1) + "- " + heading[2]);
}

if (lines.length === 0) {
  // No attempt will do better: it ends here.
  await call("fail", { retryable: false, message: "the brief has no heading" });
}

const words = brief.split(/\s+/).filter((word) => word !== "").length;
writeFileSync(join(output, "outline.md"), lines.join("\n") + "\n");
writeFileSync(join(output, "result.json"), JSON.stringify({ title, headings: lines.length, words }) + "\n");
