// Event streaming (protocol v2): `client.threads.stream` over server-sent events and over a WebSocket.

import { randomUUID } from "node:crypto";

import WebSocket from "ws";

import { check, client, cue, equal, human, newThread, ok, until } from "./checks.mjs";

const OVER = {
  "server-sent events": { transport: "sse" },
  // Node 20 has none of its own.
  "a WebSocket": { transport: "websocket", webSocketFactory: (url) => new WebSocket(url) },
};

/** Events of a subscription up to and with the first that is the last. */
async function upTo(subscription, isLast) {
  const seen = [];
  for await (const event of subscription) {
    seen.push(event);
    if (isLast(event)) return seen;
  }
  throw new Error(`the subscription ended after ${JSON.stringify(seen)}`);
}

const isRootEnd = ({ method, params }) =>
  method === "lifecycle" && params.namespace.length === 0 && params.data.event !== "running";

for (const [way, options] of Object.entries(OVER)) {
  const open = (assistantId, thread = randomUUID()) => client.threads.stream(thread, { assistantId, ...options });

  check(`a run is started and its output awaited over ${way}`, async () => {
    const stream = open("cued");
    const message = "hold: hi there";
    const { run_id: run } = await stream.run.start({ input: human(message) });
    const values = stream.values[Symbol.asyncIterator]();
    await values.next();
    // Not before the client listens: it does not wait for what comes after the end of a run.
    await cue(stream.threadId, message);
    const output = await stream.output;
    equal(output.messages.map(({ content }) => content), [message, "hi there"]);
    equal((await client.runs.get(stream.threadId, run)).status, "success");
    await stream.close();
  });

  check(`messages are streams of their own over ${way}`, async () => {
    const stream = open("cued");
    const message = "hold: one two";
    await stream.run.start({ input: human(message) });
    const pieces = [];
    for await (const said of stream.messages) {
      for await (const piece of said.text) {
        pieces.push(piece);
        if (pieces.length === 1) await cue(stream.threadId, message);
      }
    }
    equal(pieces, ["one ", "two"]);
    await stream.close();
  });

  check(`a question is seen and answered over ${way}`, async () => {
    const stream = open("cued");
    const subscription = await stream.subscribe(["lifecycle", "input"]);
    await stream.run.start({ input: human("ask: Tea?") });
    const events = await upTo(subscription, isRootEnd);
    const asked = events.find((event) => event.method === "input.requested").params.data;
    equal(asked.payload, { question: "Tea?" });
    equal(events.at(-1).params.data.event, "interrupted");
    await stream.input.respond({ interrupt_id: asked.interrupt_id, namespace: [], response: "milk" });
    await until("the run ends", async () => (await client.threads.get(stream.threadId)).status === "idle");
    const state = await client.threads.getState(stream.threadId);
    equal(state.values.messages.at(-1).content, 'The answer is "milk".');
    await stream.close();
  });

  check(`graphs inside are told of over ${way}`, async () => {
    const stream = open("nested");
    const subscription = await stream.subscribe(["lifecycle", "values", "checkpoints"]);
    await stream.run.start({ input: { trail: [] } });
    const events = await upTo(subscription, isRootEnd);
    const inside = events.filter((event) => event.method === "lifecycle" && event.params.namespace.length === 1);
    equal(inside.map((event) => event.params.data.event), ["started", "completed"]);
    equal(inside[0].params.data.graph_name, "child");
    const values = events.filter((event) => event.method === "values" && event.params.namespace.length === 0);
    equal(values.at(-1).params.data.trail.at(-1), "p_end");
    await stream.close();
  });

  check(`tool calls are in the values over ${way}`, async () => {
    const stream = open("tools");
    const subscription = await stream.subscribe(["lifecycle", "values"]);
    await stream.run.start({ input: human("What is the weather?") });
    const values = (await upTo(subscription, isRootEnd)).filter((event) => event.method === "values");
    const { messages } = values.at(-1).params.data;
    equal(messages.at(-1).content, "It is 60 degrees and foggy.");
    equal(messages[1].tool_calls.map((call) => call.name), ["weather"]);
    await stream.close();
  });

  check(`a failure is told over ${way}`, async () => {
    const stream = open("cued");
    const subscription = await stream.subscribe(["lifecycle"]);
    await stream.run.start({ input: human("fail: no tea") });
    const end = (await upTo(subscription, isRootEnd)).at(-1);
    equal([end.params.data.event, end.params.data.error], ["failed", "no tea"]);
    await stream.close();
  });

  check(`a later reader sees the same events over ${way}`, async () => {
    const stream = open("cued");
    const channels = ["values", "messages", "lifecycle"];
    const subscription = await stream.subscribe(channels);
    await stream.run.start({ input: human("once") });
    const live = await upTo(subscription, isRootEnd);
    const again = open("cued", stream.threadId);
    const replayed = await upTo(await again.subscribe(channels), isRootEnd);
    const ids = (events) => events.map((event) => event.event_id);
    equal(ids(replayed), ids(live));
    await stream.close();
    await again.close();
  });
}

check("a thread is joined and tells of all its runs", async () => {
  const thread = await newThread();
  const leaving = new AbortController();
  const done = [];
  const listening = (async () => {
    const options = { lastEventId: "-", streamMode: "lifecycle", signal: leaving.signal };
    for await (const event of client.threads.joinStream(thread, options)) {
      if (event.data.status === "run_done") done.push(event.data.run_id);
      if (done.length === 2) leaving.abort();
    }
  })();
  const runs = [];
  for (let n = 0; n < 2; n += 1) {
    const run = await client.runs.create(thread, "counter", { input: {}, streamResumable: true });
    await client.runs.join(thread, run.run_id);
    runs.push(run.run_id);
  }
  await listening.catch((error) => ok(leaving.signal.aborted, error));
  equal(done, runs);
});
