"""What reports share: goals, numbers as text, tables, values that JSON can hold."""

import json
import math
from dataclasses import dataclass

from starflow_world.io.reports import Goal, csv_text, goal_table, json_safe, markdown_table, number, percent


@dataclass
class Pair:
    one: float
    two: tuple[float, ...]


def test_a_goal_is_met_within_its_bounds_and_unknown_without_a_value() -> None:
    assert Goal("few", 2.0, most=3.0).met
    assert not Goal("many", 2.0, least=3.0).met
    assert Goal("between", 2.0, 1, 3).met
    assert Goal("unknown", math.nan, least=3.0).met is None


def test_floats_that_json_cannot_hold_are_replaced() -> None:
    safe = json_safe({"a": math.nan, "b": [math.inf, -math.inf, 1.5, 2, "x"], "c": Pair(math.nan, (1.0,))})
    assert safe == {"a": None, "b": [1e300, -1e300, 1.5, 2, "x"], "c": {"one": None, "two": [1.0]}}
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe


def test_goals_are_shown_with_their_bounds_units_and_whether_they_are_met() -> None:
    goals = [Goal("a", 0.5, 0.25, 2, note="why"), Goal("b", 7, most=3, unit="MB"), Goal("c", math.nan, least=1)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in
            goal_table(json.loads(json.dumps([goal.as_json() for goal in goals]))).splitlines()]
    assert rows[2:] == [["a", "0.500", ">= 0.25, <= 2", "yes", "why"], ["b", "7 MB", "<= 3 MB", "**no**", ""],
                        ["c", "", ">= 1", "not measured", ""]]


def test_numbers_have_three_digits_and_four_near_0_and_1() -> None:
    values = (0, 12.345, 0.5, 0.998765, 0.00123, math.nan, None, math.inf, 1e300)
    assert [number(value) for value in values] == ["0", "12.3", "0.500", "0.9988", "0.0012", "", "", "never", "never"]
    assert [percent(share) for share in (0.1234, math.nan, None)] == ["12.3 %", "", ""]


def test_tables_in_markdown_line_up_and_csv_has_a_header() -> None:
    assert markdown_table(["a", "bb"], [["long", "1"]]) == "| a    | bb |\n| ---- | -- |\n| long | 1  |"
    assert csv_text(("a", "b"), [(1, "x,y")]) == 'a,b\n1,"x,y"\n'
