"""What is said of growing tables and of old snapshots, from the numbers alone."""

from benchmarks import growth, measures
from benchmarks.figures import Figures
from benchmarks.snapshot import at_the_end
from benchmarks.surroundings import ALONE, Surroundings


def test_the_end_of_a_held_snapshot_is_the_last_quarter_of_the_turns() -> None:
    rates = [(float(minute), 100.0 - minute) for minute in range(8)]

    assert at_the_end(rates) == [94.0, 93.0]
    assert at_the_end(rates[:1]) == [100.0]


def test_every_surrounding_has_a_database_of_its_own() -> None:
    all_of_them = [ALONE, Surroundings(finished=5), Surroundings(finished=10), Surroundings(waiting=5)]

    assert len({one.database for one in all_of_them}) == len({one.name for one in all_of_them}) == 4


def test_the_curves_run_from_empty_tables_to_full_ones_by_medians() -> None:
    full, found = Surroundings(finished=500), Figures()
    names = {what: measures.beside(what.name, has_goals=True) for what in (ALONE, full)}
    for what, rates in ((ALONE, (90.0, 100.0, 200.0)), (full, (95.0,))):
        for rate in rates:
            found.add(names[what].drain, rate)
        found.add(names[what].latency["p50"], 3.0)

    growth.add_curves(found, names)

    assert found.series == {
        growth.DRAIN_CURVE: [(0, 100.0), (500, 95.0)],
        growth.LATENCY_CURVE: [(0, 3.0), (500, 3.0)],
    }


def test_flat_means_no_slower_and_faster_is_no_fault() -> None:
    beside = measures.beside("beside others", has_goals=True)
    drain, latency = beside.drain_ratio.goal, beside.latency_ratio.goal

    assert drain is not None
    assert latency is not None
    assert (drain.is_reached(1.3), drain.is_reached(0.89)) == (True, False)
    assert (latency.is_reached(0.7), latency.is_reached(1.11)) == (True, False)
