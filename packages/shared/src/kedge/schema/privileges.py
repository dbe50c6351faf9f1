"""
Who may do what in a database: the one table of it, and the SQL that makes it so.

Four roles, without login; logins are made members of them. The owner owns everything, and nobody works as it. A client
may call functions, each with the owner's rights, and nothing else. A worker reads and writes tables, as far as its
statements do. An admin may what a client may, and look at everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

Role: TypeAlias = Literal["owner", "client", "worker", "admin"]

ROLES: Final[tuple[Role, ...]] = ("owner", "client", "worker", "admin")

TABLES: Final[Mapping[str, str]] = {
    "definitions": "select, insert, update",
    "events": "select, insert, update, delete",
    "failures": "select, insert, delete",
    "finished": "select, insert, update, delete",
    "idle": "select, insert, delete",
    "inbox": "select, insert, update, delete",
    "inbox_failed": "insert",
    # What is stored does not change; a new attempt moves failures out, and retention takes all of it.
    "journal": "select, insert, delete",
    "migrations": "select",
    "observers": "select, update, delete",
    "progress": "select, insert, update, delete",
    "removals": "select, insert, update, delete",
    "run_keys": "select, insert, delete",
    "run_log": "select, insert, delete",
    "run_metadata": "select, insert, update, delete",
    "run_tags": "select, insert, delete",
    "run_watchers": "select, insert, delete",
    "runs": "select, insert, update, delete",
    "singletons": "select, insert, update, delete",
    "waits": "select, insert, update, delete",
    "watchers": "select, update, delete",
    "workers": "select, insert, update, delete",
}
"""What a worker may do with each table; UPDATE is also what locking rows takes. An admin may read all of them."""

SEQUENCES: Final = ("failures_id", "inbox_seq", "run_log_id", "runs_seq")
"""Of which a worker may take the next number."""

VIEWS: Final = ("all_runs", "runs_view", "steps_view")
"""Read by an admin."""

CLIENT_FUNCTIONS: Final = (
    "cancel_run_v1",
    "count_runs_v1",
    "failures_v1",
    "fast_forward_v1",
    "get_runs_v1",
    "list_run_ids_v1",
    "observe_v1",
    "pause_run_v1",
    "progress_v1",
    "rerun_run_v1",
    "results_v1",
    "resume_run_v1",
    "retry_run_v1",
    "ring_on_commit_v1",
    "ring_run_v1",
    "ring_v1",
    "run_log_v1",
    "send_v1",
    "start_run_v1",
    "start_runs_v1",
    "steps_v1",
    "unobserve_v1",
    "unwatch_v1",
    "waits_v1",
    "watch_v1",
)
"""The api: executed with the owner's rights, also by workers, whose processes start and ask as well, and by admins."""

ADMIN_FUNCTIONS: Final = (
    "check_invariants",
    # What it and the views stand on: these are executed with the caller's rights.
    "clock",
    "is_solo",
    "kind_name",
    "mail_wakes",
    "payload_text",
    "queue_name",
    "status_name",
    "waits_or_mail",
)

WORKER_FUNCTIONS: Final = (
    "are_tags",
    "await_standby",
    "clock",
    "crashed_error",
    "deadline",
    "deadline_error",
    "delete_ended",
    "end_letter",
    "end_payload",
    "end_requested",
    "end_runs",
    "engine_letter",
    "error_info",
    "expand_letters",
    "expire_runs",
    "fail_by_deadline",
    "fail_letter",
    "finish_removals",
    "fit_together",
    "free_runs",
    "gate_is_closed",
    "gets_on",
    "hold_parent",
    "hold_worker",
    "id_floor",
    "id_time",
    "instant",
    "is_about_data",
    "is_solo",
    "is_start",
    "is_timeout",
    "kept_since",
    "leave",
    "letter_fields",
    "mail_wakes",
    "note",
    "notify_observers",
    "notify_watchers",
    "open_gates",
    "park_runs",
    "pick_letters",
    "queue_name",
    "register_definitions",
    "release_runs",
    "remove_history",
    "remove_runs",
    "replace_singleton",
    "retry_later",
    "retry_run",
    "ring_workers",
    "set_aside",
    "singleton_lock",
    "singleton_runs",
    "solo_lane",
    "sort_cancels",
    "sort_controls",
    "sort_inbox",
    "sort_watches",
    "start_children",
    "start_run",
    "status_name",
    "take_back",
    "take_over_journal",
    "waits_or_mail",
    "wake_runs",
    "worker_channel",
)
"""The engine's, executed with the worker's own rights."""

