"""Python imports this by its name before it runs any program that has this directory in PYTHONPATH."""

import importlib
import os

if program := os.environ.get("CRASH_PROGRAM"):
    importlib.import_module(f"{program}_steps").install()
if os.environ.get("BELLS") == "unreliable":
    importlib.import_module("bells").install()
