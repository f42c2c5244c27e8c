"""What tests.mutation changes: one word each time, of code and not of annotations or messages, the same every time."""

from tests.mutation import changes, chosen

TEXT = '''
def f(x: int = 2, *, σ: float) -> "int":
    """Not 3 of these."""
    if not x < 1 and (x) - 1 in xs[i:]:
        raise ValueError(f"{x + 1}")
    return max(x, True)
'''


def test_every_kind_of_word_is_changed_and_nothing_else():
    found = {(change.line, change.old, change.new) for change in changes("f.py", TEXT.encode())}
    assert found == {
        (2, "2", "3"), (2, "2", "1"), (4, "not", ""), (4, "<", "<="), (4, "<", ">"), (4, "1", "2"), (4, "1", "0"),
        (4, "and", "or"), (4, "-", "+"), (4, "in", "not in"), (4, "", " + 1"), (6, "max", "min"), (6, "True", "False"),
    }


def test_a_seed_gives_the_same_changes_and_a_longer_run_goes_on_behind_a_shorter_one(tmp_path):
    (tmp_path / "starflow_world").mkdir()
    (tmp_path / "starflow_world" / "noise.py").write_text(TEXT)
    assert chosen(9, 0, tmp_path)[:5] == chosen(5, 0, tmp_path)
    assert chosen(9, 0, tmp_path) != chosen(9, 1, tmp_path)
