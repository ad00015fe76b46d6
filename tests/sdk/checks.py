"""What the scripts beside this one share: a list of checks, each independent of the others, and how they are run."""

import asyncio
import os
import sys
import traceback

from langgraph_sdk import get_client

BASE = os.environ["BASE_URL"]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def equal(got, want, what=""):
    assert got == want, f"{what}: got {got!r}, want {want!r}"


async def refused(status, coroutine):
    """The call must fail with this status; the error is returned."""
    try:
        got = await coroutine
    except Exception as error:
        code = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        assert code == status, f"want {status}, got {code}: {error!r}"
        return error
    raise AssertionError(f"want {status}, got the answer {got!r}")


async def until(holds, what):
    """Asks until it holds: a deadline, not a pace."""
    for _ in range(400):
        if await holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


async def _all():
    client = get_client(url=BASE)
    failed = 0
    for function in CHECKS:
        try:
            await asyncio.wait_for(function(client), 60)
            print(f"ok      {function.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  {function.__name__}")
            traceback.print_exc(file=sys.stdout)
    if failed:
        print(f"{failed} of {len(CHECKS)} checks failed")
        sys.exit(1)
    print(f"{len(CHECKS)} checks passed")


def run():
    """Runs all checks. Exit status 1 when any of them fails."""
    asyncio.run(_all())
