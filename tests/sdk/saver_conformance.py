"""`langgraph-checkpoint-conformance` against `HttpSaver` on BASE_URL: every capability, every test."""

import asyncio
import os
import sys

from langgraph.checkpoint.conformance import checkpointer_test, validate
from session_store_langgraph import HttpSaver


@checkpointer_test(name="HttpSaver")
async def http_saver():
    async with HttpSaver(os.environ["BASE_URL"]) as saver:
        yield saver


async def main():
    report = await validate(http_saver)
    report.print_report()
    results = report.results.values()
    for result in results:
        for failure in result.failures or []:
            print(failure)
    level = report.conformance_level()
    passed = sum(result.tests_passed for result in results)
    # None skipped, none failed.
    if level != "FULL" or not all(result.passed for result in results) or passed < 60:
        print(f"level {level}, {passed} passed")
        sys.exit(1)
    print(f"{passed} checks passed")


asyncio.run(main())
