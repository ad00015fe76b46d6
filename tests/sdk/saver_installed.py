"""`pip install ./clients/python`, as its README says, into an environment of its own. What it depends on is taken from the
environment that runs this; what it is built with comes from the package index.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "clients" / "python"
LOOK = """
import sys
from importlib.metadata import distribution
from pathlib import Path

import session_store_langgraph
from session_store_langgraph import HttpSaver, HttpStore

place = Path(session_store_langgraph.__file__).parent
assert place.is_relative_to(sys.prefix), place
assert (place / "py.typed").is_file(), "type checkers are told that it has types"
here = {path.name for path in place.glob("*.py")}
assert here == {path.name for path in Path(sys.argv[1]).glob("src/session_store_langgraph/*.py")}, here
needs = distribution("session-store-langgraph").requires
assert [need.split(">")[0].split("<")[0] for need in needs] == ["httpx", "langgraph-checkpoint"], needs
HttpSaver(), HttpStore()
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        fresh = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        environment = {**os.environ, "PYTHONPATH": ""}
        pip = [sys.executable, "-m", "pip", "--python", fresh, "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", CLIENT], check=True, env=environment)
        # Only for what it depends on: the environment's own packages come first.
        look = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n{LOOK}"
        subprocess.run([fresh, "-B", "-c", look, CLIENT], check=True, env=environment)
    print("1 checks passed")


main()
