-- The application's own tables, in the database that kedge's schema lives in too. They come with the application's own
-- migrations, not with kedge's.

create table orders (
    order_id    text        primary key,
    customer    text        not null,
    currency    text        not null,
    total_cents bigint      not null,
    placed_at   timestamptz not null default now()
);

-- Money. On purpose nothing here refuses a second entry of the same order, unless its writer gave it a key: a charge
-- that is made twice would be seen.
create table ledger (
    entry        bigint      generated always as identity primary key,
    order_id     text        not null,
    what         text        not null check (what in ('goods', 'shipping')),
    amount_cents bigint      not null,
    key          text        unique,
    booked_at    timestamptz not null default now()
);

create index ledger_order on ledger (order_id);

-- One row each time that the body of a plain step ran: at least once for each value that was kept.
create table step_bodies (
    order_id text        not null,
    step     text        not null,
    began_at timestamptz not null default now()
);
