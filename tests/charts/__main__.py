"""Write what is generated from the chart: README's table, the schema's descriptions, the golden files.

Run it after a change of the chart and read the diff: `python -m tests.charts`
"""

from tests.charts.docs import README, SCHEMA, readme, schema_text
from tests.charts.helm import GOLDEN, GOLDEN_SETS, template_text, value_sets

README.write_text(readme(), encoding="utf-8")
SCHEMA.write_text(schema_text(), encoding="utf-8")
GOLDEN.mkdir(exist_ok=True)
for name in GOLDEN_SETS:
    (GOLDEN / f"{name}.yaml").write_text(template_text(value_sets()[name]), encoding="utf-8")
