"""A card as a page like those of the Hub and GitHub, in headless Chromium: measured, or as a picture.

`python -m tests.report.page model_cards/sst2-half/README.md OUT_FOLDER` writes the page and its pictures at 1200 and
390 px.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The widths of letters on the Hub and GitHub are those of Arial, which Liberation Sans has too.
FONTS = ("Arial", "Liberation Sans")
# What matters of GitHub's and the Hub's style sheets: the fonts, the padding, and what may become wide.
STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1012px; font: 16px/1.5 Arial, 'Liberation Sans', sans-serif;
  word-wrap: break-word; color: #1f2328; }
h1 { font-size: 2em; padding-bottom: .3em; border-bottom: 1px solid #d1d9e0; line-height: 1.25; }
h2 { font-size: 1.5em; padding-bottom: .3em; border-bottom: 1px solid #d1d9e0; }
h3 { font-size: 1.25em; }
a { color: #0969da; text-decoration: none; }
img { max-width: 100%; }
code { font: 85% 'Liberation Mono', monospace; padding: .2em .4em; background: #818b981f; border-radius: 6px; }
pre { padding: 16px; overflow: auto; background: #f6f8fa; border-radius: 6px; font-size: 85%; line-height: 1.45; }
pre code { padding: 0; background: none; font-size: 100%; white-space: pre; }
table { display: block; width: max-content; max-width: 100%; overflow: auto; border-collapse: collapse; }
th, td { padding: 6px 13px; border: 1px solid #d1d9e0; }
ul { padding-left: 2em; }
"""
MEASURE = """
<pre id="found"></pre><script>
window.onload = () => {
  const measured = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = frame.clientWidth;
    const wide = [...page.querySelectorAll("body *")].filter(node => {
      for (let box = node.parentElement; box; box = box.parentElement)
        if (getComputedStyle(box).overflowX === "auto") return false;
      return node.getBoundingClientRect().right > width + 1;
    });
    const scrolls = [...page.querySelectorAll("table")].filter(table => table.scrollWidth > table.clientWidth + 1);
    measured[frame.title] = {
      width: Math.max(page.documentElement.scrollWidth, page.body.scrollWidth),
      wide: wide.map(node => node.outerHTML.slice(0, 200)),
      tables: scrolls.map(table => table.innerText.slice(0, 200)),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(measured);
};
</script>
"""


def has_font() -> bool:
    """Whether a page gets letters as wide as those of Arial."""
    matcher = shutil.which("fc-match")
    return matcher is not None and subprocess.check_output([matcher, "Arial", "family"], text=True).strip() in FONTS


def html(card: str) -> str:
    """Return the page of a card, without its metadata, everything unfolded."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    text = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    text = text.replace("<details>", "<details open>")
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{text}'


def measure(cards: Mapping[str, str], width: int) -> dict[str, dict[str, Any]]:
    """Return for each card how it fits a screen of `width` pixels.

    `width` is that of the page, `wide` are elements that reach beyond the screen, `tables` those to be scrolled.
    """
    with tempfile.TemporaryDirectory() as folder:
        frames = []
        for number, (name, card) in enumerate(cards.items()):
            Path(folder, f"{number}.html").write_text(html(card), "utf-8")
            style = f"border: 0; width: {width}px; height: 30000px"
            frames.append(f'<iframe title="{name}" src="{number}.html" style="{style}"></iframe>')
        outer = Path(folder, "outer.html")
        outer.write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}{MEASURE}', "utf-8")
        out = _chromium("--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=8000", outer.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', out, re.DOTALL)
    assert found is not None and found[1], out[-500:]
    values: dict[str, dict[str, Any]] = json.loads(unescape(found[1]))
    return values


def picture(page: Path, out: Path, width: int, height: int) -> None:
    """Write the picture of a page as it looks `width` pixels wide."""
    _chromium(f"--window-size={width},{height}", "--hide-scrollbars", f"--screenshot={out}", page.resolve().as_uri())


def _chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for image in source.parent.glob("*.png"):
        shutil.copy(image, folder)
    file = folder / "card.html"
    file.write_text(html(source.read_text("utf-8")), "utf-8")
    for pixels in (1200, 390):
        picture(file, folder / f"card-{pixels}.png", pixels, 4000)
        print(pixels, measure({source.parent.name: source.read_text("utf-8")}, pixels))
