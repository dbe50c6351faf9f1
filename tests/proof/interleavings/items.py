"""
Holes that earlier forms of the protocol had, found by two reviews of it, and the tests that keep them shut.

Each is held by pairs of this folder, which name it among what they cover, or by a test elsewhere (`ELSEWHERE`, by file
and name). 1:n are holes of the first form, 2:n of the second; :i are the interleavings that showed them.
"""

from __future__ import annotations

from typing import Final

HOLES: Final[dict[str, str]] = {
    "1:R1": "whoever gives a run something, and its park, meet on the run's row and decide in a later statement",
    "1:R2": "batches never wait, but pass by what is locked",
    "1:R3": "callers only insert; somebody else sorts",
    "1:1": "a child's end and its parent's park have no meeting point",
    "1:2a": "two flushes wait for each other through their parents",
    "1:2b": "a due claim and a letter wait for each other",
    "1:2c": "a flush and a send to a topic wait for each other",
    "1:2d": "batches lock many rows in different orders",
    "1:2e": "callers with keys in different orders wait for each other",
    "1:3": "a caller's open transaction stops a worker",
    "1:4": "a send is doubled once its event has been consumed",
    "1:5": "a completion stands on an outcome that was refused",
    "1:6": "a flush that is repeated reads as a lost lease",
    "1:7": "runs of a claim whose answer was lost are executed by nobody",
    "1:8": "a take back misses what is claimed at the same moment",
    "1:9": "a request is acknowledged and forgotten by a move out of running",
    "1:10": "ends leave waits behind, which eat events",
    "1:11": "crashes charge innocent runs",
    "1:12": "timers of paused runs are lost",
    "1:13": "a worker takes what it has no handler for",
    "1:14": "a failover loses more than its tail",
    "1:15": "the doorbell aborts or blocks callers",
    "1:16": "a repeated verb acts on something else than it meant",
    "1:17": "a broadcast from an old snapshot misses waits",
    "1:18": "timers count from the beginning of a long transaction",
    "1:19": "ids from wrong clocks",
    "1:20": "a deadline has no owner",
    "1:21": "a retry meets the stored failure again",
    "1:22": "a transactional step commits behind the end of its run",
    "1:23": "a worker that leaves orphans what it still owns",
    "1:24": "a flush that the server refuses is repeated for ever",
    "1:25": "children, sends and logs are not fenced",
    "1:26": "each child's end wakes a parent that waits for all",
    "1:27": "the floor passes over late and woken runs",
    "1:28": "cancelled runs stand at the head of the queue",
    "1:29": "who watches a result misses the end",
    "1:30": "what a worker owns is known by its memory only",
    "1:31": "code that does not fit parks a run that nobody wakes",
    "1:32": "two active runs of a singleton",
    "1:33": "a namespace that stands in some tables only",
    "1:34": "checks of a poll fill the journal",
    "1:35": "a rerun is doubled or incomplete",
    "1:36": "what a repeated key answers",
    "1:37": "bulk starts need rights on tables",
    "1:38": "releases of different age work on the same schema",
    "1:39": "settings of sessions leak behind a pooler",
    "1:40": "a handler that lingers is taken for parked",
    "1:41": "a cascade misses children",
    "1:42": "unread events without a limit",
    "1:43": "nothing says that nobody serves a queue",
    "1:44": "an unreplicated commit counts as done",
    "1:i child end x parent park": "",
    "1:i flush x flush with crossed parents": "",
    "1:i due timer claim x event/cancel": "",
    "1:i flush(wake, park) x send": "",
    "1:i flush x open caller transaction with cancel/send": "",
    "1:i claim x open cancel of the head run": "",
    "1:i send repeated after consumption": "",
    "1:i timeout queued + completion x event": "",
    "1:i flush repeated after lost answer": "",
    "1:i claim answer lost": "",
    "1:i take back x claim at each statement": "",
    "1:i cancel request x park/retry/give back/take back": "",
    "1:i event x wait of an ended run": "",
    "1:i pause x due timer x resume": "",
    "1:i repeat of resume/fast_forward/retry": "",
    "1:i broadcast from REPEATABLE READ": "",
    "1:i transactional step x cancel flush": "",
    "2:1": "a repeated start executes a finished run again",
    "2:2": "a repeated send is doubled once the first was consumed, also by a repeated flush",
    "2:3": "an old journal transaction commits behind what its successor has read",
    "2:4": "a stopped client in the middle of a large answer holds its locks for ever",
    "2:5": "a caller's key or singleton blocks workers",
    "2:6": "one locked row keeps a whole flush from being stored",
    "2:7": "a request is forgotten by park, retry later, give back, take back",
    "2:8": "the courier decides in the locking statement; skipped is taken for gone",
    "2:9": "mail without the order of arrival",
    "2:10": "a topic's letter is delivered twice, or passes a wait that is being registered",
    "2:11": "a child's end is told once, to nobody",
    "2:12": "a transaction's seq is not the order in which outcomes reached the handler",
    "2:13": "woken runs starve below the floor",
    "2:14": "a verb is refused for a state that an unsorted letter is about to change",
    "2:15": "nobody sorts when all workers are busy",
    "2:16": "a poison letter stops everybody",
    "2:17": "a run is executed long after its cancel was accepted",
    "2:18": "a second retry, a retry past its deadline",
    "2:19": "a watcher is taken before the end is visible",
    "2:20": "a claim over many names locks far too much",
    "2:21": "due runs starve ready ones",
    "2:22": "each child's end costs a hop; a map wakes its parent each time",
    "2:23": "a move without all of its rows",
    "2:24": "a run that kills its workers has no lane",
    "2:25": "a run that is parked lingers on",
    "2:26": "waits of older code outlive it",
    "2:27": "a delayed start in the ready queue",
    "2:28": "a branch's pause stops the timers of the others",
    "2:29": "a doorbell in the data's transaction",
    "2:30": "a key without its run after retention",
    "2:31": "a worker whose loop is dead keeps its lease",
    "2:32": "two installations in one database share the courier's lock",
    "2:33": "two couriers at once",
    "2:34": "a split batch overtakes its predecessor",
    "2:i start repeated after the end": "",
    "2:i send repeated after consumption": "",
    "2:i flush with ctx.send repeated": "",
    "2:i old journal session commits after give back": "",
    "2:i SIGSTOP inside a 30 MB claim answer, inside the courier": "",
    "2:i keyed child x caller's open start": "",
    "2:i retry x open singleton": "",
    "2:i one locked run in a flush of 100": "",
    "2:i request x park": "",
    "2:i park x courier between snapshot and lock": "",
    "2:i skipped x gone": "",
    "2:i topic with one locked waiter": "",
    "2:i child ends while the parent is failed, then retry": "",
    "2:i call of a keyed run that has ended, or has another parent": "",
    "2:i transaction's commit x sibling's step": "",
    "2:i woken run below the floor for a minute of full load": "",
    "2:i pause, resume back to back": "",
    "2:i all workers in long steps, cancel": "",
    "2:i poison letter": "",
    "2:i cancel with no worker, then start one": "",
    "2:i watch x exit": "",
}
"""What was wrong; of an interleaving its name says it."""

