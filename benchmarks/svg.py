"""The SVG elements of the pictures of benchmarks and soaks."""

from collections.abc import Iterable, Sequence

BAR = 15


def picture(parts: Iterable[str], *, width: int, height: int, title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"\n'
        'font-family="system-ui, sans-serif" font-size="13" fill="#1d2733">\n'
        f"<title>{title}</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def text(x: int, y: int, words: str, *, anchor: str = "start") -> str:
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}"{aligned}>{words}</text>'


def bar(x: int, y: int, width: int, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{BAR}" fill="{colour}"/>'


def line(points: Sequence[tuple[float, float]], colour: str, *, width: float = 1.5, dashed: bool = False) -> str:
    """A line through the points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
