"""The store of the Python SDK, unchanged, against a server at BASE_URL that embeds with what is in its process."""

from checks import check, equal, refused, run


async def keys(client, *prefix, **search):
    found = await client.store.search_items(prefix, **search)
    return [item["key"] for item in found["items"]]


@check
async def items_are_found_by_meaning(client):
    await client.store.put_item(["u", "42"], "drink", {"text": "the user likes strong coffee", "kind": "taste"})
    await client.store.put_item(["u", "42"], "bill", {"text": "invoices are paid on Monday", "kind": "rule"})
    await client.store.put_item(["u", "42"], "secret", {"text": "coffee again", "kind": "taste"}, index=False)
    found = (await client.store.search_items(["u"], query="which coffee?"))["items"]
    equal([item["key"] for item in found], ["drink", "bill", "secret"])
    assert found[0]["score"] > found[1]["score"], found
    equal((found[2]["score"], found[0]["namespace"]), (None, ["u", "42"]))
    equal(await keys(client, "u", query="which coffee?", filter={"kind": "rule"}), ["bill"])
    equal(await keys(client, "u", query="which coffee?", limit=1, offset=1), ["bill"])
    await client.store.put_item(["u", "42"], "drink", {"text": "nothing any more", "kind": "taste"}, index=["kind"])
    found = (await client.store.search_items(["u"], query="taste"))["items"]
    equal(found[0]["key"], "drink")
    assert found[0]["score"] > 0.99, found


@check
async def items_expire(client):
    await client.store.put_item(["t"], "short", {"n": 1}, ttl=0)
    await client.store.put_item(["t"], "long", {"n": 1}, ttl=60)
    equal(await client.store.get_item(["t"], "short", refresh_ttl=True), None)
    equal((await client.store.get_item(["t"], "long", refresh_ttl=False))["value"], {"n": 1})
    equal(await keys(client, "t", refresh_ttl=True), ["long"])


@check
async def filters_compare(client):
    for n in range(5):
        await client.store.put_item(["f"], str(n), {"n": n, "o": {"even": n % 2 == 0}})
    equal(sorted(await keys(client, "f", filter={"n": {"$gte": 1, "$lt": 4, "$ne": 2}})), ["1", "3"])
    equal(sorted(await keys(client, "f", filter={"o": {"even": True}, "n": {"$gt": 0}})), ["2", "4"])
    await refused(422, client.store.search_items(["f"], filter={"n": {"$in": [1]}}))


@check
async def namespaces_match_patterns(client):
    for namespace in (["p", "a", "x"], ["p", "b", "x"], ["p", "b", "y"]):
        await client.store.put_item(namespace, "k", {"n": 1}, index=False)
    async def list(**how):
        return (await client.store.list_namespaces(**how))["namespaces"]
    equal(await list(prefix=["p", "*", "x"]), [["p", "a", "x"], ["p", "b", "x"]])
    equal(await list(prefix=["p"], suffix=["b", "*"]), [["p", "b", "x"], ["p", "b", "y"]])
    equal(await list(prefix=["p"], max_depth=2, limit=1, offset=1), [["p", "b"]])


run()
