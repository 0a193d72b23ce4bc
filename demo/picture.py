"""The timings as a picture."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from variants import Result

_INK, _PAPER = "#24292f", "#ffffff"
_PARTS = {"put": "#2f6f4f", "get": "#7fb685", "first read": "#d9c27e"}


def draw(results: list[Result], subtitle: str, path: Path) -> None:
    """Draws a bar per variant: put, get, first read. The suffix of `path` is the format."""
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "svg.hashsalt": "vineyard",
            "text.color": _INK,
        }
    )
    figure, axes = plt.subplots(figsize=(8.4, 0.9 + 0.52 * len(results)), facecolor=_PAPER)
    rows = range(len(results))
    left = [0.0] * len(results)
    for (name, colour), values in zip(
        _PARTS.items(),
        (
            [each.record.put_ms for each in results],
            [each.record.get_ms for each in results],
            [each.record.read_ms for each in results],
        ),
        strict=True,
    ):
        axes.barh(rows, values, left=left, height=0.62, color=colour, label=name)
        left = [start + value for start, value in zip(left, values, strict=True)]
    longest = max(left)
    for row, result in enumerate(results):
        total = result.record.handover_ms
        axes.text(
            left[row] + longest * 0.01,
            row,
            f"{total:,.0f} ms",
            va="center",
            fontweight="bold" if result.variant.vineyard else "normal",
        )
    axes.set_yticks(rows, [each.variant.title for each in results])
    for label, result in zip(axes.get_yticklabels(), results, strict=True):
        label.set_fontweight("bold" if result.variant.vineyard else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.14)
    axes.set_xlabel("milliseconds to hand all datasets over; shorter is better", color=_INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=_INK)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(subtitle, loc="left", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)
