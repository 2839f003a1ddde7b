"""The commands of the command line, by subject; each imports what it needs when it runs, so that help is quick."""

from facebones.cli import backbones, data, evaluation, study, training

GROUPS = {"evaluate": "measure a trained backbone", "data": "look into data, convert it, make some"}

# In the order of the help.
COMMANDS = training.COMMANDS | study.COMMANDS | evaluation.COMMANDS | backbones.COMMANDS | data.COMMANDS
