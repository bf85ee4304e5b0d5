"""Arrays, feature tables and weights in files: what is read, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from peira.data import (
    DataError,
    load_weights,
    own_module,
    read_features,
    read_npy,
    read_npz,
    read_record,
    read_tensors,
    write_record,
    write_tensors,
)


def test_tables_become_features_and_a_target(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,kind,b\n1,cat,2.5\n-3,dog,4\n")
    values, kinds, names = read_features(path, "kind", "str")
    assert values.tolist() == [[1, 2.5], [-3, 4]]
    assert kinds.tolist() == ["cat", "dog"] and names == ["a", "b"]
    path.write_text("a\tb\n1\t2\n3\t4\n")
    values, target, names = read_features(path.rename(tmp_path / "t.tsv"), "b")
    assert values.tolist() == [[1], [3]] and target.tolist() == [2, 4] and names == ["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n,4\n", "row 3, column 'a': missing value; expected a number"),
        ("a,b\n1,2\n3,\n", "row 3, column 'b': missing value; expected a number"),
        ("a,b\n1,2\ninf,4\n", "row 3, column 'a': wrong value; got 'inf'; expected a number"),
        ("b\n1\n", "no columns beside 'b'"),
        ("a,c\n1,2\n", "no column 'b'"),
    ],
)
def test_gaps_in_tables_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_features(tmp_path / "t.csv", "b")


def test_arrays_are_read_without_unpickling(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(2), y=np.arange(2))
    assert read_npz(tmp_path / "a.npz", ("x", "y"))["x"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(DataError, match=r"no array 'z'; got \['x', 'y'\]; expected arrays x, z"):
        read_npz(tmp_path / "a.npz", ("x", "z"))
    np.savez(tmp_path / "b.npz", x=np.array([{}], dtype=object))
    (tmp_path / "c.npz").write_bytes(b"PK\3\4 cut")
    for name in ("b", "c"):
        with pytest.raises(DataError, match=r"not a readable \.npz file"):
            read_npz(tmp_path / f"{name}.npz")
    np.save(tmp_path / "d.npy", np.arange(3))
    assert read_npy(tmp_path / "d.npy").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="several arrays"):
        read_npy(tmp_path / "a.npz")
    for read in (read_npz, read_npy, read_tensors):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / "none")


def test_weights_make_a_round_trip_into_a_person_s_network(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from torch import nn\ndef net(): return nn.Linear(3, 2)\nboom = lambda: 1 / 0\n"
    )
    network = own_module(f"{own}:net")
    assert isinstance(network, nn.Linear)
    # A transposed view is written as what it shows.
    state = {"weight": torch.arange(6.0).view(3, 2).T, "bias": torch.ones(2)}
    write_tensors(tmp_path / "w.safetensors", state, {"epoch": "7"})
    load_weights(tmp_path / "w.safetensors", network)
    torch.testing.assert_close(dict(network.state_dict()), state)
    assert read_tensors(tmp_path / "w.safetensors")[1] == {"epoch": "7"}
    with pytest.raises(DataError, match="weights of another network"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(4, 2))
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        load_weights(own, network)
    for reference, said in (
        (f"{own}", "expected FILE.py:FUNCTION"),
        (f"{own}:none", "no function 'none'"),
        (f"{own}:boom", "boom.. failed: ZeroDivisionError"),
    ):
        with pytest.raises(DataError, match=said):
            own_module(reference)


def test_records_keep_tensors_and_settings_and_know_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_record(path, "test model", {"w": torch.eye(2)}, {"sizes": [1, 2], "name": "x"})
    tensors, about = read_record(path, "test model")
    assert torch.equal(tensors["w"], torch.eye(2))
    assert about == {"sizes": [1, 2], "name": "x"}
    with pytest.raises(DataError, match=r"not a ticket.*test model"):
        read_record(path, "ticket")
