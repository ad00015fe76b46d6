// `HttpSaver` and `HttpStore` of `clients/js`, against BASE_URL, which must be of nobody else's: LangGraph's own suite for
// checkpointers, and the same graphs with these and with LangGraph's memory.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { promisify } from "node:util";

import {
  Annotation, Command, END, InMemoryStore, MemorySaver, START, Send, StateGraph, entrypoint, interrupt, task,
} from "@langchain/langgraph";
import { startVitest } from "vitest/node";

import { BASE, check, client, collect, equal, ok, refused } from "./checks.mjs";
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

/** A state, as a graph and as the server tell it; without values, which in a graph have what finished tasks wrote. */
function told({ next, tasks }) {
  return {
    next,
    tasks: tasks.map(({ id, name, interrupts, result, state }) => (
      { id, name, interrupts, result: result ?? null, state: state?.values ? told(state) : null })),
  };
}

check("the server shows a graph as it shows itself", async () => {
  const saver = new HttpSaver(BASE);
  const State = Annotation.Root({ a: Annotation({ reducer: (left, right) => [...left, ...right], default: () => [] }) });
  const asks = (what) => ({ a: [interrupt(what)] });
  const inner = new StateGraph(State)
    .addNode("x", () => ({ a: ["x"] })).addNode("y", () => asks("y?")).addEdge(START, "x").addEdge("x", "y").compile();
  const nested = new StateGraph(State)
    .addNode("m", inner).addNode("o", () => ({ a: ["o"] })).addEdge(START, "m").addEdge(START, "o");
  const sends = new StateGraph(State)
    .addNode("s", () => ({})).addNode("p", asks).addNode("q", (n) => ({ a: [n] })).addEdge(START, "s")
    .addConditionalEdges("s", () => [new Send("p", 1), new Send("q", 2), new Send("p", 3)]);
  const double = task("double", async (n) => n * 2);
  const work = entrypoint({ name: "work", checkpointer: saver }, async (n) => {
    const doubled = await double(n);
    return n === 3 ? doubled + interrupt("sure?") : doubled;
  });
  const compile = (builder) => builder.compile({ checkpointer: saver });
  for (const [graph, input] of [[compile(nested), { a: [0] }], [compile(sends), { a: [0] }], [work, 1], [work, 3]]) {
    const config = { configurable: { thread_id: `js-${randomUUID()}` } };
    await graph.invoke(input, config);
    const want = await graph.getState(config, { subgraphs: true });
    const got = await client.threads.getState(config.configurable.thread_id, undefined, { subgraphs: true });
    equal(told(got), told(want));
    if (input === 1) equal([got.values, want.values], [2, 2]);
  }
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

check("long lists of the store come whole", async () => {
  const [store, memory, root, count] = [new HttpStore(BASE), new InMemoryStore(), randomUUID(), 1005];
  for (let start = 0; start < count; start += 50) {
    const numbers = Array.from({ length: Math.min(50, count - start) }, (_, index) => start + index);
    await Promise.all(numbers.flatMap((n) => [store, memory].map((one) => one.put([root, String(n)], "k", { n }))));
  }
  for (const options of [{ limit: 5000 }, { limit: 1004 }, { limit: 0 }, { limit: 1001, offset: 10 }]) {
    const lengths = async (one) => {
      const [found, spaces] = [await one.search([root], options), await one.listNamespaces({ prefix: [root], ...options })];
      return [found.length, new Set(found.map(({ value }) => value.n)).size, spaces.length, new Set(spaces.map(String)).size];
    };
    equal(await lengths(store), await lengths(memory), JSON.stringify(options));
  }
});

const at = (threadId, id) => ({ configurable: { thread_id: threadId, checkpoint_ns: "", checkpoint_id: id } });
const said = (id, values, versions) => ({ v: 4, id, ts: "", channel_values: values, channel_versions: versions });

check("a value whose parent is not known is sent, whether it is new or not", async () => {
  const [threadId, saver] = [randomUUID(), new HttpSaver(BASE)];
  await saver.put(at(threadId), said("1", { a: "old" }, { a: 1 }), {}, { a: 1 });
  // Put at version 2 by nobody that the server knows of.
  await new HttpSaver(BASE).put(at(threadId, "1"), said("2", { a: "unheard of", b: "new" }, { a: 2, b: 1 }), {}, { b: 1 });
  equal((await saver.getTuple(at(threadId))).checkpoint.channel_values, { a: "unheard of", b: "new" });
});

check("threads of graphs in Python are left out of lists of everything, and named when they are asked for", async () => {
  const [mine, theirs, saver] = [randomUUID(), randomUUID(), new HttpSaver(BASE)];
  await saver.put(at(mine), said("1", { a: "mine" }, { a: 1 }), {}, { a: 1 });
  const put = { checkpoint: { v: 4, id: "1", ts: "", channel_versions: { a: 1 } }, metadata: {}, values: { a: { type: "msgpack", base64: "AQ==" } } };
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${BASE}/threads/${theirs}/checkpoints`, { method: "POST", headers, body: JSON.stringify(put) });
  ok(answer.ok, await answer.text());
  const ids = async (config) => (await collect(saver.list(config))).map((found) => found.config.configurable.thread_id);
  const all = await ids({});
  ok(all.includes(mine) && !all.includes(theirs), all);
  for (const ask of [() => ids(at(theirs)), () => saver.getTuple(at(theirs))]) {
    await assert.rejects(ask, (error) => [theirs, "channel a", '"msgpack"'].every((word) => error.message.includes(word)));
  }
  await saver.deleteThread(theirs);
});

/** A server that gives one answer to everything. */
async function answering(status, body, type, use) {
  let seen = 0;
  const server = createServer((request, response) => {
    seen += 1;
    request.resume();
    response.writeHead(status, type ? { "content-type": type } : {}).end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use(`http://127.0.0.1:${server.address().port}`, () => seen);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

check("only the server's own word means that there is nothing, and other answers are said to be others'", async () => {
  const none = '{"detail":"Checkpoint latest not found."}';
  await answering(404, none, "application/json", async (url) => equal(await new HttpSaver(url).getTuple(at("t")), undefined));
  const others = [
    [404, "<html>nope</html>", "text/html"], [404, '{"detail":"Not Found"}', "application/json"], [404, none, undefined],
    [200, "<html>hello</html>", "text/html"], [200, "{}", "application/json"], [200, "", undefined],
    [200, "[", "application/vnd.session-store.frame"], [301, "", undefined],
  ];
  for (const [status, body, type] of others) {
    await answering(status, body, type, async (url, seen) => {
      const saver = new HttpSaver(url);
      const asks = [
        () => saver.getTuple(at("t")), () => collect(saver.list(at("t"))), () => saver.putWrites(at("t", "1"), [["a", 1]], "task"),
        () => saver.put(at("t"), said("1", {}, {}), {}, {}), () => new HttpStore(url).search(["a"]),
      ];
      if (status === 404) asks.push(() => saver.deleteThread("t"));
      for (const ask of asks) {
        await assert.rejects(ask, (error) => {
          const says = error.message.includes("not an answer of a session-store server") && error.message.includes(url);
          return error instanceof SessionStoreError && error.status === status && (says || error.detail === JSON.parse(body).detail);
        });
      }
      equal(seen(), asks.length, "nothing was tried again");
    });
  }
});

check("mistakes are told at once", async () => {
  const urls = ["", "127.0.0.1:8123", "localhost:8123", "ftp://127.0.0.1", "http://", "http://h:99999", "http://h:x", "http://h:0",
    "http://h/?a=b", "http://a b", "http://h\r\nx: y", "http://user:word@h", null, 5];
  const keys = ["a\r\nx: y", "a\n", "a\0", "é", 5];
  for (const Kind of [HttpSaver, HttpStore]) {
    for (const url of urls) assert.throws(() => new Kind(url), /^Error: url: /, String(url));
    for (const key of keys) {
      assert.throws(() => new Kind(BASE, { apiKey: key }), /^Error: apiKey: /);
      assert.throws(() => new Kind(BASE, { headers: { "X-Trace": key } }), /^Error: headers: .*X-Trace/);
    }
    for (const name of ["a b", "", "x:y", "é", "Content-Length"]) {
      assert.throws(() => new Kind(BASE, { headers: { [name]: "v" } }), /^Error: headers: /);
    }
  }
  const saver = new HttpSaver(BASE);
  for (const threadId of [undefined, null, "", ".."]) {
    await assert.rejects(saver.put(at(threadId), said("1", {}, {}), {}, {}), /thread_id/);
    await assert.rejects(saver.putWrites(at(threadId, "1"), [["a", 1]], "task"), /thread_id/);
    await assert.rejects(saver.deleteThread(threadId), /thread_id/);
  }
  equal([await saver.getTuple({}), await saver.getTuple(at(null))], [undefined, undefined]);
  await assert.rejects(collect(saver.list(at(null))), /thread_id/);
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
