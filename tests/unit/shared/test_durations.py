from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.durations import MAX_DURATION, parse_duration, parse_positive_duration
from kedge.errors import InvalidDurationError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (timedelta(days=2), timedelta(days=2)),
        (0, timedelta()),
        (90, timedelta(seconds=90)),
        (0.25, timedelta(milliseconds=250)),
        ("2 days 12 hours", timedelta(days=2, hours=12)),
        ("2 Days, 12 Hours", timedelta(days=2, hours=12)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("1h 30m, 5s", timedelta(hours=1, minutes=30, seconds=5)),
        ("500ms", timedelta(milliseconds=500)),
        ("1m", timedelta(minutes=1)),
        ("1.5h", timedelta(minutes=90)),
        ("1w", timedelta(weeks=1)),
        (" 10 s ", timedelta(seconds=10)),
        ("0s", timedelta()),
        ("PT1H", timedelta(hours=1)),
        ("P1DT2H3M4.5S", timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
        ("P2W", timedelta(weeks=2)),
        (MAX_DURATION, MAX_DURATION),
    ],
)
def test_every_documented_form_is_understood(written: object, meant: timedelta) -> None:
    assert parse_duration(written, option="timeout") == meant


@pytest.mark.parametrize(
    "refused",
    [
        True,
        None,
        [],
        b"1s",
        -1,
        -0.001,
        timedelta(microseconds=-1),
        1e15,
        -1e15,
        10**400,
        float("nan"),
        float("inf"),
        1e-9,
        timedelta(days=3654),
        timedelta.max,
        "",
        " ",
        "5",
        "1m30",
        "-1s",
        "1h-30m",
        "30m1h",
        "1h1h",
        "1e5s",
        "0x5s",
        "\u0661s",
        "1\x00s",
        "\ud800",
        "1 fortnight",
        "P",
        "PT",
        "P1H",
        "pt1h",
        "PT1H ",
        "0.0001ms",
        "9999999999999s",
        "11 years",
        "1" * 1_000_000 + "s",
    ],
)
def test_everything_else_is_refused_with_the_accepted_forms(refused: object) -> None:
    with pytest.raises(InvalidDurationError, match="write a timedelta, seconds, '2 days 12 hours', '1h30m'") as caught:
        parse_duration(refused, option="timeout")

    assert str(caught.value).startswith("timeout=")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["1M", "3 months", "1 Month", "1y", "2 years"])
def test_months_and_years_are_refused_for_their_length_varies(text: str) -> None:
    with pytest.raises(InvalidDurationError, match="months and years have no fixed length"):
        parse_duration(text, option="delay")


@pytest.mark.parametrize("zero", [0, 0.0, "0s", timedelta()])
def test_zero_is_refused_only_where_it_makes_no_sense(zero: object) -> None:
    assert parse_duration(zero, option="delay") == timedelta()

    with pytest.raises(InvalidDurationError, match="longer than zero"):
        parse_positive_duration(zero, option="timeout")


@given(st.timedeltas(min_value=timedelta(), max_value=MAX_DURATION))
def test_what_is_written_out_is_read_as_the_same(duration: timedelta) -> None:
    milliseconds, microseconds = divmod(duration.microseconds, 1000)
    hours, rest = divmod(duration.seconds, 3600)
    minutes, seconds = divmod(rest, 60)

    text = f"{duration.days}d {hours}h {minutes}m {seconds}s {milliseconds}.{microseconds:03}ms"
    iso = f"P{duration.days}DT{hours}H{minutes}M{seconds}.{duration.microseconds:06}S"

    assert parse_duration(text, option="x") == duration
    assert parse_duration(iso, option="x") == duration


@given(st.floats(min_value=1e-6, max_value=3e8))
def test_seconds_are_kept_to_the_microsecond(seconds: float) -> None:
    assert abs(parse_duration(seconds, option="x").total_seconds() - seconds) <= 1e-6


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_typed_error(text: str) -> None:
    try:
        duration = parse_duration(text, option="x")
    except InvalidDurationError:
        return

    assert timedelta() <= duration <= MAX_DURATION
