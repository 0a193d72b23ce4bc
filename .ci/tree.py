"""The house rules that no linter knows: sizes and names of files, size of main.rs, words."""

import re
import statistics
import subprocess
import sys
from pathlib import Path

CAP = 600
MEDIAN = 150
MAIN_CAP = 20
SOURCES = {".rs", ".py", ".pyi", ".proto"}
FORBIDDEN = {"util", "utils", "helper", "helpers", "manager", "common", "misc"} | {
    "data", "info", "handler", "handlers", "impl",
}  # fmt: skip
# `data/` holds the data sets of a project by that project's own convention (Kedro).
FORBIDDEN_ANYWHERE = FORBIDDEN - {"data"}
# Definitions of standards, replaced as a whole and never edited.
VERBATIM = {Path("proto/proto/csi/v1/csi.proto"), Path("proto/proto/pluginregistration/v1/api.proto")}
FORBIDDEN_TYPE = re.compile(
    r"^\s*(?:pub(?:\([a-z]+\))? )?(?:struct|enum|trait|class) "
    r"(\w*(?:Util|Helper|Manager|Misc|Handler)s?)\b",
    re.MULTILINE,
)


def tracked() -> list[Path]:
    """Returns the files that git knows or would add."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [path for path in map(Path, names.splitlines()) if path.is_file()]


def violations(paths: list[Path]) -> list[str]:
    """Returns one sentence for every file that breaks a rule."""
    found = []
    sizes = {}
    for path in paths:
        if path.stem.lower() in FORBIDDEN:
            found.append(f"{path}: {path.stem} says nothing; name the thing or the verb")
        found += [
            f"{path}: folder {part} says nothing" for part in path.parts[:-1] if part.lower() in FORBIDDEN_ANYWHERE
        ]
        if path.suffix not in SOURCES or path in VERBATIM:
            continue
        text = path.read_text(encoding="utf-8")
        sizes[path] = text.count("\n")
        if re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE):
            found.append(f"{path}: a merge was left unfinished")
        if sizes[path] > CAP:
            found.append(f"{path}: {sizes[path]} lines, the cap is {CAP}")
        # The list of modules is no code.
        code = [line for line in text.splitlines() if not re.match(r"mod \w+;", line)]
        if path.name == "main.rs" and len(code) > MAIN_CAP and "fn main" in text:
            found.append(f"{path}: {len(code)} lines, a main.rs has at most {MAIN_CAP}")
        found += [f"{path}: type {name} says nothing" for name in FORBIDDEN_TYPE.findall(text)]
    median = statistics.median(sizes.values())
    if median > MEDIAN:
        found.append(f"the median of {len(sizes)} source files is {median} lines, above {MEDIAN}")
    return found


if __name__ == "__main__":
    problems = violations(tracked())
    print("\n".join(problems) or "tree: sizes and names are in order")
    sys.exit(bool(problems))
