"""Count the modules of facebones that are loaded by one evaluation, one training and one report.

    python scripts/loaded_modules.py [--commands] [--names]

`--commands` runs the commands instead of the functions, for versions without a Python API.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FINISHED = ROOT / "tests" / "older" / "v0.2.0.dev0" / "finished"
FIELDS = {"data.workers": "0", "training.epochs": "1", "training.batch_size": "8", "validation.sets": "synthetic"}
OVERRIDES = [word for key, value in FIELDS.items() for word in (f"--{key}", value)]
TRAIN = ["train", "demo", "--data", "faces", "--backbone", "study_mixfacenet_xs", "--device", "cpu", *OVERRIDES]
FUNCTIONS = {
    "evaluate": "facebones.evaluate(facebones.load_model('ready', device='cpu'), 'faces/synthetic.bin')",
    "train": "facebones.train(facebones.load_recipe('demo', {fields!r}), 'run', device='cpu')",
    "report": (
        "from pathlib import Path; from facebones.reporting.report import write_report;"
        " write_report([Path({finished!r})], Path('report'))"
    ),
}
COMMANDS = {
    "evaluate": ["evaluate", "pairs", "--checkpoint", "ready", "--data", "faces/synthetic.bin", "--device", "cpu"],
    "train": [*TRAIN, "--output", "run"],
    "report": ["report", str(FINISHED), "--output", "report"],
}
# Each module's name, and whether it is more than a package's __init__.py.
COUNT = """
import json, sys
modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "facebones"}
ours = {name: not hasattr(module, "__path__") for name, module in modules.items()}
print("\\n" + json.dumps(dict(sorted(ours.items()))))
"""
RUN = """
import runpy, sys
sys.argv = ["facebones", *{words!r}]
try:
    runpy.run_module("facebones", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""


def python(code: str, folder: str) -> str:
    """What a new Python process prints while it runs the code."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(*, commands: bool, names: bool) -> None:
    """Print a line for each job, and the modules if they are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["--identities", "4", "--images-per-identity", "4", "--pairs", "20"]
        python(RUN.format(words=["data", "synthesize", "faces", *size]), folder)
        python(RUN.format(words=[*TRAIN, "--output", "ready"]), folder)
        for job, words in COMMANDS.items():
            fields = {**FIELDS, "data.path": "faces", "backbone.name": "study_mixfacenet_xs"}
            function = FUNCTIONS[job].format(fields=fields, finished=str(FINISHED))
            code = RUN.format(words=words) if commands else f"import facebones\n{function}\n"
            loaded = json.loads(python(code + COUNT, folder).splitlines()[-1])
            print(f"{job}: {len(loaded)} modules, {sum(loaded.values())} of them not a package's __init__.py")
            if names:
                print("  " + ", ".join(loaded))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="run the commands")
    parser.add_argument("--names", action="store_true", help="print the modules' names")
    main(**vars(parser.parse_args()))
