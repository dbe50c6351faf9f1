"""What no state of the protocol may show; everything here is committed."""

from __future__ import annotations

from tests.proof.model.states import Run, State, is_for


def what_is_wrong(s: State, is_still: bool) -> str | None:
    """The first promise that a state breaks; everything here is committed."""
    if s.wrong:
        return s.wrong
    for n, run in enumerate(s.runs):
        epochs = [row.epoch for row in run.rows]
        keys = [row.key for row in run.rows]
        if epochs != sorted(epochs) or any(epoch > run.epoch for epoch in epochs):
            return f"I3: run {n} has rows of epochs {epochs}, and epoch {run.epoch}"
        if len(set(keys)) < len(keys) or set(keys) & set(run.waits):
            return f"I9: run {n} has the outcomes {keys} and waits for {run.waits}"
        if tuple((row.key, row.value) for row in run.rows)[: len(s.told[n])] != s.told[n]:
            return f"I7: run {n} was told {s.told[n]}, and the journal says {run.rows}"
        if run.status == "r" and not s.workers[run.owner].stands:
            return f"I10: run {n} is an orphan"
        if run.status != "r" and run.request:
            return f"I10: run {n} rests with a request"
        unread = [m.id for m in run.mail if not m.is_read]
        if run.status == "w" and any(is_for(m, key) for m in unread for key in run.waits):
            return f"I10: run {n} sleeps beside its mail {unread}"
        if run.status == "w" and not run.waits:
            return f"I10: run {n} waits for nothing"
        if run.status not in "cx" and (wrong := _mail_is_wrong(s, n, run)):
            return wrong
    if len(s.runs) == 2 and s.runs[0].status == "w" and s.runs[1].status in "cx":
        is_on_its_way = any(letter.startswith("k:") for letter, _ in s.inbox) or s.runs[0].mail
        if not is_on_its_way:
            return "I10: the parent waits for an end of which nobody tells it"
    if is_still and any(w.lives and w.phase != "dead" for w in s.workers):
        return _stuck(s)
    return None


def _mail_is_wrong(s: State, n: int, run: Run) -> str | None:
    if n == 1 or len(s.runs) == 2:
        return None
    for number in range(1, s.sent + 1):
        event = f"e{number}"
        rows = sum(row.value == event for row in run.rows)
        is_unread = any(m.id == event and not m.is_read for m in run.mail)
        if rows > 1 or (rows and is_unread):
            return f"I8: {event} is there twice"
        if not rows and not is_unread and (event, 0) not in s.inbox:
            return f"I8: {event} is lost"
    got = [row.value for row in run.rows if row.value.startswith("e") and row.value != "evil"]
    return f"I8: events came in the order {got}" if got != sorted(got) else None


def _stuck(s: State) -> str | None:
    """Nothing will happen any more by itself."""
    for n, run in enumerate(s.runs):
        if run.status in "pr":
            return f"I10: run {n} is {run.status} for ever"
    return "I10: a letter stays unsorted" if s.inbox else None
