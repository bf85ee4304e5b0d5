"""Tables with every value checked, models without strangers' code, data sets found or explained."""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from peira.data import (
    DataError,
    MissingData,
    fingerprint,
    load_model,
    locate,
    read_table,
    save_model,
    sources,
    write_table,
)
from peira.engine.errors import DiskError


def test_a_table_with_kinds(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id;value;name\n1;2.5;a\n2;;b c\n")
    table = read_table(path, columns={"id": "int", "value": "float"})
    assert table["id"].tolist() == [1, 2]
    assert table["value"].iloc[0] == 2.5 and np.isnan(table["value"].iloc[1])
    assert table["name"].tolist() == ["a", "b c"]


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "t.csv"
    write_table(path, pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert path.read_text() == "a,b\n1,x\n2,y\n"
    with pytest.raises(AttributeError):
        write_table(path, None)
    assert path.read_text() == "a,b\n1,x\n2,y\n"
    assert [file.name for file in path.parent.iterdir()] == ["t.csv"]


def test_other_columns_keep_words_and_gain_numbers(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\tx\n3\t007\n")
    table = read_table(path, rename={"a": "count"})
    assert table["count"].tolist() == [1, 3] and table["b"].tolist() == ["x", "007"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,value\n1,2\n2,x\n", "row 3, column 'value': wrong value; got 'x'; expected a number"),
        ("id,value\n1.5,2\n", "row 2, column 'id': wrong value; got '1.5'; expected a whole"),
        ("id,value\n,2\n", "row 2, column 'id'"),
        ("id,valeu\n1,2\n", "no column 'value'; did you mean 'valeu'?"),
        ("id,value\n", "no rows below the header"),
        ("id,value\n\n1,2\n\n2,x\n", "row 5, column 'value': wrong value; got 'x'"),
        ("value,id\n1,2\n3\n", "row 3, column 'id': wrong value; got ''"),
        ("id,value\n1,2,3\n4,5,6\n", "Expected 2 fields in line 2, saw 3"),
        ("id,value,id\n1,2,3\n", "column 'id' is there twice"),
        ("id,value\n1,inf\n", "row 2, column 'value': wrong value; got 'inf'"),
        ("id,value\ninf,1\n", "row 2, column 'id': wrong value; got 'inf'"),
        ("id,value\n9223372036854775808,1\n", "row 2, column 'id': wrong value"),
    ],
)
def test_a_broken_table_says_where(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_table(path, columns={"id": "int", "value": "float"})
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_blank_rows_are_left_out_and_a_rename_can_collide(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,value\n\n1,2\n , \n9007199254740993,4\n\n")
    table = read_table(path, columns={"id": "int"})
    assert table["id"].tolist() == [1, 2**53 + 1] and table.index.tolist() == [0, 1]
    with pytest.raises(DataError, match="column 'value' is there twice"):
        read_table(path, rename={"id": "value"})


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(DataError, match="not a readable table"):
        read_table(empty)


def test_a_model_comes_back_with_its_predictions(tmp_path):
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    model = HistGradientBoostingRegressor(max_iter=5).fit(x, x[:, 0])
    save_model(tmp_path / "m.skops", model)
    assert np.array_equal(load_model(tmp_path / "m.skops").predict(x), model.predict(x))


def test_a_model_of_unknown_origin_is_refused(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="not a model saved by Peira"):
        load_model(path)
    with pytest.raises(DataError, match="no such file"):
        load_model(tmp_path / "none")


def test_a_model_file_cannot_call_our_functions(tmp_path):
    """A file may name any constructor; only classes of estimators are ever called."""
    victim = tmp_path / "victim"
    arguments, nothing = (_schema(tmp_path, value) for value in ((str(victim), "pwned"), {}))
    for module, name in (("peira.engine.files", "write_text"), ("peira.engine.store", "Store")):
        schema = {
            **arguments, "__class__": name, "__module__": module, "__loader__": "LossNode",
            "__id__": 1, "__reduce__": {"args": arguments}, "content": nothing,
        }  # fmt: skip
        with zipfile.ZipFile(tmp_path / "m.skops", "w") as archive:
            archive.writestr("schema.json", json.dumps(schema))
        with pytest.raises(DataError, match=f"unknown origin: {module}.{name}"):
            load_model(tmp_path / "m.skops")
        assert not victim.exists()


def _schema(folder, value):
    import skops.io

    skops.io.dump(value, folder / "part.skops")
    with zipfile.ZipFile(folder / "part.skops") as archive:
        return json.loads(archive.read("schema.json"))


def test_data_is_found_where_the_person_says(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("x")
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    assert locate("mine", "a.txt") == tmp_path / "mine/a.txt"
    with pytest.raises(DataError, match="unknown data set 'mein'"):
        locate("mein", "a.txt")


def test_missing_data_is_one_line_with_both_remedies(monkeypatch, home):
    monkeypatch.delenv("PEIRA_DATA", raising=False)
    entry = {"base": "http://127.0.0.1:9/", "files": {"a.txt": {"sha256": "0" * 64}}}
    monkeypatch.setattr(sources, "catalogue", lambda: {"toy": entry})
    with pytest.raises(MissingData) as caught:
        locate("toy", "a.txt")
    text = str(caught.value)
    assert "connect to the network, or set PEIRA_DATA" in text and "\n" not in text
    assert "toy/a.txt" in text and "http://127.0.0.1:9/a.txt" in text


def test_a_disk_that_is_full_is_no_missing_data(monkeypatch, home):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.delenv("PEIRA_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", full)
    with pytest.raises(DiskError, match="No space left on device; free space"):
        locate("scholp", "email-Enron/email-Enron-times.txt.gz")


def test_a_fetched_file_is_checked(monkeypatch, home, tmp_path):
    import hashlib
    import http.server
    import threading

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    (tmp_path / "a.txt").write_text("hello")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    good = hashlib.sha256(b"hello").hexdigest()
    monkeypatch.delenv("PEIRA_DATA", raising=False)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/c.txt").write_text("hello")
    files = {
        "a.txt": {"sha256": good},
        "sub/c.txt": {"sha256": good},
        "b.txt": {"sha256": "0" * 64, "url": base + "a.txt"},
    }
    monkeypatch.setattr(sources, "catalogue", lambda: {"toy": {"base": base, "files": files}})
    try:
        path = locate("toy", "a.txt")
        assert path.read_text() == "hello" and home in path.parents
        assert locate("toy", "sub/c.txt").read_text() == "hello"
        with pytest.raises(MissingData, match="wrong checksum"):
            locate("toy", "b.txt")
    finally:
        server.shutdown()
    assert locate("toy", "a.txt") == path


def test_the_catalogue_of_sources_is_complete():
    for dataset, entry in sources.catalogue().items():
        assert entry["files"], dataset
        for name, file in entry["files"].items():
            assert len(file.get("sha256", "0" * 64)) == 64, name
            # What has no checksum is not fetched; its address is for a person to read.
            safe = "https://" if "sha256" in file else "http"
            assert (file.get("url") or entry["base"]).startswith(safe), name


def test_fingerprint_is_of_the_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    assert fingerprint(a) != fingerprint(b) and len(fingerprint([a, b])) == 16
    assert fingerprint([a, b]) != fingerprint([b, a])
    before = fingerprint(a)
    a.write_text("3")
    assert fingerprint(a) != before


def test_the_real_files_are_those_of_the_catalogue(real_data):
    import hashlib

    checked = 0
    for dataset, entry in sources.catalogue().items():
        for name, file in entry["files"].items():
            path = real_data / dataset / name
            if path.is_file() and "sha256" in file:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"], path
                checked += 1
    assert checked


def test_a_packed_file_is_unpacked_and_checked(monkeypatch, home, tmp_path):
    import gzip
    import hashlib

    import pooch

    monkeypatch.delenv("PEIRA_DATA", raising=False)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(b"hello"))
    # The download itself is pooch's; what is ours is the unpacking and the check.
    monkeypatch.setattr(
        pooch.HTTPDownloader,
        "__call__",
        lambda self, url, output, *_: Path(output).write_bytes(packed.read_bytes()),
    )
    good = hashlib.sha256(b"hello").hexdigest()
    url = "https://example.org/a.txt.gz"
    files = {"a.txt": {"sha256": good, "url": url}, "b.txt": {"sha256": "0" * 64, "url": url}}
    monkeypatch.setattr(sources, "catalogue", lambda: {"toy": {"files": files}})
    assert locate("toy", "a.txt").read_text() == "hello"
    with pytest.raises(MissingData, match="wrong checksum"):
        locate("toy", "b.txt")


def test_what_cannot_be_checked_is_not_fetched(monkeypatch, home):
    monkeypatch.delenv("PEIRA_DATA", raising=False)
    entry = {"base": "https://example.org/", "files": {"a.txt": {}}}
    monkeypatch.setattr(sources, "catalogue", lambda: {"toy": entry})
    with pytest.raises(MissingData, match="fetch it yourself and set PEIRA_DATA"):
        locate("toy", "a.txt")
