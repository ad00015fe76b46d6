// Every method of `client.store` and `client.crons`.

import { randomUUID } from "node:crypto";

import { check, client, equal, newThread, ok, refused } from "./checks.mjs";

const { store, crons } = client;

check("items are kept, found and removed", async () => {
  const root = randomUUID();
  await store.putItem([root, "a"], "k1", { color: "red", n: 1 });
  await store.putItem([root, "a"], "k2", { color: "blue", n: 2 }, { ttl: 60, index: false });
  await store.putItem([root, "b", "c"], "k3", { color: "red", n: 3 });
  const item = await store.getItem([root, "a"], "k1", { refreshTtl: true });
  equal([item.value, item.namespace, item.key], [{ color: "red", n: 1 }, [root, "a"], "k1"]);
  ok(item.createdAt && item.updatedAt);
  equal(await store.getItem([root, "a"], "missing"), null);
  const found = await store.searchItems([root], { filter: { color: "red" } });
  equal(found.items.map((one) => one.key).sort(), ["k1", "k3"]);
  equal((await store.searchItems([root], { filter: { n: { $gt: 1 } }, limit: 1, offset: 1 })).items.length, 1);
  const { namespaces } = await store.listNamespaces({ prefix: [root] });
  equal(namespaces.sort(), [[root, "a"], [root, "b", "c"]]);
  equal((await store.listNamespaces({ prefix: [root], suffix: ["c"], maxDepth: 2 })).namespaces, [[root, "b"]]);
  await store.deleteItem([root, "a"], "k1");
  await store.deleteItem([root, "a"], "k1");
  equal(await store.getItem([root, "a"], "k1"), null);
});

check("crons are made, changed, found and deleted", async () => {
  const thread = await newThread();
  const tag = randomUUID();
  // Never due while this lasts.
  const schedule = "0 0 1 1 *";
  const cron = await crons.create("counter", { schedule, input: {}, metadata: { tag }, timezone: "Europe/Berlin" });
  const own = await crons.createForThread(thread, "counter", { schedule, input: {}, metadata: { tag } });
  equal([own.thread_id, cron.thread_id], [thread, null]);
  equal(await crons.count({ metadata: { tag } }), 2);
  const found = await crons.search({ threadId: thread, sortBy: "created_at", select: ["cron_id", "schedule"] });
  equal(found, [{ cron_id: own.cron_id, schedule }]);
  const changed = await crons.update(cron.cron_id, { schedule: "5 4 1 1 *", enabled: false });
  equal([changed.schedule, changed.enabled, changed.timezone], ["5 4 1 1 *", false, "Europe/Berlin"]);
  equal((await crons.search({ enabled: false, metadata: { tag } })).map((one) => one.cron_id), [cron.cron_id]);
  for (const one of [cron, own]) await crons.delete(one.cron_id);
  equal(await crons.count({ metadata: { tag } }), 0);
  await refused(422, crons.create("counter", { schedule: "never", input: {} }));
});
