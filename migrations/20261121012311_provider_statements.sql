-- 20261121012311_provider_statements.sql
-- What a carrier puts on its bill for a month, as an operator enters it, against what we counted.
-- Safe to run again. Locks only a new table; looks at all rows of message_status_events without keeping anybody from writing.
-- Undo: drop the view and the table.

-- The check of 20261121012310, in a transaction of its own: nobody waits while all rows are looked at.
alter table public.message_status_events validate constraint message_status_events_source_is_known;

create table if not exists public.provider_statements (
  id uuid constraint provider_statements_pkey primary key default gen_random_uuid(),
  provider text not null,
  month date not null,
  messages integer not null,
  segments integer,
  cost numeric(14,6),
  currency char(3),
  note text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint provider_statements_provider_month_currency_key unique nulls not distinct (provider, month, currency),
  constraint provider_statements_month_is_its_first_day check (extract(day from month) = 1),
  constraint provider_statements_counts_are_counts check (messages >= 0 and segments >= 0),
  constraint provider_statements_cost_has_currency check ((cost is null) = (currency is null))
);
do $$
begin
  perform private.require_columns('public.provider_statements', '{
    "id": "uuid", "provider": "text", "month": "date", "messages": "integer", "segments": "integer", "cost": "numeric(14,6)",
    "currency": "character(3)", "note": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.provider_statements is 'Monthly totals of a provider''s bill, entered by an operator; v_statement_differences compares them.';
comment on column public.provider_statements.provider is 'As in message_delivery_log: mtn, whatsapp, africas_talking, twilio.';
comment on column public.provider_statements.month is 'Its first day; the month is Kigali''s.';
comment on column public.provider_statements.messages is 'Messages that the provider charges for.';
comment on column public.provider_statements.segments is 'Segments that it charges for; null where it counts none.';
comment on column public.provider_statements.cost is 'What it charges, in `currency`.';
comment on column public.provider_statements.currency is 'Of `cost`, such as RWF.';
comment on column public.provider_statements.note is 'Number of the bill, or whatever helps to find it.';
drop trigger if exists provider_statements_touch on public.provider_statements;
create trigger provider_statements_touch before update on public.provider_statements for each row execute function private.touch_updated_at();
alter table public.provider_statements enable row level security;
drop policy if exists provider_statements_select on public.provider_statements;
create policy provider_statements_select on public.provider_statements for select to authenticated using (false);
revoke all on public.provider_statements from public, anon, authenticated;
grant select, insert, update, delete on public.provider_statements to service_role;

create or replace view public.v_statement_differences with (security_invoker = true) as
  select s.provider, s.month, s.currency,
         s.messages as messages_billed, o.messages as messages_counted, s.messages - o.messages as messages_difference,
         s.segments as segments_billed, o.segments as segments_counted, s.segments - o.segments as segments_difference,
         s.cost as cost_billed, o.cost as cost_counted, s.cost - o.cost as cost_difference,
         o.unpriced, o.closed, o.possible_duplicates
    from public.provider_statements s
   cross join lateral (
     select count(*) as messages, coalesce(sum(l.segments), 0) as segments,
            sum(l.cost) filter (where l.cost_currency = s.currency) as cost,
            count(*) filter (where l.cost is null) as unpriced, count(*) filter (where l.closed_at is not null) as closed,
            count(*) filter (where l.possible_duplicate) as possible_duplicates
       from public.message_delivery_log l
      where l.direction = 'outbound' and l.provider = s.provider and l.sent_at is not null
        and l.created_at >= s.month::timestamp at time zone 'Africa/Kigali'
        and l.created_at < (s.month + interval '1 month')::timestamp at time zone 'Africa/Kigali') o;
comment on view public.v_statement_differences is
  'Each bill beside what we sent in that month: a positive difference is on the bill and not in our log.';
comment on column public.v_statement_differences.month is 'First day of the month that the bill is for.';
comment on column public.v_statement_differences.currency is 'Of the bill; null where it names no cost.';
comment on column public.v_statement_differences.messages_billed is 'Messages on the bill.';
comment on column public.v_statement_differences.messages_difference is 'Billed less counted.';
comment on column public.v_statement_differences.segments_billed is 'Segments on the bill.';
comment on column public.v_statement_differences.segments_counted is 'Segments of the messages that the provider accepted.';
comment on column public.v_statement_differences.segments_difference is 'Billed less counted.';
comment on column public.v_statement_differences.cost_billed is 'Cost on the bill.';
comment on column public.v_statement_differences.cost_difference is 'Billed less counted.';
comment on column public.v_statement_differences.messages_counted is 'Messages of that month that the provider accepted.';
comment on column public.v_statement_differences.cost_counted is 'Sum of the costs that the provider reported in this currency; null where it reports none.';
comment on column public.v_statement_differences.unpriced is 'Of these messages, how many have no cost.';
comment on column public.v_statement_differences.closed is 'Of these messages, how many were closed without a report.';
comment on column public.v_statement_differences.possible_duplicates is 'Of these messages, how many may have been sent, and charged, twice.';
revoke all on public.v_statement_differences from public, anon, authenticated;
grant select on public.v_statement_differences to authenticated, service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012311'::text $$;

-- PostgREST reads the new view now rather than at its next restart.
notify pgrst, 'reload schema';
