// Every method of `client.runs`: in the background, waited for, streamed, joined, cancelled.

import { randomUUID } from "node:crypto";

import { check, client, collect, cue, equal, human, newThread, ok, refused, until } from "./checks.mjs";

const { runs, threads } = client;

/** A run of `cued` that is being executed and waits for its cue. */
async function held(thread, message = "hold: one two", options = {}) {
  const run = await runs.create(thread, "cued", { input: human(message), ...options });
  await until("the run runs", async () => (await runs.get(thread, run.run_id)).status === "running");
  return run;
}

check("runs are made, joined, listed and deleted", async () => {
  const thread = await newThread();
  let created;
  const run = await runs.create(thread, "counter", {
    input: { target: 3 }, metadata: { m: 1 }, onRunCreated: (place) => (created = place),
  });
  equal([run.status, created], ["pending", { run_id: run.run_id, thread_id: thread }]);
  equal((await runs.join(thread, run.run_id)).count, 3);
  equal((await runs.list(thread, { status: "success" })).map((one) => one.run_id), [run.run_id]);
  equal((await runs.list(thread, { select: ["run_id"] })).map(Object.keys), [["run_id"]]);
  equal((await runs.get(thread, run.run_id)).metadata.m, 1);
  await runs.delete(thread, run.run_id);
  await refused(404, runs.get(thread, run.run_id));
});

check("runs are waited for, with and without a thread", async () => {
  const thread = await newThread();
  let created;
  const values = await runs.wait(thread, "counter", { input: { target: 2 }, onRunCreated: (place) => (created = place) });
  equal([values.count, created.thread_id], [2, thread]);
  equal((await runs.wait(null, "counter", { input: { target: 4 } })).count, 4);
  equal((await runs.wait(randomUUID(), "counter", { input: {}, ifNotExists: "create" })).count, 1);
  await refused(404, runs.wait(randomUUID(), "counter", { input: {} }));
});

check("failures are errors, or values", async () => {
  const thread = await newThread();
  const failing = { input: { fail_at: 0 } };
  let message = "";
  await runs.wait(thread, "counter", failing).catch((error) => (message = error.message));
  equal(message, "ValueError: counter refused at 0");
  const values = await runs.wait(thread, "counter", { ...failing, raiseError: false });
  equal(values.__error__, { error: "ValueError", message: "counter refused at 0" });
  equal((await threads.get(thread)).status, "error");
  const events = await collect(runs.stream(thread, "counter", failing));
  equal([events.at(-1).event, events.at(-1).data.error], ["error", "ValueError"]);
});

check("a message that a node gave no id has the same one everywhere", async () => {
  const thread = await newThread();
  const events = await collect(runs.stream(thread, "tools", { input: human("weather?"), streamMode: "messages-tuple" }));
  const told = events.filter(({ event }) => event === "messages").map(({ data }) => data[0].id);
  const { values } = await threads.getState(thread);
  equal(told, values.messages.slice(1).map(({ id }) => id));
  ok(told.length === 3 && told.every(Boolean), JSON.stringify(told));
});

check("batches are accepted as one", async () => {
  const batch = await runs.createBatch([1, 2].map(() => ({ assistantId: "counter", input: {} })));
  equal(new Set(batch.map((run) => run.run_id)).size, 2);
});

check("every stream mode arrives", async () => {
  const thread = await newThread();
  let created;
  const modes = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints", "debug"];
  const stream = runs.stream(thread, "counter", {
    input: { target: 1 }, streamMode: modes, onRunCreated: (place) => (created = place),
  });
  const events = await collect(stream);
  equal([events[0].event, events[0].data.run_id], ["metadata", created.run_id]);
  const of = (name) => events.filter((event) => event.event === name);
  equal(of("updates").map((event) => Object.keys(event.data)), [["bump"]]);
  equal(of("custom").map((event) => event.data), [{ kind: "tick", before: 0 }]);
  equal(of("values").at(-1).data.count, 1);
  ok(of("tasks").length && of("checkpoints").length && of("debug").length);
  equal((await runs.get(thread, created.run_id)).status, "success", "its status is final when the stream ends");
});

check("messages arrive token by token", async () => {
  const tuples = await collect(runs.stream(null, "cued", { input: human("a b c"), streamMode: "messages-tuple" }));
  const chunks = tuples.filter((event) => event.event === "messages" && event.data[0].type === "AIMessageChunk");
  equal(chunks.map((event) => event.data[0].content), ["You ", "said ", "a ", "b ", "c"]);
  equal(new Set(chunks.map((event) => event.data[0].id)).size, 1);
  equal(chunks[0].data[1].langgraph_node, "speak");
  const partial = await collect(runs.stream(null, "cued", { input: human("a b"), streamMode: "messages" }));
  equal(partial.filter((event) => event.event === "messages/partial").at(-1).data[0].content, "You said a b");
});

check("graphs inside stream their own events", async () => {
  const input = { trail: [] };
  const options = { input, streamMode: "updates", streamSubgraphs: true };
  const namespaces = async (more) => {
    const events = await collect(runs.stream(null, "nested", { ...options, ...more }));
    return events.filter((event) => event.event.startsWith("updates")).map((event) => event.event.split("|").slice(1));
  };
  const all = await namespaces({});
  equal(all.map((namespace) => namespace.length), [0, 1, 1, 0, 0]);
  ok(all[1][0].startsWith("child:"));
  equal(await namespaces({ streamNamespaces: [""] }), [[], [], []], "the root alone");
});

