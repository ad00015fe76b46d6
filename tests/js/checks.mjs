// What the scripts beside this one share: how checks are declared, run and counted, and a few words for them.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createServer, connect } from "node:net";
import { after, test } from "node:test";

import { Client } from "@langchain/langgraph-sdk";

export const BASE = process.env.BASE_URL;
assert.ok(BASE, "BASE_URL is set");

/** How long anything may take on a busy machine before a check gives up. */
export const PATIENCE = 60_000;

export const client = new Client({ apiUrl: BASE });
export const equal = assert.deepEqual;
export const ok = assert.ok;

let declared = 0;
let passed = 0;

/** A check: independent of the others, one after another in the order of their declaration. */
export function check(name, body, timeout = PATIENCE) {
  declared += 1;
  test(name, { timeout }, async () => {
    await body();
    passed += 1;
  });
}

after(() => {
  if (passed > 0 && passed === declared) console.log(`${passed} checks passed`);
});

/** The call must fail with this status. */
export async function refused(status, promise) {
  await assert.rejects(promise, (error) => error.status === status || String(error).includes(`HTTP ${status}`));
}

/** Asks until it holds: a deadline, not a pace. The answer is what held. */
export async function until(what, holds) {
  const deadline = Date.now() + PATIENCE / 2;
  for (;;) {
    const held = await holds();
    if (held) return held;
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export const human = (content, id = randomUUID()) => ({ messages: [{ type: "human", content, id }] });

export async function newThread(options) {
  return (await client.threads.create(options)).thread_id;
}

export async function collect(stream) {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

/** Lets a message of the graph `cued` go on that waits for its cue. */
export async function cue(threadId, message) {
  await client.store.putItem(["cues", threadId], message, { go: true });
}

/** Another way to the server, whose connections can be cut. */
export async function brittleWay() {
  const { hostname, port } = new URL(BASE);
  const open = new Set();
  const server = createServer((socket) => {
    const onward = connect(Number(port), hostname);
    for (const [one, other] of [[socket, onward], [onward, socket]]) {
      open.add(one);
      one.on("error", () => {});
      one.on("close", () => {
        open.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut: () => open.forEach((socket) => socket.destroy()),
    close: () => {
      server.close();
      open.forEach((socket) => socket.destroy());
    },
  };
}
