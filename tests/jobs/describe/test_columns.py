"""Which columns of labels a describe stage looks at where its spec does not say."""

from __future__ import annotations

from cluster.pipeline import RunReport
from tests.jobs.describe.place import Place


def test_a_list_of_values_of_the_demo_world_is_looked_for_in_its_columns(prepared: Place, report: RunReport) -> None:
    """Words are also shapes and colours, so that all columns together would not say which is meant."""
    fields = {"methods": ["auroc"], "concepts": ["red", "circle"], "units": ["neurons"], "tau": 2}
    (plan,) = prepared.plans({"acts"}, **fields)
    assert plan.stage.params["labels_from"] == ["shape", "colour"]
    (given,) = prepared.plans({"acts"}, **fields, labels_from=["colour"])
    assert given.stage.params["labels_from"] == ["colour"]
