// What a page in a browser does with the HTTP API: an EventSource follows a run, and its line breaks in between.
import { execFile } from 'node:child_process';
import { pathToFileURL } from 'node:url';

const { EventSource } = await import(pathToFileURL(process.env.EVENTSOURCE));

const { API, NAMESPACE, TOKEN } = process.env;
const bearer = { Authorization: `Bearer ${TOKEN}` };

// The first lines end early, each after so many chunks, as those of a proxy would.
const breaks = [2, 1];
const asked = [];
async function breaking(url, init) {
  asked.push(init.headers['Last-Event-ID'] ?? null);
  const response = await fetch(url, { ...init, headers: { ...init.headers, ...bearer } });
  const left = breaks.shift();
  if (left === undefined || !response.body) return response;
  let chunks = 0;
  const cut = new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk);
      chunks += 1;
      if (chunks >= left) controller.terminate();
    },
  });
  const short = new Response(response.body.pipeThrough(cut), { status: response.status, headers: response.headers });
  Object.defineProperty(short, 'url', { value: response.url });
  return short;
}

function answer(run) {
  const words = ['-n', NAMESPACE, '--as', 'ann', 'answer', `${run}/budget`, '7'];
  return new Promise((resolve, reject) => {
    execFile('target/bin/kubectl-lockstep', words, (wrong) => (wrong ? reject(wrong) : resolve()));
  });
}

async function main() {
  const body = JSON.stringify({ flow: 'asks', input: 'x', story_id: 'page', wait: 0 });
  const headers = { ...bearer, 'Content-Type': 'application/json' };
  const started = await fetch(`${API}/run`, { method: 'POST', headers, body });
  if (started.status !== 202) throw new Error(`${started.status}: ${await started.text()}`);
  const { run } = await started.json();
  const names = ['run.created', 'run.started', 'step.started', 'step.waiting', 'step.answered', 'step.ended', 'run.ended'];
  const seen = new Map();
  let asks;
  const result = await new Promise((resolve, reject) => {
    const source = new EventSource(`${API}/runs/${run}/events`, { fetch: breaking });
    const patience = setTimeout(() => reject(new Error(`no end: ${[...seen.keys()]}; lines ${asked.length}`)), 60_000);
    const ends = (settle) => (event) => {
      clearTimeout(patience);
      source.close();
      settle(event);
    };
    for (const name of names) {
      source.addEventListener(name, (event) => {
        // What comes once more after a break has the same id in its data.
        const { id } = JSON.parse(event.data);
        if (seen.has(name) && seen.get(name) !== id) reject(new Error(`${name} came twice: ${id}, ${seen.get(name)}`));
        seen.set(name, id);
        if (name === 'step.waiting') asks ??= answer(run).catch(reject);
      });
    }
    source.addEventListener('result', ends((event) => resolve(JSON.parse(event.data))));
    for (const name of ['failure']) source.addEventListener(name, ends((event) => reject(new Error(event.data))));
  });
  await asks;
  const missing = names.filter((name) => !seen.has(name) && name !== 'run.started' && name !== 'step.started');
  if (missing.length) throw new Error(`never came: ${missing}`);
  if (result.result !== 7) throw new Error(`another result: ${JSON.stringify(result)}`);
  // The second line may bring all the rest in one chunk, and then ends by itself.
  if (asked.length < 2 || asked[0] !== null || !asked.slice(1).some((id) => id)) throw new Error(`lines: ${JSON.stringify(asked)}`);
  console.log(`eventsource: fine, over ${asked.length} lines`);
}

main().catch((wrong) => {
  console.error(wrong);
  process.exit(1);
});
