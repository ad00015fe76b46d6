// Every method of `client.assistants`.

import { randomUUID } from "node:crypto";

import { check, client, equal, newThread, ok, refused } from "./checks.mjs";

const { assistants } = client;

check("assistants have versions", async () => {
  const made = await assistants.create({
    graphId: "counter", name: "first", description: "d", metadata: { tag: "v" }, config: { configurable: { speed: 1 } },
  });
  const id = made.assistant_id;
  equal([made.version, made.context, made.description], [1, { speed: 1 }, "d"]);
  const changed = await assistants.update(id, { name: "second", metadata: { more: true } });
  equal([changed.version, changed.name, changed.metadata], [2, "second", { tag: "v", more: true }]);
  equal((await assistants.getVersions(id)).map((version) => version.version), [2, 1]);
  const back = await assistants.setLatest(id, 1);
  equal([back.version, back.name, (await assistants.get(id)).name], [1, "first", "first"]);
  await refused(409, assistants.create({ graphId: "counter", assistantId: id }));
  equal((await assistants.create({ graphId: "counter", assistantId: id, ifExists: "do_nothing" })).name, "first");
  await assistants.delete(id);
  await refused(404, assistants.get(id));
});

check("assistants are searched and counted", async () => {
  const tag = randomUUID();
  for (const name of ["a", "b", "c"]) await assistants.create({ graphId: "chat", name, metadata: { tag } });
  equal(await assistants.count({ metadata: { tag } }), 3);
  const query = { metadata: { tag }, limit: 2, sortBy: "name", sortOrder: "desc" };
  const page = await assistants.search({ ...query, includePagination: true });
  equal(page.assistants.map((assistant) => assistant.name), ["c", "b"]);
  ok(page.next, "there is more");
  const rest = await assistants.search({ ...query, offset: Number(page.next) });
  equal(rest.map((assistant) => assistant.name), ["a"]);
  const picked = await assistants.search({ metadata: { tag }, select: ["name"] });
  equal(picked.map(Object.keys), [["name"], ["name"], ["name"]]);
});

check("every graph is drawn and described", async () => {
  const [own] = await assistants.search({ graphId: "nested", metadata: { created_by: "system" } });
  const drawing = await assistants.getGraph(own.assistant_id, { xray: true });
  ok(drawing.nodes.some((node) => node.id === "child:c_one"), JSON.stringify(drawing.nodes));
  ok(drawing.edges.every((edge) => edge.source && edge.target));
  const schemas = await assistants.getSchemas(own.assistant_id);
  equal(schemas.graph_id, "nested");
  ok(schemas.input_schema && schemas.output_schema && schemas.state_schema);
  equal(Object.keys(await assistants.getSubgraphs(own.assistant_id)), ["child"]);
  equal(Object.keys(await assistants.getSubgraphs(own.assistant_id, { namespace: "child", recurse: true })), ["child"]);
});

check("threads may go with their assistant", async () => {
  const { assistant_id: id } = await assistants.create({ graphId: "counter" });
  const thread = await newThread();
  await client.runs.wait(thread, id, { input: {} });
  await assistants.delete(id, { deleteThreads: true });
  await refused(404, client.threads.get(thread));
});
