"""The command line: `uv run main.py group=option key=value`. See README.org."""

from hatemtl.__main__ import command

if __name__ == "__main__":
    command()
