"""The tables of a run, as Markdown."""

from __future__ import annotations

from typing import Any

from reasons import REASONS
from targets import figure, limit, verdicts

NONE = "\u2013"
COLUMNS = ("ours", "ours-billed", "files", "files-pickle", "ray", "redis", "reference", "s3")

# label, workload, metric, digits of precision
ROWS = (
    ("put 1 KB array, p50, us", "small", "put_p50_us"),
    ("… p99, us", "small", "put_p99_us"),
    ("get 1 KB array, p50, us", "small", "get_p50_us"),
    ("… p99, us", "small", "get_p99_us"),
    ("put 1 KB, 1 client, k/s", "small", "put_ops/k"),
    ("get 1 KB, 1 client, k/s", "small", "get_ops/k"),
    ("put 1 KB, 8 clients, k/s", "clients8", "put_ops/k"),
    ("get 1 KB, 8 clients, k/s", "clients8", "get_ops/k"),
    ("put 256 MiB, memory never touched, ms", "cold", "put_ms"),
    ("put 1 GiB, after an equal one was freed, ms", "large", "put_ms"),
    ("get 1 GiB, us", "large", "get_us"),
    ("create in place 1 MiB, us", "create", "small_us"),
    ("create in place 256 MiB, us", "create", "block_us"),
    ("create in place 1 GiB, us", "create", "large_us"),
    ("… of it seal, us", "create", "large_seal_us"),
    ("1 GiB built in place: create, ms", "build", "create_ms"),
    ("… fill and seal, ms", "build", "fill_ms"),
    ("… all of it, ms", "build", "all_ms"),
    ("fresh process: attach, get, read 256 MiB, ms", "fresh", "total_ms"),
    ("… of it attach, ms", "fresh", "attach_ms"),
    ("put DataFrame 1e6 x 10 float64, ms", "frame", "put_ms"),
    ("get DataFrame 1e6 x 10 float64, ms", "frame", "get_ms"),
    ('put {"a": 256 MiB array}, ms', "nested", "put_ms"),
    ('get {"a": 256 MiB array}, ms', "nested", "get_ms"),
    ("put list of 1,000 1 KB arrays, ms", "list", "put_ms"),
    ("get list of 1,000 1 KB arrays, ms", "list", "get_ms"),
    ("put 3e6 object strings, ms", "strings", "put_ms"),
    ("get 3e6 object strings, ms", "strings", "get_ms"),
    ("… peak of the putting process rose by, MiB", "strings", "put_peak_mib"),
    ("… peak of the getting process rose by, MiB", "strings", "get_peak_mib"),
    ("put 3e6 `str` strings, ms", "strings-arrow", "put_ms"),
    ("get 3e6 `str` strings, ms", "strings-arrow", "get_ms"),
    ("… peak of the putting process rose by, MiB", "strings-arrow", "put_peak_mib"),
    ("… peak of the getting process rose by, MiB", "strings-arrow", "get_peak_mib"),
    ("put 1e6 1 KB arrays one by one, k/s", "million", "put_ops/k"),
    ("put 1e6 1 KB arrays, many in a call, k/s", "million", "put_many_ops/k"),
    ("hand-over of 1e6 1 KB objects, k/s", "handover", "small_ops/k"),
    ("hand-over of 4 x 256 MiB, GB/s", "handover", "large_gbps"),
)


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return NONE
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column to the left."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def peers_table(run: dict[str, Any]) -> str:
    """The one table: workloads down, stores across; the median of all samples."""
    present = [c for c in COLUMNS if any(c in settings for settings in run["samples"].values())]
    rows = []
    for label, workload, metric in ROWS:
        name, _, thousands = metric.partition("/")
        cells = []
        for setting in present:
            value = figure(run, workload, setting, name)
            cells.append(number(value / 1e3 if thousands and value is not None else value))
        if any(cell != NONE for cell in cells):
            best = [figure(run, workload, s, name) for s in present]
            found = [value for value in best if value is not None]
            winner = max(found) if thousands or name.endswith("_gbps") else min(found)
            rows.append([label] + [f"**{c}**" if v == winner else c for c, v in zip(cells, best, strict=True)])
    return table(["", *present], rows)


