"""Run the demo and draw what it prints, for the README.

python recipes/picture.py docs/demo.svg
"""

import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tunewright.cli.demo import demo


def main() -> None:
    console = Console(record=True, width=100, force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        demo(Path(folder) / "runs" / "demo", console=console)
        console.save_svg(sys.argv[1], title="make demo")
        picture = Path(sys.argv[1])
        picture.write_text(picture.read_text().replace(f"{folder}/", ""))


if __name__ == "__main__":
    main()
