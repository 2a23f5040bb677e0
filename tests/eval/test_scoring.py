import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import DataError
from vistoken.eval.scoring import answer_prior, bootstrap_mean, exact_match, prior_hits


def test_case_spaces_and_a_full_stop_do_not_change_an_answer():
    assert exact_match(" A red  Car. ", "a red car")
    assert not exact_match("a red car", "red car")


def test_the_prior_is_the_most_common_answer_of_each_kind():
    seen = [("count", "two"), ("count", "One"), ("count", "one."), ("colour", "b"), ("colour", "a")]
    prior = answer_prior(seen)
    assert prior == {"count": "one", "colour": "a"}
    assert prior_hits(prior, [("count", "one"), ("count", "two"), ("colour", "A")]) == [1, 0, 1]


def test_a_kind_without_training_questions_is_named():
    with pytest.raises(DataError, match="'reading'"):
        prior_hits({"count": "one"}, [("reading", "neat")])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_of_its_draws(rows):
    values, clusters = zip(*rows, strict=True)
    estimate = bootstrap_mean(values, clusters, draws=200)
    assert 0 <= estimate.low <= estimate.high <= 1
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert estimate.n == len(values)


def test_questions_about_one_picture_count_as_one_draw():
    values = [1.0] * 10 + [0.0] * 10
    alone = bootstrap_mean(values, range(20))
    together = bootstrap_mean(values, [0] * 10 + [1] * 10)
    assert (together.low, together.high) == (0, 1)
    assert 0.1 < alone.low < alone.high < 0.9


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_mean([], [])