OWNER_FUNCTIONS: Final = (
    "addressee",
    "is_channel",
    "is_engine_letter",
    "post_letter",
    "versions_of",
    "was_sorted",
    "with_origin",
)
"""Called by nobody but functions that have the owner's rights."""

_PRIVILEGES: Final = """
do $privileges$
declare
    v_object text;
begin
    -- A new function may be executed by everybody, unless that is taken back in the transaction that makes it.
    for v_object in
        select format('function %s', p.oid::regprocedure) from pg_proc p
         cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         where p.pronamespace = '{schema}'::regnamespace and a.grantee = 0 and p.prokind = 'f'
           and pg_has_role(p.proowner, 'USAGE')
        union
        select format('%s %s', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass)
          from pg_class c
         cross join lateral aclexplode(c.relacl) a
         where c.relnamespace = '{schema}'::regnamespace and a.grantee = 0 and c.relkind in ('r', 'p', 'v', 'm', 'S')
           and pg_has_role(c.relowner, 'USAGE')
        union
        select format('schema %I', n.nspname) from pg_namespace n
         cross join lateral aclexplode(n.nspacl) a
         where n.oid = '{schema}'::regnamespace and a.grantee = 0 and pg_has_role(n.nspowner, 'USAGE')
    loop
        execute format('revoke all on %s from public', v_object);
    end loop;

    -- The rest is for where roles were installed: there the schema is the owner's.
    if not exists (select from pg_namespace n join pg_roles r on r.oid = n.nspowner
                    where n.oid = '{schema}'::regnamespace and r.rolname = '{owner_name}') then
        return;
    end if;

    revoke all on schema {schema} from {client}, {worker}, {admin};
    revoke all on all tables in schema {schema} from {client}, {worker}, {admin};
    revoke all on all sequences in schema {schema} from {client}, {worker}, {admin};
    grant usage on schema {schema} to {client}, {worker}, {admin};
    -- Functions of another release, which its clients and workers may still call, are left alone.
    for v_object in
        select p.oid::regprocedure from pg_proc p
         where p.pronamespace = '{schema}'::regnamespace and p.proname in ({functions})
    loop
        execute format('revoke all on function %s from {client}, {worker}, {admin}', v_object);
    end loop;
    for v_object in
        select format('%s on %s %s to %s', g.rights, case c.relkind when 'S' then 'sequence' else 'table' end,
                      c.oid::regclass, g.role)
          from (values
{tables}) as g(name, rights, role)
          join pg_class c on c.relnamespace = '{schema}'::regnamespace and c.relname = g.name
        union all
        select format('execute on function %s to %s', p.oid::regprocedure, g.role)
          from (values
{executes}) as g(names, role)
          join pg_proc p on p.pronamespace = '{schema}'::regnamespace and p.proname = any (g.names)
    loop
        execute 'grant ' || v_object;
    end loop;
end $privileges$;
"""

