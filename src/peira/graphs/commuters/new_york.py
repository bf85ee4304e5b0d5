"""The census tracts of New York State and who commutes between them (Simini et al. 2021)."""

from __future__ import annotations

import json
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from peira.data import DataError, locate
from peira.graphs.commuters.table import ODTable

DATASET = "deepgravity-ny"
FILES = ("features.csv", "oa_gdf.csv.gz", "flows_oa.csv.zip")


def new_york_files() -> list[Path]:
    """The three official files; raises `MissingData` where they are neither here nor fetched."""
    return [locate(DATASET, name) for name in FILES]


@cache
def load_new_york() -> ODTable:
    """5,367 tracts with 18 OpenStreetMap indicators each, and 475,730 flows of commuters.

    Flows of tracts without indicators, flows within a tract and zeros are left out. The
    indicators have no names in the file; they are called osm_00 to osm_17 by their columns.

    Raises:
        MissingData: the files are neither at hand nor to be fetched.
        DataError: a file is not in the published format.
    """
    features_path, centroids_path, flows_path = new_york_files()
    features = _read(features_path, {"GEOID": str})
    centroids = _read(centroids_path, {"geo_code": str})
    with zipfile.ZipFile(flows_path) as archive, archive.open(archive.namelist()[0]) as member:
        flows = pd.read_csv(member, dtype={"residence": str, "workplace": str})
    named = {str(k): f"osm_{k:02d}" for k in range(18)}
    try:
        points = np.array([json.loads(text) for text in centroids["centroid"]], dtype=float)
        table = features.rename(columns={"GEOID": "id", **named})[["id", *named.values()]]
        places = table.merge(
            pd.DataFrame({"id": centroids["geo_code"], "lon": points[:, 0], "lat": points[:, 1]})
        )
        known = flows["residence"].isin(places["id"]) & flows["workplace"].isin(places["id"])
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"not the published format ({error})", path=features_path.parent) from error
    return ODTable(
        places, flows[known], origin="residence", destination="workplace", flow="commuters"
    )


def _read(path: Path, kinds: dict[str, type]) -> pd.DataFrame:
    return pd.read_csv(path, index_col=0, dtype=kinds)