check("a stream is joined again from where it was left, or from its start", async () => {
  const thread = await newThread();
  const message = "hold: one two three";
  const { run_id: run } = await held(thread, message, { streamMode: ["values", "messages-tuple"], streamResumable: true });
  const first = [];
  for await (const event of runs.joinStream(thread, run, { lastEventId: "-1" })) {
    first.push(event);
    if (event.event === "messages" && event.data[0].content === "one ") break;
  }
  await cue(thread, message);
  const rest = await collect(runs.joinStream(thread, run, { lastEventId: first.at(-1).id }));
  const whole = await collect(runs.joinStream(thread, run, { lastEventId: "-1" }));
  equal([...first, ...rest], whole);
  equal(whole.at(-1).data.messages.at(-1).content, "one two three");
  const values = await collect(runs.joinStream(thread, run, { lastEventId: "-1", streamMode: "values" }));
  ok(values.length && values.every((event) => ["values", "metadata"].includes(event.event)), JSON.stringify(values));
  equal(await collect(runs.joinStream(thread, run)), [], "nothing happens after its end");
});

check("questions are asked and answered", async () => {
  const thread = await newThread();
  const asked = await runs.wait(thread, "cued", { input: human("ask: Tea?") });
  equal(asked.__interrupt__.map((one) => one.value), [{ question: "Tea?" }]);
  const state = await threads.getState(thread);
  equal([state.next, state.tasks[0].interrupts[0].value], [["speak"], { question: "Tea?" }]);
  equal((await threads.get(thread)).status, "interrupted");
  const events = await collect(runs.stream(thread, "cued", { command: { resume: "yes" }, streamMode: "values" }));
  equal(events.at(-1).data.messages.at(-1).content, 'The answer is "yes".');
});

check("a breakpoint stops before a node", async () => {
  const thread = await newThread();
  await runs.wait(thread, "nested", { input: { trail: [] }, interruptBefore: ["p_end"] });
  equal((await threads.getState(thread)).next, ["p_end"]);
  equal((await runs.wait(thread, "nested", { input: null })).trail.at(-1), "p_end");
});

check("a run starts again from an earlier checkpoint", async () => {
  const thread = await newThread();
  await runs.wait(thread, "cued", { input: human("first", "m1") });
  await runs.wait(thread, "cued", { input: human("second", "m2") });
  const history = await threads.getHistory(thread);
  const before = history.find((state) => state.values.messages?.length === 2 && state.next.length === 0);
  const values = await runs.wait(thread, "cued", { input: human("other", "m3"), checkpoint: before.checkpoint });
  equal(values.messages.map((message) => message.content), ["first", "You said first", "other", "You said other"]);
});

check("runs are cancelled", async () => {
  const thread = await newThread();
  const one = await held(thread);
  await runs.cancel(thread, one.run_id, true);
  equal((await runs.get(thread, one.run_id)).status, "interrupted");
  const two = await held(thread);
  await runs.cancel(thread, two.run_id, true, "rollback");
  await refused(404, runs.get(thread, two.run_id));
  const three = await held(thread);
  const four = await runs.create(thread, "cued", { input: human("later") });
  await runs.cancelMany({ threadId: thread, runIds: [three.run_id, four.run_id] });
  for (const run of [three, four]) {
    await until("it is over", async () => (await runs.get(thread, run.run_id)).status === "interrupted");
  }
});

check("whoever leaves may cancel", async () => {
  const thread = await newThread();
  const leaving = new AbortController();
  let created;
  const stream = runs.stream(thread, "cued", {
    input: human("hold: a b"), streamMode: "messages-tuple", onDisconnect: "cancel", signal: leaving.signal,
    onRunCreated: (place) => (created = place),
  });
  for await (const event of stream) if (event.event === "messages") leaving.abort();
  await until("it is cancelled", async () => (await runs.get(thread, created.run_id)).status === "interrupted");
});

check("strategies decide what a second run does", async () => {
  const thread = await newThread();
  const first = await held(thread);
  await refused(409, runs.create(thread, "cued", { input: human("no"), multitaskStrategy: "reject" }));
  await runs.wait(thread, "cued", { input: human("now"), multitaskStrategy: "interrupt" });
  equal((await runs.get(thread, first.run_id)).status, "interrupted");
  const second = await held(thread);
  await runs.wait(thread, "cued", { input: human("instead"), multitaskStrategy: "rollback" });
  await refused(404, runs.get(thread, second.run_id));
  const third = await held(thread, "hold: a b");
  const fourth = await runs.create(thread, "cued", { input: human("then"), multitaskStrategy: "enqueue" });
  equal((await runs.get(thread, fourth.run_id)).status, "pending");
  await cue(thread, "hold: a b");
  equal((await runs.join(thread, fourth.run_id)).messages.at(-1).content, "You said then");
  equal((await runs.get(thread, third.run_id)).status, "success");
});
