"""A study's trials as a saved view of MLflow's runs page: the best first, with the columns one looks at.

MLflow keeps such a view as a tag of the experiment, in the form its own button "Save as new view" writes. A version of
MLflow that does not know the form shows its usual columns.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence

#: What stands before a view's key in a tag.
TAG = "mlflow.sharedViewState."
#: Columns before those of the searched parameters.
_COLUMNS = ("tags.`akd.status`", "metrics.`trial`", "metrics.`val/accuracy`", "metrics.`epochs`")


def key_of(study: str) -> str:
    """What the address of the runs page calls the view: ``...?viewStateShareKey=KEY``."""
    return f"akd-{study}"


def trials_filter(study: str) -> str:
    """What finds the trials of a study."""
    return f"tags.`akd.kind` = 'trial' and tags.`akd.study` = '{study}'"


def trials_view(study: str, searched: Sequence[str], at_ms: int) -> tuple[str, str]:
    """Key and value of the experiment's tag.

    Args:
        searched: what the searched parameters are called in MLflow.
        at_ms: when the study began, milliseconds since 1970.
    """
    columns = [*_COLUMNS, *(f"params.`{name}`" for name in searched), "tags.`akd.method`"]
    state = {
        "searchFilter": trials_filter(study),
        "orderByKey": "metrics.`val/accuracy`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": f"{study}: trials", "createdAt": at_ms, "updatedAt": at_ms, "state": f"deflate;{packed}"}
    return f"{TAG}{key_of(study)}", json.dumps(view)
