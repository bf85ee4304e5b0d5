"""list, show, doctor and use as a person types them."""

from __future__ import annotations

import json


def test_list_finds_by_field_and_words(peira):
    everything = json.loads(peira("list", "--json").stdout)
    slugs = [entry["slug"] for entry in everything]
    assert "tiny-coin" in slugs and "grokking-tickets" in slugs and slugs == sorted(slugs)
    # Words are looked for in claims as well, in any case.
    found = json.loads(peira("list", "HEADS", "ten", "--json").stdout)
    assert [entry["slug"] for entry in found] == ["tiny-coin"]
    graphs = json.loads(peira("list", "--field", "graphs", "--json").stdout)
    assert graphs and {entry["field"] for entry in graphs} == {"graphs"}
    line = next(line for line in peira("list").stdout.splitlines() if "tiny-coin" in line)
    assert "not run" in line and "count how often" in line


def test_a_broken_card_does_not_hide_the_others(peira, plugin):
    card = next(plugin.rglob("coin/card.toml"))
    good = card.read_text()
    card.write_text(good.replace("number = 900", "number = 'x'"))
    try:
        listed = peira("list")
        shown = peira("show", "tiny-coin")
    finally:
        card.write_text(good)
    assert listed.returncode == 0 and "grokking-tickets" in listed.stdout
    assert "number: Input should be a valid integer" in listed.stderr
    assert shown.returncode == 2 and shown.stderr.count("\n") == 1


def test_a_card_and_a_study_that_disagree(peira, plugin):
    card = next(plugin.rglob("coin/card.toml"))
    good = card.read_text()
    card.write_text(good[: good.rindex("[[claims]]")])
    try:
        finished = peira("run", "tiny-coin", "--scale", "smoke")
    finally:
        card.write_text(good)
    assert finished.returncode == 2
    assert "card.toml has no claim 'C2'" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_show_prints_claims_and_example(peira):
    page = peira("show", "tiny-coin").stdout
    for words in ("A. Tester", "10 points", "0.2 share", "not run", "heads(0.7, 100"):
        assert words in page
    data = json.loads(peira("show", "tiny-coin", "--json").stdout)
    assert data["claims"][0]["threshold"] == 0.1 and data["last_run"] is None


def test_use_mounts_typed_functions(peira):
    assert float(peira("use", "tiny-coin", "toss", "--bias", "1.0").stdout) == 1.0
    help_ = peira("use", "tiny-coin", "--help").stdout
    assert "toss" in help_ and "Toss a coin" in help_
    assert "tiny-coin" in peira("use", "--help").stdout
    # A ValueError of the method is a person's input here, so it is one line as well.
    refused = peira("use", "tiny-coin", "toss", "--tosses", "-1")
    assert refused.returncode == 2 and refused.stderr.startswith("peira: negative dimensions")
    assert refused.stderr.count("\n") == 1
    warned = peira("use", "tiny-coin", "toss", "--tosses", "1")
    assert warned.stderr == "peira: warning: one toss says little\n"
    assert warned.stdout.strip() in ("0.0", "1.0")
    wrong = peira("use", "tiny-coin", "toss", "--bias", "x")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_doctor_tells_what_is_there(peira):
    data = json.loads(peira("doctor", "--json").stdout)
    assert data["store"]["reachable"] and data["libraries"]["torch"]
    assert data["extras"]["graphs"]["missing"] == []
    assert {"slug": "tiny-coin", "missing": [], "problem": ""} in data["papers"]
    bad = peira("doctor", "--store", "http://127.0.0.1:9")
    assert bad.returncode == 1 and "cannot be used" in bad.stdout


def test_a_missing_extra_is_said_with_its_command(peira, plugin):
    study = next(plugin.rglob("coin/study.py"))
    good = study.read_text()
    study.write_text("import a_library_nobody_has\n" + good)
    try:
        finished = peira("run", "tiny-coin", "--scale", "smoke")
    finally:
        study.write_text(good)
    assert finished.returncode == 2
    assert "needs 'a_library_nobody_has'" in finished.stderr and "pip install" in finished.stderr


def test_missing_data_is_one_line_with_both_remedies(peira, monkeypatch):
    monkeypatch.delenv("PEIRA_DATA", raising=False)
    nowhere = "http://127.0.0.1:9"
    finished = peira(
        "run", "simplicial-closure", "--json", https_proxy=nowhere, HTTPS_PROXY=nowhere
    )
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert "connect to the network, or set PEIRA_DATA" in finished.stderr