NO_MORE: Final[dict[str, str]] = {
    "1:30": "there is no table of claims: ownership stands in the run's row",
    "1:33": "a namespace is a schema",
    "1:37": "bulk starts go through a function, with arrays",
    "1:42": "the limit is soft by design and has no order to hold",
    "1:43": "a question of what people are shown",
}
"""Holes of parts that the protocol no longer has."""

_I: Final = "tests/integration"
_S: Final = "tests/scenarios"

ELSEWHERE: Final[dict[str, str]] = {
    "1:11": f"{_I}/test_solo_lane.py::test_crashes_of_neighbours_fail_nobody",
    "1:13": f"{_I}/test_interleavings_claim.py::test_other_workflows_and_queues_are_left_untouched",
    "1:14": f"{_I}/test_leased_store.py::test_a_promoted_server_ends_the_life_of_a_worker",
    "1:18": f"{_I}/client/test_client_start.py::test_a_delayed_run_waits_until_it_is_due",
    "1:19": f"{_I}/test_interleavings_start.py::test_an_id_from_a_wrong_clock_is_refused_and_leaves_nothing",
    "1:21": (
        f"{_I}/test_moves_waits.py"
        "::test_failures_and_interruptions_leave_the_journal_with_their_attempt_and_their_seqs_are_not_used_again"
    ),
    "1:27": (
        f"{_I}/test_interleavings_start.py"
        "::test_a_start_that_commits_late_is_claimed_though_its_place_is_below_the_floor"
    ),
    "1:28": f"{_I}/test_interleavings_inbox.py::test_a_run_at_rest_is_cancelled_at_once",
    "1:31": (
        f"{_S}/test_failing.py"
        "::test_a_run_whose_code_does_not_fit_waits_with_the_reason_and_goes_on_after_a_fixed_deploy"
    ),
    "1:34": f"{_S}/test_failing.py::test_a_poll_looks_for_days_and_knows_what_it_has_seen",
    "1:39": f"{_I}/client/test_client_connections.py::test_own_connections_have_limits_of_time",
    "1:40": f"{_S}/test_suspension.py::test_a_handler_that_does_not_stop_is_not_executed_twice_at_once",
    "1:44": f"{_I}/test_leased_store.py::test_a_commit_whose_wait_for_a_standby_was_cancelled_is_unknown_and_settled",
    "2:4": (
        f"{_I}/test_interleavings_take_back.py"
        "::test_a_client_that_stops_in_the_middle_of_a_claims_answer_holds_no_locks"
    ),
    "2:13": f"{_I}/test_interleavings_claim.py::test_every_entry_into_pending_takes_a_new_place_above_every_floor",
    "2:24": f"{_I}/test_solo_lane.py::test_two_crashes_in_a_row_lead_into_the_solo_lane",
    "2:25": f"{_S}/test_suspension.py::test_a_handler_that_does_not_stop_is_not_executed_twice_at_once",
    "2:26": (
        f"{_S}/test_sleeps_and_events.py"
        "::test_code_that_makes_something_else_of_a_wait_is_put_off_and_what_was_sent_is_kept_for_code_that_fits"
    ),
    "2:27": f"{_I}/test_moves_waits.py::test_an_event_does_not_begin_a_delayed_run",
    "2:29": f"{_I}/client/test_client_start.py::test_the_doorbell_rings_in_a_transaction_of_its_own",
    "2:32": f"{_I}/test_migrator.py::test_the_couriers_of_two_schemas_do_not_meet",
    "2:34": f"{_I}/test_flusher.py::test_data_that_the_database_refuses_costs_only_its_own_run",
    "2:i SIGSTOP inside a 30 MB claim answer, inside the courier": (
        f"{_I}/test_interleavings_take_back.py"
        "::test_a_client_that_stops_in_the_middle_of_a_claims_answer_holds_no_locks"
    ),
    "2:i woken run below the floor for a minute of full load": (
        f"{_I}/test_interleavings_claim.py::test_every_entry_into_pending_takes_a_new_place_above_every_floor"
    ),
    "2:i all workers in long steps, cancel": (
        f"{_S}/test_the_way_of_a_run.py::test_a_running_run_is_cancelled_and_its_finally_runs"
    ),
    "2:i cancel with no worker, then start one": (
        f"{_S}/test_the_way_of_a_run.py::test_a_run_that_was_cancelled_before_any_worker_lived_never_begins"
    ),
}
