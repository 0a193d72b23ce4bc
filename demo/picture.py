"""The timings as a picture."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from variants import Result

_INK, _FAINT, _PAPER = "#24292f", "#656d76", "#ffffff"
_COLOURS = {"put": "#2f6f4f", "get": "#7fb685", "first read": "#d9c27e"}


def draw(results: list[Result], machine: str, path: Path) -> None:
    """Draws a bar per variant: put, get, first read. The suffix of `path` is the format."""
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "vineyard", "text.color": _INK})
    groups = {
        "a pod per task": [each for each in results if each.variant.per_task],
        "one pod for the whole pipeline": [each for each in results if not each.variant.per_task],
    }
    figure, axes = plt.subplots(figsize=(8.4, 1.9 + 0.42 * len(results)), facecolor=_PAPER)
    longest = max(result.record.handover_ms for result in results)
    row, ticks = 0.0, {}
    for heading, members in groups.items():
        axes.text(0, row, heading, color=_FAINT, va="center", style="italic")
        for result in members:
            row += 1
            _bar(axes, row, result, longest)
            ticks[row] = result
        row += 1.3
    axes.set_yticks(list(ticks), [each.variant.title.partition(",")[0] for each in ticks.values()])
    for label, result in zip(axes.get_yticklabels(), ticks.values(), strict=True):
        label.set_fontweight("bold" if result.variant.vineyard else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.12)
    axes.set_xlabel("milliseconds, shorter is better", color=_FAINT)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=_INK)
    axes.legend(loc="upper right", frameon=False)
    figure.suptitle("Handing all data of a pipeline from task to task", x=0.02, ha="left", fontweight="bold")
    figure.text(0.02, 0.925, machine, fontsize=8.5, color=_FAINT, va="top")
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)


def _bar(axes: Axes, row: float, result: Result, longest: float) -> None:
    record = result.record
    left = 0.0
    for (name, colour), value in zip(_COLOURS.items(), (record.put_ms, record.get_ms, record.read_ms), strict=True):
        known = name in axes.get_legend_handles_labels()[1]
        axes.barh(row, value, left=left, height=0.66, color=colour, label="" if known else name)
        left += value
    weight = "bold" if result.variant.vineyard else "normal"
    axes.text(left + longest * 0.01, row, f"{left:,.0f} ms", va="center", fontweight=weight)
