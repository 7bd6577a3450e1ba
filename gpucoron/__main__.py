"""``python -m gpucoron``: the command line."""

from gpucoron.cli.main import script

if __name__ == "__main__":
    script()