def targets_table(run: dict[str, Any]) -> str:
    """Each target with what this run's limit and best peer make of it."""
    rows = []
    for verdict in verdicts(run):
        target = verdict.target
        unit = "k/s" if target.unit == "/s" else target.unit
        scale = 1e3 if target.unit == "/s" else 1.0
        sign = ">=" if target.higher else "<="

        def cell(required: float | None, verdict: Any = verdict, sign: str = sign, scale: float = scale) -> str:
            missed = verdict.missed(required)
            if required is None or missed is None:
                return NONE
            word = "met" if missed <= 1 else f"**missed x{missed:.2f}**"
            return f"{sign} {number(required / scale)}: {word}"

        peer = NONE
        if verdict.best_peer:
            peer = f"{number(verdict.best_peer[1] / scale)} {verdict.best_peer[0]}"
        rows.append(
            [
                f"{target.label}, {unit}",
                verdict.setting,
                f"{sign} {number(target.must / scale)}",
                number(verdict.measured / scale),
                cell(verdict.by_limit),
                peer,
                cell(verdict.by_peer),
            ]
        )
    head = ["target", "setting", "as set", "measured", "by the limit of this run", "best peer", "by the best peer"]
    return table(head, rows)


def missed_table(run: dict[str, Any]) -> str:
    """What is missed, by how much, and why."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts(run):
        by_limit, by_peer = verdict.missed(verdict.by_limit), verdict.missed(verdict.by_peer)
        parts = [
            f"{factor:.1f}x against {what}"
            for factor, what in ((by_limit, "the limit"), (by_peer, "peers"))
            if factor is not None and factor > 1
        ]
        if parts:
            found.setdefault(verdict.target.label, []).append(f"{verdict.setting}: {', '.join(parts)}")
    if not found:
        return ""
    rows = ["| missed | by | what the profile shows |", "|---|---|---|"]
    rows += [f"| {label} | {'; '.join(by)} | {REASONS[label]} |" for label, by in found.items()]
    return "\n".join(rows)


def limits_table(run: dict[str, Any]) -> str:
    """What the machine could do, before and after."""
    keys = [key for key in run["limits"] if isinstance(run["limits"][key], float)]
    after = run.get("limits_after", {})
    rows = [[f"`{k}`", number(run["limits"][k]), number(after.get(k)), number(limit(run, k))] for k in keys]
    return table(["limit", "before", "after", "used"], rows)


def markdown(run: dict[str, Any]) -> str:
    """Conditions, tables, and what is missing."""
    parts = [f"Run of {run['date']}, {run['seconds']} s, median of all samples; bold: best of its row."]
    if run["quick"]:
        parts.append("**Quick run: tiny sizes, one round. A smoke test, not a measurement.**")
    facts = [f"{key}: {value}" for key, value in run["conditions"].items()]
    parts += ["; ".join(facts) + ".", peers_table(run)]
    if found := targets_table(run):
        parts += ["Targets:", found]
    # Tiny sizes and one round miss by chance.
    if not run["quick"] and (found := missed_table(run)):
        parts += ["Missed, by how much, and why:", found]
    parts += ["Limits:", limits_table(run)]
    reasons = [
        f"- {workload}, {setting}: {reason}"
        for workload, settings in run["missing"].items()
        for setting, reason in settings.items()
    ]
    if reasons:
        parts += ["Without a figure:", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


def on_page(page: str, tables: str) -> str:
    """The page with everything between its two marks replaced."""
    begin, end = "<!-- bench: begin -->", "<!-- bench: end -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{tables}\n{end}{rest.split(end)[1]}"
