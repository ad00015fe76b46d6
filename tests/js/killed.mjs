// A graph whose process dies in the middle, as by `kill -9`, and another process that goes on, with `HttpSaver` of
// `clients/js` against BASE_URL: `node killed.mjs begin THREAD`, then `node killed.mjs resume THREAD`.

import { writeSync } from "node:fs";

import { Annotation, END, START, StateGraph } from "@langchain/langgraph";

import { HttpSaver } from "./session-store-langgraph/src/index.js";

const [mode, threadId] = process.argv.slice(2);
// At once, whatever becomes of this process.
const say = (value) => writeSync(1, `${typeof value === "string" ? value : JSON.stringify(value)}\n`);

const graph = new StateGraph(Annotation.Root({ counter: Annotation() }))
  .addNode("increment", ({ counter }) => {
    if (mode === "begin" && counter === 2) process.kill(process.pid, "SIGKILL");
    say(`Current counter: ${counter}`);
    return { counter: counter + 1 };
  })
  .addEdge(START, "increment")
  .addConditionalEdges("increment", ({ counter }) => (counter < 3 ? "increment" : END), ["increment", END])
  .compile({ checkpointer: new HttpSaver(process.env.BASE_URL) });

const config = { configurable: { thread_id: threadId }, durability: "sync" };
if (mode === "begin") {
  await graph.invoke({ counter: 0 }, config);
} else {
  const { values, next } = await graph.getState(config);
  say([values, next]);
  say(await graph.invoke(null, config));
}
