"""Draw what a command printed, for the README.

COLUMNS=100 make demo | python recipes/picture.py "make demo" docs/demo.svg
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

STYLES = {r"^\d\. .*$": "bold", r"\bbetter\b|\bright\b": "green", r"\bwrong\b|\bworse\b": "red", r"^(step|Epoch|Checkpoint) .*$": "dim"}


def main() -> None:
    title, place = sys.argv[1:]
    console = Console(record=True, width=120, file=io.StringIO())
    for line in sys.stdin.read().splitlines():
        text = Text(line)
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        console.print(text, soft_wrap=True)
    # rich names a font on a web server; a picture that is looked at offline takes the system's.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    Path(place).write_text(drawn)


if __name__ == "__main__":
    main()
