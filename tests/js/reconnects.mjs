// Connections that break in the middle of a run: the SDK comes back, and nothing is missing or told twice.

import { randomUUID } from "node:crypto";

import { Client } from "@langchain/langgraph-sdk";
import WebSocket from "ws";

import { brittleWay, check, cue, equal, human, newThread } from "./checks.mjs";

const MESSAGE = "hold: one two three";

check("a stream of a run survives a broken connection", async () => {
  const way = await brittleWay();
  const client = new Client({ apiUrl: way.url });
  const thread = await newThread();
  const stream = client.runs.stream(thread, "cued", {
    input: human(MESSAGE), streamMode: ["messages-tuple", "values"], streamResumable: true, onDisconnect: "continue",
  });
  const words = [];
  let last;
  for await (const event of stream) {
    last = event;
    if (event.event !== "messages" || event.data[0].type !== "AIMessageChunk") continue;
    words.push(event.data[0].content);
    if (words.length === 1) {
      way.cut();
      await cue(thread, MESSAGE);
    }
  }
  equal(words, ["one ", "two ", "three"]);
  equal(last.data.messages.at(-1).content, "one two three");
  way.close();
});

const OVER = {
  "server-sent events": { transport: "sse" },
  "a WebSocket": { transport: "websocket", webSocketFactory: (url) => new WebSocket(url) },
};

for (const [name, options] of Object.entries(OVER)) {
  check(`event streaming over ${name} survives a broken connection`, async () => {
    const way = await brittleWay();
    const client = new Client({ apiUrl: way.url });
    const stream = client.threads.stream(randomUUID(), { assistantId: "cued", ...options });
    await stream.run.start({ input: human(MESSAGE) });
    const subscription = await stream.subscribe(["messages", "lifecycle"]);
    const words = [];
    for await (const { method, params } of subscription) {
      if (method === "lifecycle" && params.namespace.length === 0 && params.data.event === "completed") break;
      if (params.data.event !== "content-block-delta") continue;
      words.push(params.data.delta.text);
      if (words.length === 1) {
        way.cut();
        await cue(stream.threadId, MESSAGE);
      }
    }
    equal(words, ["one ", "two ", "three"]);
    await stream.close();
    way.close();
  });
}
