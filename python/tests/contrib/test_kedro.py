"""Real `kedro run` of a small project, with each runner, in one process and in many."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("kedro")

from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline, node

import vineyard
from vineyard.contrib.kedro import VineyardDataset
from vineyard.contrib.kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

RUNNERS = ["SequentialRunner", "ThreadRunner", "ParallelRunner"]

PIPELINE = """
    import os
    from pathlib import Path

    import numpy as np
    from kedro.pipeline import Pipeline, node

    def note(what):
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(what + "\\n")

    def numbers(count):
        note("numbers")
        return np.arange(count)

    def squares(numbers):
        note("squares")
        numbers += 0  # an input can be written into
        return numbers**2

    def halves(numbers):
        note("halves")
        return {"halves": numbers / 2}

    def total(squares, halves):
        note("total")
        return int(squares.sum() + halves["halves"].sum())

    def register_pipelines():
        return {"__default__": Pipeline([
            node(numbers, "params:count", "numbers", name="numbers"),
            node(squares, "numbers", "squares", name="squares"),
            node(halves, "numbers", "halves", name="halves"),
            node(total, ["squares", "halves"], "total", name="total"),
        ])}
"""


TOTAL = sum(i**2 + i / 2 for i in range(1000))


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volume = folder / "volume"
        self.volume.mkdir()
        self.calls = folder / "calls"
        self.write(
            "pyproject.toml",
            """
            [tool.kedro]
            package_name = "tiny"
            project_name = "tiny"
            kedro_init_version = "1.7.0"
            source_dir = "src"
        """,
        )
        self.write("src/tiny/__init__.py", "")
        self.write("src/tiny/settings.py", "")
        self.write("src/tiny/pipeline_registry.py", PIPELINE)
        self.write("conf/base/parameters.yml", "count: 1000")
        self.write(
            "conf/base/catalog.yml",
            """
            total:
              type: vineyard.contrib.kedro.VineyardDataset
              name: total
        """,
        )
        (folder / "conf/local").mkdir()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def kedro(self, runner: str, *arguments: str, run: str | None = None, fails: bool = False) -> str:
        self.calls.write_text("")
        environment = {
            **os.environ,
            "KEDRO_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "VINEYARD_VOLUME": str(self.volume),
            "CALLS": str(self.calls),
            "COLUMNS": "500",
        }
        environment.pop("VINEYARD_RUN", None)
        if run is not None:
            environment["VINEYARD_RUN"] = run
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "kedro",
                "run",
                "--runner",
                f"vineyard.contrib.kedro.runner.{runner}",
                *arguments,
            ],
            cwd=self.folder,
            env=environment,
            text=True,
            timeout=300,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert (done.returncode != 0) is fails, done.stdout
        return done.stdout

    def ran(self) -> list[str]:
        return sorted(self.calls.read_text().split())

    def names(self) -> list[str]:
        return sorted(vineyard.open(str(self.volume)).names())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_run_leaves_only_what_the_catalog_names(project, runner):
    log = project.kedro(runner)
    assert project.ran() == ["halves", "numbers", "squares", "total"]
    assert vineyard.open(str(project.volume)).get("total") == TOTAL
    assert project.names() == ["total"]
    assert "Completed 4 out of 4 tasks" in log


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_parallel_workers_share_datasets_however_they_start(project, monkeypatch, method):
    monkeypatch.setenv("KEDRO_MP_CONTEXT", method)
    project.kedro("ParallelRunner", "--runner-params", "max_workers=2")
    assert vineyard.open(str(project.volume)).get("total") == TOTAL
    assert project.names() == ["total"]


def test_a_process_per_node_finds_what_the_others_made(project):
    for name in ["numbers", "squares", "halves", "total"]:
        project.kedro("SequentialRunner", "--nodes", name, run="w17")
        assert project.ran() == [name]
    assert vineyard.open(str(project.volume)).get("total") == TOTAL
    assert project.names() == ["total", "w17/halves", "w17/numbers", "w17/squares"]


def test_an_input_that_nobody_made_is_refused_before_anything_runs(project):
    log = project.kedro("SequentialRunner", "--nodes", "total,squares", run="w18", fails=True)
    assert project.ran() == []
    assert "w18/halves" in log
    assert "VINEYARD_RUN" in log


def test_a_process_can_wait_for_an_input(project):
    environment = {
        **os.environ,
        "VINEYARD_VOLUME": str(project.volume),
        "VINEYARD_RUN": "w19",
        "CALLS": str(project.calls),
    }
    environment |= {"KEDRO_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    command = [
        sys.executable,
        "-m",
        "kedro",
        "run",
        "--runner",
        "vineyard.contrib.kedro.runner.SequentialRunner",
    ]
    with subprocess.Popen(
        [*command, "--nodes", "squares", "--runner-params", "wait=120"],
        cwd=project.folder,
        env=environment,
    ) as waiting:
        subprocess.run(
            [*command, "--nodes", "numbers"],
            cwd=project.folder,
            env=environment,
            check=True,
            timeout=120,
        )
        assert waiting.wait(120) == 0
    assert project.names() == ["w19/numbers", "w19/squares"]


def test_two_runs_of_one_project_do_not_meet(project):
    project.kedro("SequentialRunner", "--nodes", "numbers", run="a")
    project.kedro("SequentialRunner", "--nodes", "numbers", "--params", "count=3", run="b")
    volume = vineyard.open(str(project.volume))
    assert len(volume.get("a/numbers")) == 1000
    assert len(volume.get("b/numbers")) == 3


def test_kept_objects_spare_the_nodes_that_made_them(project):
    keep = ("--runner-params", "keep=true")
    project.kedro("SequentialRunner", *keep, run="night")
    assert project.names() == ["night/halves", "night/numbers", "night/squares", "total"]

    project.kedro("SequentialRunner", *keep, "--only-missing-outputs", run="night")
    assert project.ran() == []

    volume = vineyard.open(str(project.volume))
    volume.rm("night/halves")
    volume.rm("total")
    project.kedro("SequentialRunner", *keep, "--only-missing-outputs", run="night")
    assert project.ran() == ["halves", "total"]
    assert volume.get("total") == TOTAL


def test_a_failed_run_without_a_name_leaves_nothing(project):
    project.write("src/tiny/pipeline_registry.py", PIPELINE.replace("return int(", "raise OSError('no') #"))
    project.kedro("SequentialRunner", fails=True)
    assert project.ran() == ["halves", "numbers", "squares", "total"]
    assert project.names() == []


def test_a_failed_run_with_a_name_resumes(project):
    project.write("src/tiny/pipeline_registry.py", PIPELINE.replace("return int(", "raise OSError('no') #"))
    log = project.kedro("SequentialRunner", "--runner-params", "keep=true", run="w20", fails=True)
    assert '--from-nodes "total"' in log
    project.write("src/tiny/pipeline_registry.py", PIPELINE)
    project.kedro("SequentialRunner", "--from-nodes", "total", run="w20")
    assert project.ran() == ["total"]
    assert vineyard.open(str(project.volume)).get("total") == TOTAL


def make() -> list[int]:
    return [1, 2]


def double(values: list[int]) -> list[int]:
    return values * 2


@pytest.mark.parametrize("kind", [SequentialRunner, ThreadRunner])
def test_a_result_that_the_catalog_does_not_name_can_be_loaded_after_the_run(tmp_path, kind):
    pipeline = Pipeline([node(make, None, "made", name="make"), node(double, "made", "doubled", name="double")])
    runner = kind(volume=str(tmp_path), run="notebook")
    result = runner.run(pipeline, DataCatalog())
    assert result["doubled"].load() == [1, 2, 1, 2]
    assert sorted(vineyard.open(str(tmp_path)).names()) == ["notebook/doubled"]


def test_a_catalog_can_be_used_for_a_second_run(tmp_path):
    pipeline = Pipeline([node(make, None, "made", name="make")])
    runner, catalog = SequentialRunner(volume=str(tmp_path)), DataCatalog()
    first = runner.run(pipeline, catalog, run_id="first")["made"]
    second = runner.run(pipeline, catalog, run_id="second")["made"]
    assert (first.name, second.name) == ("first/made", "second/made")


def test_transcoded_names_are_one_object(tmp_path):
    pipeline = Pipeline(
        [
            node(make, None, "made@pandas", name="make"),
            node(double, "made@spark", "doubled", name="double"),
        ]
    )
    runner = SequentialRunner(volume=str(tmp_path), run="t")
    assert runner.run(pipeline, DataCatalog())["doubled"].load() == [1, 2, 1, 2]
    assert sorted(vineyard.open(str(tmp_path)).names()) == ["t/doubled"]


def test_what_the_catalog_names_is_left_to_the_catalog(tmp_path):
    from kedro.io import MemoryDataset

    catalog = DataCatalog({"made": MemoryDataset()})
    pipeline = Pipeline([node(make, None, "made", name="make"), node(double, "made", "doubled", name="double")])
    SequentialRunner(volume=str(tmp_path), run="m").run(pipeline, catalog)
    assert sorted(vineyard.open(str(tmp_path)).names()) == ["m/doubled"]


def test_the_parallel_runner_is_kedros_own_to_kedro():
    from kedro import runner as kedro_runner

    assert issubclass(ParallelRunner, kedro_runner.ParallelRunner)


class TestDataset:
    def test_loads_what_it_saved(self, tmp_path):
        dataset = VineyardDataset("a/b", volume=str(tmp_path))
        assert not dataset.exists()
        dataset.save({"x": [1]})
        assert dataset.exists()
        assert dataset.load() == {"x": [1]}

    def test_is_pickled_without_its_connection(self, tmp_path):
        dataset = VineyardDataset("n", volume=str(tmp_path))
        dataset.save(5)
        assert pickle.loads(pickle.dumps(dataset)).load() == 5

    def test_an_absent_object_says_what_to_do(self, tmp_path):
        with pytest.raises(DatasetError, match="VINEYARD_RUN"):
            VineyardDataset("n", run="r", volume=str(tmp_path)).load()
        with pytest.raises(DatasetError, match="vineyard ls"):
            VineyardDataset("n", volume=str(tmp_path)).load()

    def test_release_removes_only_what_is_not_to_be_kept(self, tmp_path):
        for keep in (True, False):
            dataset = VineyardDataset("n", volume=str(tmp_path), keep=keep)
            dataset.save(1)
            dataset.release()
            assert dataset.exists() is keep
            assert dataset._EPHEMERAL is not keep
            dataset.release()

    def test_comes_from_a_catalog_entry(self, tmp_path):
        config = {
            "n": {
                "type": "vineyard.contrib.kedro.VineyardDataset",
                "name": "n",
                "volume": str(tmp_path),
                "mode": "readonly",
            }
        }
        catalog = DataCatalog.from_config(config)
        catalog.save("n", 3)
        assert catalog.load("n") == 3
        assert catalog.to_config()[0]["n"]["name"] == "n"