_ROLES: Final = """\
-- Roles of kedge in the schema {schema} of this database: to be executed by a superuser, or by who may create roles and
-- owns what there is. It may be repeated, and must be after a migration that was applied by hand.
begin;
do $roles$
declare
    v_name text;
begin
    foreach v_name in array array['{owner_name}', '{client_name}', '{worker_name}', '{admin_name}'] loop
        if not exists (select from pg_roles r where r.rolname = v_name) then
            execute format('create role %I nologin', v_name);
        end if;
    end loop;
    -- Who hands something over must be of those who get it; and this login is likely to be the one that migrates.
    if not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
        execute format('grant %I to %I', '{owner_name}', current_user);
    end if;

    -- IF NOT EXISTS would ask for the right to create schemas even where there is nothing to create.
    if not exists (select from pg_namespace n where n.nspname = '{schema_name}') then
        execute 'create schema {schema}';
    end if;
    execute 'alter schema {schema} owner to {owner}';
    for v_name in
        select format('%s %s', case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end,
                      c.oid::regclass)
          from pg_class c
         where c.relnamespace = '{schema}'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
           and c.relowner <> '{owner}'::regrole
        union all
        select format('function %s', p.oid::regprocedure) from pg_proc p
         where p.pronamespace = '{schema}'::regnamespace and p.prokind = 'f' and p.proowner <> '{owner}'::regrole
    loop
        execute format('alter %s owner to {owner}', v_name);
    end loop;
    -- Of the role and not of the schema: what everybody has by default can be taken away only there.
    execute 'alter default privileges for role {owner} revoke execute on functions from public';
end $roles$;
{privileges}
commit;

-- What is left to do, with your own names. Settings belong to logins: a role that others are members of passes none on.
--
--     create role shop_api login password '...' connection limit 50;
--     grant {client} to shop_api;
--     alter role shop_api set statement_timeout = '10s';
--     alter role shop_api set lock_timeout = '5s';
--     alter role shop_api set idle_in_transaction_session_timeout = '30s';
--
--     create role shop_worker login password '...' connection limit 100;
--     grant {worker} to shop_worker;
--     alter role shop_worker set idle_in_transaction_session_timeout = '60s';
--
--     create role shop_operator login password '...' connection limit 10;
--     grant {admin} to shop_operator;
--     alter role shop_operator set statement_timeout = '60s';
--
--     grant {owner} to shop_migrator;
"""


def role_name(role: Role, schema: str) -> str:
    """Return a role's name in the cluster: such as `kedge_client`."""
    return f"{schema}_{role}"


def privileges_sql(schema: str) -> str:
    """
    Return what takes everything from PUBLIC and, where the roles are installed, gives them what they may do.

    For the end of each transaction that makes functions or tables, executed as their owner.

    Args:
        schema: A name that `check_schema_name` has let pass.
    """
    names = _names(schema)
    client, worker, admin = names["client"], names["worker"], names["admin"]
    tables = [
        *((table, rights, worker) for table, rights in TABLES.items()),
        *((sequence, "usage", worker) for sequence in SEQUENCES),
        *((name, "select", admin) for name in (*TABLES, *VIEWS)),
    ]
    functions = (
        (CLIENT_FUNCTIONS, f"{client}, {worker}, {admin}"),
        (WORKER_FUNCTIONS, worker),
        (ADMIN_FUNCTIONS, admin),
    )
    every = (*CLIENT_FUNCTIONS, *WORKER_FUNCTIONS, *ADMIN_FUNCTIONS, *OWNER_FUNCTIONS)
    parts = {
        "functions": _listed(every),
        "tables": ",\n".join(f"              ('{name}', '{rights}', '{role}')" for name, rights, role in tables),
        "executes": ",\n".join(f"              (array[{_listed(some)}], '{roles}')" for some, roles in functions),
    }
    return _filled(_PRIVILEGES, {**names, **parts})


def roles_sql(schema: str) -> str:
    """
    Return the script that installs the roles, hands everything over to the owner, and gives each role what it may do.

    Args:
        schema: A name that `check_schema_name` has let pass; it need not exist.
    """
    return _filled(_ROLES, {**_names(schema), "privileges": privileges_sql(schema).strip()})


def _names(schema: str) -> dict[str, str]:
    # Lower case, digits and underscores, at most 41 of them: no quote, no backslash and no dollar can come in.
    names = {"schema": f'"{schema}"', "schema_name": schema}
    for role in ROLES:
        names[role] = f'"{role_name(role, schema)}"'
        names[f"{role}_name"] = role_name(role, schema)
    return names


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(set(names)))


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
