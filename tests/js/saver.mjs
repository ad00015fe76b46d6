// `HttpSaver` and `HttpStore` of `clients/js`, against BASE_URL, which must be of nobody else's: LangGraph's own suite for
// checkpointers, and the same graphs with these and with LangGraph's memory.

import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { promisify } from "node:util";

import { Annotation, Command, END, InMemoryStore, MemorySaver, START, StateGraph, interrupt } from "@langchain/langgraph";
import { startVitest } from "vitest/node";

import { BASE, check, client, equal, ok, refused } from "./checks.mjs";
import { HttpSaver, HttpStore, SessionStoreError, SessionStoreUnavailable } from "./session-store-langgraph/src/index.js";

process.env.SESSION_STORE_URL = BASE;

check("LangGraph's suite for checkpointers passes", async () => {
  const suite = ["saver.validation.mjs"];
  const vitest = await startVitest("test", suite, {
    globals: true, include: suite, root: import.meta.dirname, watch: false, maxWorkers: 1, reporters: ["dot"],
    // For a busy machine.
    testTimeout: 60_000, hookTimeout: 60_000,
  });
  const results = vitest.state.getTestModules().flatMap((module) => [...module.children.allTests()]);
  await vitest.close();
  // Set by the suite; what failed is counted here.
  process.exitCode = 0;
  const failed = results.filter((test) => test.result().state !== "passed").map((test) => test.fullName);
  equal(failed, []);
  ok(results.length > 700, `${results.length} tests`);
}, 240_000);

/** Counts, asks once it is at two, and says in a subgraph what it was told. */
function graph(checkpointer, store) {
  const State = Annotation.Root({
    count: Annotation({ reducer: (left, right) => left + right, default: () => 0 }),
    said: Annotation({ reducer: (left, right) => [...left, ...right], default: () => [] }),
    long: Annotation(),
  });
  const inner = new StateGraph(State)
    .addNode("echo", ({ said }) => ({ said: [`echo ${said.at(-1)}`] }))
    .addEdge(START, "echo")
    .compile();
  return new StateGraph(State)
    .addNode("bump", async ({ count }, { store: items }) => {
      await items?.put(["counts"], "latest", { count: count + 1 });
      return { count: 1, said: [`bump ${count + 1}`], ...(count === 0 && { long: "x".repeat(1000) }) };
    })
    .addNode("ask", ({ count }) => ({ said: [interrupt({ question: `Go on from ${count}?` })] }))
    .addNode("inner", inner)
    .addEdge(START, "bump")
    .addConditionalEdges("bump", ({ count }) => (count < 2 ? "bump" : "ask"), ["bump", "ask"])
    .addEdge("ask", "inner")
    .addEdge("inner", END)
    .compile({ checkpointer, store });
}

/** What a graph does and what is kept of it, without ids and times. */
async function transcript(saver, store) {
  const config = { configurable: { thread_id: `js-${randomUUID()}` } };
  const told = [];
  const state = async (at = config) => {
    const { values, next, tasks, metadata } = await graph(saver(), store).getState(at);
    const questions = tasks.flatMap((task) => task.interrupts.map(({ value }) => value));
    told.push({ values, next, questions, step: metadata?.step, source: metadata?.source });
  };
  await state();
  await graph(saver(), store).invoke({ said: ["begin"] }, config);
  await state();
  // Another process, as far as the saver can tell.
  await graph(saver(), store).invoke(new Command({ resume: "yes" }), config);
  await state();
  await graph(saver(), store).updateState(config, { said: ["edited"] }, "bump");
  await state();
  const history = [];
  for await (const one of graph(saver(), store).getStateHistory(config)) history.push(one);
  told.push(history.map(({ values, next, metadata }) => ({ values, next, step: metadata.step, source: metadata.source })));
  const early = history.find(({ next, metadata }) => next[0] === "bump" && metadata.step === 1);
  await graph(saver(), store).invoke(null, early.config);
  await state();
  const filtered = [];
  for await (const one of graph(saver(), store).getStateHistory(config, { filter: { source: "update" }, limit: 5 })) {
    filtered.push(one.values);
  }
  told.push(filtered, (await store.get(["counts"], "latest")).value);
  return { told, threadId: config.configurable.thread_id };
}

check("a graph does the same with HttpSaver as with LangGraph's memory", async () => {
  const memory = new MemorySaver();
  const want = await transcript(() => memory, new InMemoryStore());
  const got = await transcript(() => new HttpSaver(BASE), new HttpStore(BASE));
  equal(got.told, want.told);
  // The server shows it like any other thread.
  const state = await client.threads.getState(got.threadId);
  equal(state.values.said, want.told.at(-3).values.said);
  await new HttpSaver(BASE).deleteThread(got.threadId);
  await refused(404, client.threads.get(got.threadId));
});

check("HttpStore is LangGraph's store", async () => {
  const store = new HttpStore(BASE);
  const root = randomUUID();
  await store.put([root, "a"], "k1", { color: "red", n: 1 });
  await store.put([root, "b", "c"], "k2", { color: "blue", n: 2 }, false);
  const item = await store.get([root, "a"], "k1");
  equal([item.namespace, item.key, item.value], [[root, "a"], "k1", { color: "red", n: 1 }]);
  ok(item.createdAt instanceof Date && item.updatedAt instanceof Date);
  equal(await store.get([root, "a"], "none"), null);
  const keys = async (options) => (await store.search([root], options)).map((found) => found.key).sort();
  equal([await keys(), await keys({ filter: { color: "red" } }), await keys({ filter: { n: { $gt: 1 } } })],
    [["k1", "k2"], ["k1"], ["k2"]]);
  equal((await store.listNamespaces({ prefix: [root] })).sort(), [[root, "a"], [root, "b", "c"]]);
  equal(await store.listNamespaces({ prefix: [root], suffix: ["c"], maxDepth: 2 }), [[root, "b"]]);
  const [, , read] = await store.batch([
    { namespace: [root, "a"], key: "k1", value: null },
    { namespace: [root, "a"], key: "k3", value: { n: 3 } },
    { namespacePrefix: [root, "a"], limit: 10, offset: 0 },
  ]);
  equal(read.map((found) => found.key), ["k3"], "what comes after a write sees it");
  await store.delete([root, "a"], "k3");
  equal(await store.get([root, "a"], "k3"), null);
});

check("refusals name the field, and an absent server is told apart", async () => {
  const put = (saver, threadId) =>
    saver.put({ configurable: { thread_id: threadId } }, { v: 4, id: "1", ts: "", channel_values: {}, channel_versions: {} }, {}, {});
  const refusal = await put(new HttpSaver(BASE), "a b").catch((error) => error);
  ok(refusal instanceof SessionStoreError && refusal.status === 422, refusal);
  const absent = await put(new HttpSaver("http://127.0.0.1:9", { retryFor: 0 }), "ab").catch((error) => error);
  ok(absent instanceof SessionStoreUnavailable, absent);
});

check("TypeScript knows their types", async () => {
  const options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "types.ts"];
  await promisify(execFile)("node_modules/.bin/tsc", options).catch(({ stdout }) => equal(stdout, ""));
});
