// Every method of `client.threads` but the streams.

import { randomUUID } from "node:crypto";

import { check, client, equal, newThread, ok, refused } from "./checks.mjs";

const { threads, runs } = client;
const ids = (rows) => rows.map((row) => row.thread_id);

check("threads are made, changed and found", async () => {
  const tag = randomUUID();
  const made = [];
  for (let n = 0; n < 3; n += 1) made.push(await newThread({ metadata: { tag, n }, ttl: 60 }));
  const [first, second] = made;
  const changed = await threads.update(first, { metadata: { more: 1 } });
  equal([changed.metadata.n, changed.metadata.more], [0, 1]);
  equal(await threads.update(first, { metadata: { more: 2 }, returnMinimal: true }), undefined);
  equal((await threads.get(first, { include: ["ttl"] })).ttl.ttl_minutes, 60);
  await runs.wait(second, "counter", { input: { target: 2 } });
  equal(await threads.count({ metadata: { tag } }), 3);
  equal(ids(await threads.search({ metadata: { tag }, sortBy: "created_at", sortOrder: "asc" })), made);
  equal(ids(await threads.search({ metadata: { tag }, values: { count: 2 } })), [second]);
  equal(ids(await threads.search({ ids: [first] })), [first]);
  equal((await threads.search({ metadata: { tag }, status: "idle", limit: 2 })).length, 2);
  const picked = await threads.search({
    metadata: { tag }, select: ["status"], extract: { count: "values.count" }, sortBy: "created_at", sortOrder: "asc",
  });
  equal(picked.map((row) => row.extracted.count), [null, 2, null]);
  await refused(409, threads.create({ threadId: first }));
  equal((await threads.create({ threadId: first, ifExists: "do_nothing" })).thread_id, first);
  equal((await threads.prune(made)).pruned_count, 3);
  await refused(404, threads.get(first));
});

check("threads have names of one's own", async () => {
  const name = `user ${randomUUID()}`.replace(" ", "~");
  await newThread({ threadId: name });
  equal((await runs.wait(name, "counter", { input: {} })).count, 1);
  await threads.delete(name);
  await refused(404, threads.get(name));
});

check("the metadata of the latest state is added to", async () => {
  const thread = await newThread();
  await runs.wait(thread, "counter", { input: { target: 1 } });
  const patched = await threads.patchState(thread, { note: "x" });
  const state = await threads.getState(thread);
  equal([state.metadata.note, state.metadata.step], ["x", 1]);
  equal(patched.checkpoint.checkpoint_id, state.checkpoint.checkpoint_id);
  await threads.patchState({ configurable: { thread_id: thread } }, { more: 1 });
  const { metadata } = await threads.getState(thread);
  equal([metadata.note, metadata.more], ["x", 1]);
});

check("state is read, written and forked", async () => {
  const thread = await newThread({ graphId: "counter" });
  const written = await threads.updateState(thread, { values: { count: 5, target: 7 }, asNode: "bump" });
  ok(written.configurable.checkpoint_id);
  const state = await threads.getState(thread);
  equal([state.values.count, state.next], [5, ["bump"]]);
  equal((await runs.wait(thread, "counter", { input: null })).count, 7);
  const history = await threads.getHistory(thread, { limit: 10 });
  equal(history.map((one) => one.values.count), [7, 6, 5]);
  const before = await threads.getHistory(thread, { limit: 1, before: history[0].checkpoint });
  equal(before.map((one) => one.values.count), [6]);
  const at = await threads.getState(thread, history[1].checkpoint, { subgraphs: true });
  equal([at.values.count, at.checkpoint.checkpoint_id], [6, history[1].checkpoint.checkpoint_id]);
  equal((await threads.getState(thread, history[1].checkpoint.checkpoint_id)).values.count, 6);
  await threads.updateState(thread, { values: { count: 10 }, checkpoint: history[1].checkpoint, asNode: "bump" });
  equal((await threads.getState(thread)).values.count, 16);
  const selected = await threads.getState(thread, undefined, { select: ["values.count", "next"] });
  equal([selected.values, selected.next, selected.tasks], [{ count: 16 }, [], undefined]);
});

check("threads are copied and made with a history", async () => {
  const thread = await newThread();
  await runs.wait(thread, "counter", { input: { target: 2 } });
  const copy = (await threads.copy(thread)).thread_id;
  const counts = async (id) => (await threads.getHistory(id)).map((one) => one.values.count);
  equal(await counts(copy), await counts(thread));
  await threads.prune([copy], { strategy: "keep_latest" });
  equal(await counts(copy), [2]);
  const supersteps = [
    { updates: [{ values: {}, asNode: "__input__" }] },
    { updates: [{ values: { count: 3, target: 4 }, asNode: "bump" }] },
  ];
  const told = await newThread({ graphId: "counter", supersteps });
  equal((await runs.wait(told, "counter", { input: null })).count, 4);
});
