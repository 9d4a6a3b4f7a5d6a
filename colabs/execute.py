"""Runs the notebooks here from top to bottom and stores what they print and draw.

    python colabs/execute.py                                            # all of them, in place
    python colabs/execute.py colabs/lape_quickstart.ipynb --small --out=DIR

--small: with LAPE_COLAB_SMALL=1, as the tests do. --out: where the results go instead. Each notebook runs on the CPU,
in a process and a temporary directory of its own. What is stored has no dates, paths or versions of Jupyter in it; the
speeds that training prints differ from run to run. Needs the packages nbclient, nbformat and ipykernel.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
PATHS = re.compile(r"(?<![\w.:/])/(tmp|work|root|home|usr|opt|var|mnt|Users|private)\b")
KEPT = ("accelerator",)  # of a notebook's metadata: what Colab should run it on


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for path in args.notebooks:
        try:
            notebook = execute(nbformat.read(path, as_version=4), args.small)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        found = PATHS.search(written(notebook))
        if found:
            sys.exit(f"{path.name}: {found[0]} is in its outputs, which should have no paths of this machine")
        target = args.out / path.name if args.out else path
        nbformat.write(notebook, target)
        print(f"{path.name}: {target.stat().st_size / 1000:.0f} kB")


def execute(notebook, small):
    """The notebook with new outputs."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory) / "work"
        work.mkdir()
        # This checkout, whatever is installed, and nobody's start-up files.
        modules = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
        setting = {"PYTHONPATH": modules, "JAX_PLATFORMS": "cpu", "LAPE_COLAB_SMALL": "1" if small else ""}
        setting["IPYTHONDIR"] = directory
        # Sockets that are files: no ports.
        kernel = {"transport": "ipc", "ip": f"{directory}/kernel", "connection_file": f"{directory}/kernel.json"}
        client = NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(work)}},
            config=Config(KernelManager=kernel),
        )
        return normalised(client.execute(env=os.environ | setting))


def normalised(notebook):
    """Without what differs from one machine or version of Jupyter to another."""
    kept = {name: notebook.metadata[name] for name in KEPT if name in notebook.metadata}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(kept | {"kernelspec": kernel, "language_info": {"name": "python"}})
    notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def written(notebook):
    """All text in outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


if __name__ == "__main__":
    main()
