"""Trains and evaluates a model.

    python -m lape_jax.main --config=configs/digits.py[:arg,arg=value] --workdir=DIR [--config.key=value ...]

The same command resumes a run that was interrupted.
"""

import argparse
import sys

from ml_collections import ConfigDict

from lape_jax import cli
from lape_jax.parallel import hosts
from lape_jax.train.loop import train_and_evaluate


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    with hosts.together(config, cli.report):
        train_and_evaluate(config, args.workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, description=__doc__, required=("config", "workdir")))
