"""A few of the mutations of `make fuzz`: whatever is done to a file, it is what it says or one error of ours."""

from pathlib import Path

import pytest

from fuzz import fuzz


@pytest.mark.timeout(600)
def test_mutated_files_load_as_what_they_say_or_are_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    found, failures = fuzz(400, seed=7, processes=1, folder=tmp_path)  # fixed: CI repeats one set, make fuzz others
    assert not failures, "\n".join(failures)
    assert sum(found.values()) == 400
    outcomes = {outcome for _, outcome in found}
    assert {"refused", "equal"} <= outcomes
