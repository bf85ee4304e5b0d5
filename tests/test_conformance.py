"""Every built-in paper holds to what every paper must hold to."""

from __future__ import annotations

import pytest

from peira.engine.catalogue import papers
from peira.engine.conformance import CHECKS


# One worker for one paper, so that its smoke study is measured once for all checks.
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "paper",
    [pytest.param(p, id=p.slug, marks=pytest.mark.xdist_group(p.slug)) for p in papers()],
)
def test_conforms(paper, check, tmp_path, home):
    check(paper, tmp_path)
