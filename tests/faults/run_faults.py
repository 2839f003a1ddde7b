"""Disturb the commands by all faults, at each change that they make to the disk, and tell what came of it.

    python tests/faults/run_faults.py --kills 1000                  all
    python tests/faults/run_faults.py --command train --fault full --every 5

A row for each command and fault says how many times it was tried, in which time, and how often the end was not what the
undisturbed command made. The exit status is 1 if that was ever so.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fault_driver
from fault_commands import COMMANDS, KILLED
from fault_driver import STATUSES, Harness, disturb, kill_again_and_again


def main() -> int:
    """Parse the command line and disturb."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", action="append", choices=COMMANDS, help="one of them; may be given again")
    parser.add_argument("--fault", action="append", choices=STATUSES, help="one of them; may be given again")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each n-th change only (default 1)")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="also kill trainings at any moment, N times")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as folder, fault_driver.harness(Path(folder)) as made:
        if arguments.kills:
            for name in KILLED:
                chance = random.Random(arguments.seed)
                print(kill_again_and_again(made, COMMANDS[name], arguments.kills // len(KILLED), chance), flush=True)
        for name in arguments.command or [name for name in COMMANDS if name not in KILLED]:
            for fault in arguments.fault or STATUSES:
                found += _row(made, name, fault, arguments.every, arguments.seed)
    return int(found > 0)


def _row(made: Harness, name: str, fault: str, every: int, seed: int) -> int:
    """Disturb one command by one fault; prints the row, and returns the number of bad ends."""
    begun, wrong = time.monotonic(), Counter[str]()
    changes = made.undisturbed(COMMANDS[name]).changes
    places = range(1 + seed % every, len(changes) + 1, every)
    for at in places:
        if flaw := disturb(made, COMMANDS[name], fault, at):
            flaw = flaw.replace(str(made.folder), "")
            wrong[flaw] += 1
            if wrong[flaw] == 1:
                print(f"  WRONG at {at} ({changes[at - 1]}): {flaw}", flush=True)
    minutes = (time.monotonic() - begun) / 60
    print(f"{name:20} {fault:10} {len(places):4} tried {sum(wrong.values()):4} wrong {minutes:5.1f} min", flush=True)
    return sum(wrong.values())


if __name__ == "__main__":
    sys.exit(main())
