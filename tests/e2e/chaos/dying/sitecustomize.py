"""Python imports this by its name before it runs any program that has this directory in PYTHONPATH."""

import importlib
import os
import traceback

#: Which program dies where it is told, and whether bells go astray.
WANTED = [f"{program}_steps"] if (program := os.environ.get("CRASH_PROGRAM")) else []
WANTED += ["bells"] if os.environ.get("BELLS") == "unreliable" else []
try:
    for module in WANTED:
        importlib.import_module(module).install()
except BaseException:  # noqa: BLE001  # whatever it was
    # Python itself would say so and go on without.
    traceback.print_exc()
    os._exit(3)
