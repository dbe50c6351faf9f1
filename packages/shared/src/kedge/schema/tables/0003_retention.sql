-- additive
-- Ended runs are deleted when their time to be kept is over. No index serves that: the ids have the time of the start in
-- them, so what is old stands together in (workflow, id), and an end pays nothing for a deletion that may never come.

-- How long ended runs of the workflow are kept, in seconds from their end; null: for ever.
alter table kedge.definitions
    add column keep_completed_s float8,
    add column keep_failed_s    float8,
    add column keep_cancelled_s float8;

-- Runs that are deleted, but for rows that were too many for one transaction: the next ones take them.
create table kedge.removals (
    run_id uuid not null primary key
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What history holds goes as steadily as it comes: space is found again before a twentieth of a table is dead, and not
-- a fifth. Where nothing is deleted nothing is dead, and this costs nothing.
alter table kedge.journal set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
alter table kedge.finished set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
alter table kedge.failures set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
alter table kedge.run_log set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
alter table kedge.run_keys set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
alter table kedge.run_tags set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
alter table kedge.progress set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
alter table kedge.run_metadata set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
