-- The engine's clock. A test database replaces both functions by the same offset; leases never use them.
-- clock() is for predicates (stable, inlined, index friendly); instant() is for what is written: in a long
-- transaction of a caller now() is old and would make timers early.
create or replace function kedge.clock() returns timestamptz
language sql stable parallel safe as $$ select now() $$;

create or replace function kedge.instant() returns timestamptz
language sql volatile parallel safe as $$ select clock_timestamp() $$;
