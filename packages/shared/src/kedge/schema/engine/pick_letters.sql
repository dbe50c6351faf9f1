-- The letters that this round sorts, in order of arrival, and the locks of their runs; for the courier, who holds the
-- inbox. Separate statements: a batch is read; its runs are locked, skipping what is locked; then a plain read tells what
-- was skipped from what is gone, since skipping a locked row must not look like its absence.
-- A run that was not obtained keeps this and all its later letters, and so does one with a letter of a kind that is not
-- known here (a newer release's): they are read past, so that they do not stand in everybody's way.
-- One that has ended is locked as well, against its deletion: what a letter leaves behind belongs to a run.
-- A retry ends its run's part of the round: what comes behind it is meant for the run that lives again.
create or replace function kedge.pick_letters(p_limit int)
returns table (seqs bigint[], runs uuid[], kinds "char"[])
language plpgsql as $$
declare
    v_seqs bigint[];
    v_runs uuid[];
    v_kinds "char"[];
    v_seq bigint := -1;
    v_run uuid := '00000000-0000-0000-0000-000000000000';
    v_missing uuid[];
    v_locked uuid[] := '{}';
    v_held uuid[] := '{}';
    v_kept uuid[];
    v_room int;
begin
    seqs := '{}'; runs := '{}'; kinds := '{}';
    for v_pass in 1..8 loop
        v_room := p_limit - cardinality(seqs);
        select array_agg(b.seq order by b.seq, b.run_id), array_agg(b.run_id order by b.seq, b.run_id),
               array_agg(b.kind order by b.seq, b.run_id)
          into v_seqs, v_runs, v_kinds
          from (select i.seq, i.run_id, i.kind from kedge.inbox i
                 where (i.seq, i.run_id) > (v_seq, v_run) and i.run_id <> all (v_held)
                 order by i.seq, i.run_id limit v_room) b;
        exit when v_seqs is null;
        v_seq := v_seqs[cardinality(v_seqs)];
        v_run := v_runs[cardinality(v_runs)];

        v_locked := v_locked || array(
            select r.id from kedge.runs r where r.id = any (v_runs) and r.id <> all (v_locked) for update skip locked);
        v_missing := array(select b.run_id from unnest(v_runs) as b(run_id) where b.run_id <> all (v_locked));
        if v_missing <> '{}' then
            v_held := v_held || array(select r.id from kedge.runs r where r.id = any (v_missing));
            v_kept := array(select f.id from kedge.finished f where f.id = any (v_missing) for key share skip locked);
            v_held := array(
                select f.id from kedge.finished f where f.id = any (v_missing) and f.id <> all (v_kept)) || v_held;
        end if;

        if v_held = '{}' and v_kinds <@ '{x,s,u,g,e,t,c,w,o}' then  -- nearly always
            seqs := seqs || v_seqs;
            runs := runs || v_runs;
            kinds := kinds || v_kinds;
        else
            select seqs || coalesce(array_agg(b.seq order by b.place) filter (where b.is_free), '{}'),
                   runs || coalesce(array_agg(b.run_id order by b.place) filter (where b.is_free), '{}'),
                   kinds || coalesce(array_agg(b.kind order by b.place) filter (where b.is_free), '{}'),
                   v_held || coalesce(array_agg(b.run_id) filter (where not b.is_free or b.kind = 'r'), '{}')
              into seqs, runs, kinds, v_held
              from (select b.*, b.run_id <> all (v_held)
                                and bool_and(b.kind in ('x', 's', 'u', 'g', 'r', 'e', 't', 'c', 'w', 'o')) over so_far
                                and count(*) filter (where b.kind = 'r') over so_far
                                    = (b.kind = 'r')::int as is_free
                      from unnest(v_seqs, v_runs, v_kinds) with ordinality as b(seq, run_id, kind, place)
                    window so_far as (partition by b.run_id order by b.place)) b;
        end if;
        exit when cardinality(v_seqs) < v_room or cardinality(seqs) >= p_limit;
    end loop;
    return next;
end $$;
