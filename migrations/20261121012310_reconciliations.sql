-- 20261121012310_reconciliations.sql
-- Once a day we and the carriers compare notes. A carrier that lists its messages (Twilio) is asked for each day; what a report
-- should have told and did not is recorded then, by the same events and the same fold. Messages of whom nobody tells any more are
-- closed by age. Nothing is ever taken back: a late report counts.
-- Safe to run again. Locks message_delivery_log for a moment (a column and an index: build it before with `migrate --indexes`) and
-- message_status_events for one check that looks at no row. Undo: drop the functions, the two tables and the column.
do $$
begin
  if not exists (select from pg_catalog.pg_constraint k where k.conrelid = 'public.message_status_events'::regclass
                  and k.conname = 'message_status_events_source_is_known' and pg_catalog.pg_get_constraintdef(k.oid) like '%reconciliation%') then
    alter table public.message_status_events drop constraint if exists message_status_events_source_is_known;
    -- Not valid: to look at all rows here would keep everybody waiting; 20261121012311 does it without that.
    alter table public.message_status_events add constraint message_status_events_source_is_known
      check (source in ('own', 'provider', 'reconciliation')) not valid;
  end if;
end
$$;
comment on column public.message_status_events.source is
  'own: a transition that we know of ourselves; provider: a report; reconciliation: the provider''s answer when it was asked, or that nobody told.';

alter table public.message_delivery_log add column if not exists closed_at timestamptz;
do $$
begin
  perform private.require_columns('public.message_delivery_log', '{"closed_at": "timestamp with time zone"}');
end
$$;
comment on column public.message_delivery_log.closed_at is
  'When it was closed by age: nobody had told what became of it. The status stays what is known; a late report counts all the same.';
-- Of columns that never change, so that a status is still written without touching any index.
create index if not exists idx_message_delivery_log_provider_created on public.message_delivery_log (provider, created_at)
  where direction = 'outbound';

create table if not exists public.reconciliations (
  id uuid constraint reconciliations_pkey primary key default gen_random_uuid(),
  provider text not null,
  kind text not null,
  period_start timestamptz not null,
  period_end timestamptz not null,
  status text not null default 'open',
  lease_token uuid,
  lease_until timestamptz,
  failures integer not null default 0,
  error text,
  compared integer not null default 0,
  repaired integer not null default 0,
  priced integer not null default 0,
  unknown_here integer not null default 0,
  unknown_there integer not null default 0,
  unchecked integer not null default 0,
  closed integer not null default 0,
  finished_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint reconciliations_provider_kind_period_start_key unique (provider, kind, period_start),
  constraint reconciliations_kind_is_known check (kind in ('list', 'age')),
  constraint reconciliations_status_is_known check (status in ('open', 'done')),
  constraint reconciliations_period_goes_on check (period_end > period_start)
);
do $$
begin
  perform private.require_columns('public.reconciliations', '{
    "id": "uuid", "provider": "text", "kind": "text", "period_start": "timestamp with time zone", "period_end": "timestamp with time zone",
    "status": "text", "lease_token": "uuid", "lease_until": "timestamp with time zone", "failures": "integer", "error": "text",
    "compared": "integer", "repaired": "integer", "priced": "integer", "unknown_here": "integer", "unknown_there": "integer",
    "unchecked": "integer", "closed": "integer", "finished_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.reconciliations is 'One row a provider and day: what was compared with the provider, and what came of it.';
comment on column public.reconciliations.kind is 'list: the provider was asked for the messages of that day; age: messages of whom nobody told were closed.';
comment on column public.reconciliations.period_start is 'The day of the messages, in UTC, as the provider counts days.';
comment on column public.reconciliations.period_end is 'The first moment after it.';
comment on column public.reconciliations.status is 'open until all of it is compared; then done.';
comment on column public.reconciliations.lease_token is 'Who is at it.';
comment on column public.reconciliations.lease_until is 'Until then nobody else takes it up.';
comment on column public.reconciliations.failures is 'How often it was broken off; it is taken up again an hour later.';
comment on column public.reconciliations.error is 'Why it was broken off last, as code.';
comment on column public.reconciliations.compared is 'list: messages that both know; age: all that went out on that day.';
comment on column public.reconciliations.repaired is 'Messages whose status the provider knew better.';
comment on column public.reconciliations.priced is 'Messages whose cost was new, their status as we had it.';
comment on column public.reconciliations.unknown_here is 'Messages of the provider''s that we do not know.';
comment on column public.reconciliations.unknown_there is 'Messages of ours that the provider does not know.';
comment on column public.reconciliations.unchecked is 'Messages of ours that were not in the list and could not all be asked for one by one.';
comment on column public.reconciliations.closed is 'Messages closed without a report.';

create table if not exists public.reconciled_messages (
  reconciliation_id uuid not null constraint reconciled_messages_reconciliation_id_fkey references public.reconciliations (id) on delete cascade,
  provider_message_key text not null,
  provider_message_id text not null,
  delivery_id uuid constraint reconciled_messages_delivery_id_fkey references public.message_delivery_log (id) on delete cascade,
  outcome text not null,
  created_at timestamptz not null default now(),
  constraint reconciled_messages_pkey primary key (reconciliation_id, provider_message_key),
  constraint reconciled_messages_outcome_is_known check (outcome in ('same', 'repaired', 'priced', 'unknown_here', 'unknown_there'))
);
do $$
begin
  perform private.require_columns('public.reconciled_messages', '{
    "reconciliation_id": "uuid", "provider_message_key": "text", "provider_message_id": "text", "delivery_id": "uuid", "outcome": "text",
    "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_reconciled_messages_delivery on public.reconciled_messages (delivery_id) where delivery_id is not null;
comment on table public.reconciled_messages is
  'Messages that a reconciliation has looked at: each counts once, however often its page comes. When it is done, those that only one side knows stay.';
comment on column public.reconciled_messages.provider_message_key is 'Normal form of provider_message_id.';
comment on column public.reconciled_messages.outcome is 'same, repaired, priced; unknown_here: only the provider knows it; unknown_there: only we do.';

create or replace function private.forget_reconciled() returns trigger
language plpgsql set search_path = '' as $$
begin
  delete from public.reconciled_messages m where m.delivery_id = new.id;
  return null;
end
$$;
comment on function private.forget_reconciled is 'Trigger: of an erased message the provider''s id is not kept here either.';
drop trigger if exists message_delivery_log_forget_reconciled on public.message_delivery_log;
create trigger message_delivery_log_forget_reconciled after update of erased_at on public.message_delivery_log
  for each row when (old.erased_at is null and new.erased_at is not null) execute function private.forget_reconciled();
drop trigger if exists reconciliations_touch on public.reconciliations;
create trigger reconciliations_touch before update on public.reconciliations for each row execute function private.touch_updated_at();
alter table public.reconciliations enable row level security;
alter table public.reconciled_messages enable row level security;
drop policy if exists reconciliations_select on public.reconciliations;
create policy reconciliations_select on public.reconciliations for select to authenticated using (false);
drop policy if exists reconciled_messages_select on public.reconciled_messages;
create policy reconciled_messages_select on public.reconciled_messages for select to authenticated using (false);
revoke all on public.reconciliations, public.reconciled_messages from public, anon, authenticated;
grant select, insert, update, delete on public.reconciliations, public.reconciled_messages to service_role;

create or replace function public.record_delivery_events(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_source text := coalesce(p ->> 'source', 'provider');
  v_events jsonb := coalesce(nullif(p -> 'events', 'null'), '[]');
  v_event record;
  v_id uuid;
  v_ids uuid[] := '{}';
  v_refs text[] := '{}';
  v_applied integer := 0;
  v_orphaned integer := 0;
  v_duplicate integer := 0;
  v_ignored integer := 0;
  v_status text;
  v_fallback jsonb;
  v_fallbacks jsonb := '[]';
begin
  perform private.lock_refs(array(
    select lower(e ->> 'delivery_ref') from jsonb_array_elements(v_events) e
    union all
    select (e ->> 'provider') || ':' || k from jsonb_array_elements(v_events) e, unnest(private.provider_message_keys(e ->> 'provider_message_id')) k));
  for v_event in
    select nullif(lower(e ->> 'delivery_ref'), '') as delivery_ref, private.required(e, 'provider') as provider,
           nullif(e ->> 'provider_message_id', '') as provider_message_id, e ->> 'status' as status, e ->> 'raw_status' as raw_status,
           (e ->> 'occurred_at')::timestamptz as occurred_at,
           (e ->> 'reported_at')::timestamptz as reported_at, coalesce((e ->> 'by_arrival')::boolean, false) as by_arrival, e ->> 'error_code' as error_code, e ->> 'error_class' as error_class,
           e ->> 'evidence' as evidence, nullif(e -> 'pricing', 'null') as pricing
      from jsonb_array_elements(v_events) e
  loop
    if private.delivery_status_rank(v_event.status) is null or (v_event.delivery_ref is null and v_event.provider_message_id is null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    v_id := private.delivery_of_report(v_event.delivery_ref, v_event.provider, v_event.provider_message_id);
    if exists (select from public.message_delivery_log l where l.id = v_id and l.erased_at is not null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    insert into public.message_status_events
      (delivery_id, delivery_ref, source, provider, provider_message_id, status, raw_status, occurred_at, reported_at, error_code, error_class,
       evidence, pricing, correlation_id, dedupe_key)
    values
      (v_id, v_event.delivery_ref, v_source, v_event.provider, v_event.provider_message_id, v_event.status, v_event.raw_status,
       coalesce(v_event.occurred_at, v_now), v_event.reported_at, v_event.error_code, v_event.error_class, v_event.evidence, v_event.pricing, p ->> 'correlation_id',
       -- A provider that is asked may say the same status again, with the price that it did not have before.
       concat_ws('|', case when v_source = 'reconciliation' then 'reconciliation:' || md5(coalesce(v_event.pricing::text, '')) end,
         v_event.provider, coalesce(v_event.delivery_ref, ''), coalesce(private.provider_message_key(v_event.provider_message_id), ''),
         v_event.status, coalesce(v_event.raw_status, ''), coalesce(v_event.error_code, ''),
         -- The time of arrival tells no report from its repeat.
         case when v_event.by_arrival then '' else coalesce(extract(epoch from coalesce(v_event.reported_at, v_event.occurred_at))::text, '') end))
    on conflict (dedupe_key) do nothing;
    if not found then
      v_duplicate := v_duplicate + 1;
    elsif v_id is null then
      v_orphaned := v_orphaned + 1;
      if v_event.delivery_ref is not null and v_event.status in ('sent', 'delivered', 'read') then
        v_refs := v_refs || v_event.delivery_ref;
      end if;
    else
      v_applied := v_applied + 1;
    end if;
    if v_id is not null then
      v_ids := v_ids || v_id;
    end if;
  end loop;

  for v_id in select distinct i from unnest(v_ids) i order by 1 loop
    -- A report may name the provider's id before the answer to our request does; others that named only that one have waited.
    if exists (select from public.message_delivery_log l where l.id = v_id and l.provider_message_id is null) then
      perform private.join_orphans(v_id);
    end if;
    v_status := private.refold_delivery(v_id);
    if v_status in ('failed', 'undeliverable', 'expired') then
      v_fallback := private.create_fallback(v_id, v_now);
      if v_fallback is not null then
        v_fallbacks := v_fallbacks || v_fallback;
      end if;
    end if;
  end loop;
  for v_event in select distinct r from unnest(v_refs) r order by 1 loop
    perform private.adopt_late_report(v_event.r, v_now);
  end loop;
  for v_id in select distinct i from unnest(v_ids) i order by 1 loop
    perform private.apply_evidence(v_id);
  end loop;
  return jsonb_build_object('applied', v_applied, 'orphaned', v_orphaned, 'duplicate', v_duplicate, 'ignored', v_ignored, 'fallbacks', v_fallbacks,
    -- Under which correlation id each message went out, so that the log can tell of its report under the same one.
    'deliveries', coalesce((
      select jsonb_agg(jsonb_build_object('id', l.id, 'channel', l.channel, 'status', l.status, 'correlation_id', l.correlation_id) order by l.id)
        from public.message_delivery_log l where l.id = any (v_ids)), '[]'));
end
$$;

create or replace function private.close_untold(p_after interval, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
  v_today timestamptz := date_trunc('day', p_now at time zone 'UTC') at time zone 'UTC';
  v_day timestamptz;
  v_provider record;
  v_id uuid;
  v_closed integer;
  v_all integer := 0;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:close_untold', 20261121)) then
    return 0;
  end if;
  -- The oldest day of the last fortnight that is old enough and was not looked at.
  select d into v_day
    from generate_series(v_today - p_after - interval '14 days', v_today - p_after, interval '1 day') g, lateral (select date_trunc('day', g at time zone 'UTC') at time zone 'UTC' as d) x
   where d + interval '1 day' + p_after <= p_now
     and exists (select from public.message_delivery_log l where l.created_at >= d and l.created_at < d + interval '1 day' and l.direction = 'outbound')
     and not exists (select from public.reconciliations r where r.kind = 'age' and r.period_start = d)
   order by d limit 1;
  if v_day is null then
    return 0;
  end if;
  -- One pass over the day. Only then are rows locked, in one order, and looked at again.
  for v_provider in
    select coalesce(l.provider, 'none') as name, count(*)::integer as compared,
           coalesce(array_agg(l.id) filter (where l.status in ('sent', 'unknown') and l.closed_at is null and l.next_attempt_at is null), '{}') as ids
      from public.message_delivery_log l
     where l.created_at >= v_day and l.created_at < v_day + interval '1 day' and l.direction = 'outbound' group by 1 order by 1
  loop
    perform 1 from (select l.id from public.message_delivery_log l where l.id = any (v_provider.ids) order by l.id for no key update) locked;
    -- The fold is what is known; `expired` would say that the message did not arrive, and nobody knows that.
    with closed as (
      update public.message_delivery_log l set closed_at = p_now
       where l.id = any (v_provider.ids) and l.status in ('sent', 'unknown') and l.next_attempt_at is null and l.lease_token is null
      returning l.id, l.provider, l.status, l.correlation_id
    ), told as (
      insert into public.message_status_events
        (delivery_id, delivery_ref, source, provider, status, raw_status, occurred_at, correlation_id, dedupe_key)
      select c.id, c.id::text, 'reconciliation', c.provider, c.status, 'closed_without_report', p_now, c.correlation_id, 'closed:' || c.id from closed c
      on conflict (dedupe_key) do nothing
    )
    select count(*)::integer into v_closed from closed;
    v_all := v_all + v_closed;
    insert into public.reconciliations (provider, kind, period_start, period_end, status, compared, closed, finished_at)
    values (v_provider.name, 'age', v_day, v_day + interval '1 day', 'done', v_provider.compared, v_closed, p_now)
    returning id into v_id;
    -- A telephone that stays off is nothing new; that a fifth of all reports do not come is.
    if v_closed > 2 and v_closed * 5 > v_provider.compared then
      perform private.raise_alert('reports_missing', 'warning', 'reports_missing:' || v_provider.name,
        format('%s does not tell what becomes of our messages: do its delivery reports reach delivery-status-webhook?', v_provider.name),
        jsonb_build_object('provider', v_provider.name, 'day', to_char(v_day at time zone 'UTC', 'YYYY-MM-DD'), 'closed', v_closed,
          'of', v_provider.compared, 'reconciliation_id', v_id));
    end if;
  end loop;
  return v_all;
end
$$;
comment on function private.close_untold is
  'Takes the oldest day that is over for so long and closes its messages of whom nobody has told: an event, closed_at, a row a provider, an alert where many are missing. How many.';

create or replace function public.claim_reconciliation(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 900)::double precision);
  v_settle interval := make_interval(hours => coalesce((p ->> 'settle_hours')::integer, 6));
  v_after interval := make_interval(hours => coalesce((p ->> 'close_after_hours')::integer, 72));
  v_today timestamptz := date_trunc('day', v_now at time zone 'UTC') at time zone 'UTC';
  v_closed integer;
  v_provider text;
  v_day timestamptz;
  v_row public.reconciliations;
begin
  v_closed := private.close_untold(v_after, v_now);
  delete from public.reconciliations where period_end < v_now - interval '400 days';
  for v_provider in select jsonb_array_elements_text(coalesce(nullif(p -> 'providers', 'null'), '[]')) loop
    -- The oldest day of the week that is not done: what an outage left is made up for.
    for v_day in
      select d from generate_series(v_today - interval '7 days', v_today - interval '1 day', interval '1 day') d
       where d + interval '1 day' + v_settle <= v_now order by d
    loop
      insert into public.reconciliations as r (provider, kind, period_start, period_end, lease_token, lease_until)
      values (v_provider, 'list', v_day, v_day + interval '1 day', v_token, v_now + v_lease)
      on conflict (provider, kind, period_start) do update set lease_token = excluded.lease_token, lease_until = excluded.lease_until
        where r.status = 'open' and (r.lease_until is null or r.lease_until <= v_now or r.lease_token = excluded.lease_token)
      returning * into v_row;
      if v_row.id is not null then
        return jsonb_build_object('id', v_row.id, 'provider', v_row.provider, 'day', to_char(v_row.period_start at time zone 'UTC', 'YYYY-MM-DD'),
          'closed', v_closed);
      end if;
    end loop;
  end loop;
  return jsonb_build_object('id', null, 'closed', v_closed);
end
$$;
comment on function public.claim_reconciliation is
  'RPC of the sweep: closes what nobody tells of any more, and claims a day of a provider that lists its messages, once it is over and has settled; the same to the same token.';

create or replace function private.held_reconciliation(p jsonb, p_now timestamptz) returns public.reconciliations
language plpgsql set search_path = '' as $$
declare
  v_row public.reconciliations;
begin
  select * into v_row from public.reconciliations
   where id = private.required(p, 'reconciliation_id')::uuid and lease_token = private.required(p, 'lease_token')::uuid
     for no key update;
  if not found then
    raise exception using errcode = 'PT409', message = 'claim_not_held';
  end if;
  return v_row;
end
$$;
comment on function private.held_reconciliation is 'The reconciliation that the caller has the lease of, locked.';

create or replace function private.unseen_deliveries(p_row public.reconciliations, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'provider_message_id', d.provider_message_id)), '[]') from (
      select l.id, l.provider_message_id from public.message_delivery_log l
       where l.direction = 'outbound' and l.provider = p_row.provider and l.created_at >= p_row.period_start and l.created_at < p_row.period_end
         and l.provider_message_id is not null
         and not exists (select from public.reconciled_messages m
                          where m.reconciliation_id = p_row.id and m.provider_message_key = l.provider_message_key)
       order by l.created_at, l.id limit p_limit) d);
end
$$;
comment on function private.unseen_deliveries is
  'Our messages of the period that the provider has an id for and has not told of: {id, provider_message_id}. One made before midnight may be in the next day''s list.';

create or replace function public.record_reconciliation(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_row public.reconciliations := private.held_reconciliation(p, v_now);
  v_message jsonb;
  v_log public.message_delivery_log;
  v_key text;
  v_outcome text;
  v_price numeric;
  v_events jsonb := '[]';
  v_answer jsonb := '{}';
begin
  if v_row.status = 'done' then
    return jsonb_build_object('unseen', '[]'::jsonb, 'fallbacks', '[]'::jsonb, 'deliveries', '[]'::jsonb);
  end if;
  for v_message in select m from jsonb_array_elements(coalesce(nullif(p -> 'messages', 'null'), '[]')) m loop
    v_key := private.provider_message_key(private.required(v_message, 'provider_message_id'));
    if exists (select from public.reconciled_messages m where m.reconciliation_id = v_row.id and m.provider_message_key = v_key) then
      continue;
    end if;
    select * into v_log from public.message_delivery_log l
     where l.id = private.delivery_of_report(null, v_row.provider, v_message ->> 'provider_message_id');
    v_price := case when v_message -> 'pricing' ->> 'amount' ~ '^[0-9]{1,6}([.][0-9]{1,12})?$'
                    then trunc((v_message -> 'pricing' ->> 'amount')::numeric, 6) end;
    v_outcome := case
      when coalesce((v_message ->> 'missing')::boolean, false) then 'unknown_there'
      when v_log.id is null then 'unknown_here'
      when private.delivery_status_rank(v_message ->> 'status') > private.delivery_status_rank(v_log.status) then 'repaired'
      when v_price is not null
        and (v_log.cost is distinct from v_price or v_log.cost_currency is distinct from v_message -> 'pricing' ->> 'currency') then 'priced'
      else 'same' end;
    insert into public.reconciled_messages (reconciliation_id, provider_message_key, provider_message_id, delivery_id, outcome)
    values (v_row.id, v_key, v_message ->> 'provider_message_id', v_log.id, v_outcome);
    if v_outcome in ('repaired', 'priced') then
      v_events := v_events || (v_message || jsonb_build_object('provider', v_row.provider));
    end if;
  end loop;
  if v_events <> '[]' then
    v_answer := public.record_delivery_events(jsonb_build_object('source', 'reconciliation', 'events', v_events, 'now', v_now,
      'correlation_id', p ->> 'correlation_id'));
  end if;
  return jsonb_build_object(
    'unseen', case when coalesce((p ->> 'unseen')::boolean, false) then private.unseen_deliveries(v_row, 50) else '[]' end,
    'fallbacks', coalesce(v_answer -> 'fallbacks', '[]'), 'deliveries', coalesce(v_answer -> 'deliveries', '[]'));
end
$$;
comment on function public.record_reconciliation is
  'RPC: what the provider says of some messages (missing: it does not know one of ours); repairs status and cost. With `unseen` also our messages that it has not told of.';

create or replace function public.finish_reconciliation(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_row public.reconciliations := private.held_reconciliation(p, v_now);
  v_day text := to_char(v_row.period_start at time zone 'UTC', 'YYYY-MM-DD');
  v_details jsonb;
begin
  if v_row.status = 'open' and p ->> 'error' is not null then
    update public.reconciliations set failures = failures + 1, error = p ->> 'error', lease_token = null, lease_until = v_now + interval '1 hour'
     where id = v_row.id;
    perform private.raise_alert('reconciliation_failed', 'warning', 'reconciliation_failed:' || v_row.provider,
      format('What %s says of our messages could not be compared; it is tried again in an hour.', v_row.provider),
      jsonb_build_object('provider', v_row.provider, 'day', v_day, 'error', p ->> 'error', 'reconciliation_id', v_row.id));
    return jsonb_build_object('status', 'open');
  end if;
  if v_row.status = 'open' then
    update public.reconciliations r
       set status = 'done', finished_at = v_now, error = null, compared = m.compared, repaired = m.repaired, priced = m.priced,
           unknown_here = m.unknown_here, unknown_there = m.unknown_there,
           unchecked = jsonb_array_length(private.unseen_deliveries(v_row, 10000))
      from (select count(*) filter (where outcome in ('same', 'repaired', 'priced'))::integer as compared,
                   count(*) filter (where outcome = 'repaired')::integer as repaired,
                   count(*) filter (where outcome = 'priced')::integer as priced,
                   count(*) filter (where outcome = 'unknown_here')::integer as unknown_here,
                   count(*) filter (where outcome = 'unknown_there')::integer as unknown_there
              from public.reconciled_messages where reconciliation_id = v_row.id) m
     where r.id = v_row.id
    returning r.* into v_row;
    delete from public.reconciled_messages where reconciliation_id = v_row.id and outcome in ('same', 'repaired', 'priced');
    v_details := jsonb_build_object('provider', v_row.provider, 'day', v_day, 'unknown_here', v_row.unknown_here,
      'unknown_there', v_row.unknown_there, 'unchecked', v_row.unchecked, 'reconciliation_id', v_row.id);
    if v_row.unknown_here + v_row.unknown_there + v_row.unchecked > 0 then
      perform private.raise_alert('reconciliation_difference', 'warning', 'reconciliation_difference:' || v_row.provider,
        format('%s and we do not know the same messages: see reconciled_messages.', v_row.provider), v_details);
    end if;
  end if;
  return jsonb_build_object('status', v_row.status, 'compared', v_row.compared, 'repaired', v_row.repaired, 'priced', v_row.priced,
    'unknown_here', v_row.unknown_here, 'unknown_there', v_row.unknown_there, 'unchecked', v_row.unchecked);
end
$$;
comment on function public.finish_reconciliation is
  'RPC: the day is compared, or (error) was broken off and waits for an hour; its counts, with an alert where one side knows messages that the other does not.';

revoke execute on function private.forget_reconciled(), private.close_untold(interval, timestamptz), private.held_reconciliation(jsonb, timestamptz),
  private.unseen_deliveries(public.reconciliations, integer), public.claim_reconciliation(jsonb), public.record_reconciliation(jsonb),
  public.finish_reconciliation(jsonb) from public, anon, authenticated;
grant execute on function private.forget_reconciled(), private.close_untold(interval, timestamptz), private.held_reconciliation(jsonb, timestamptz),
  private.unseen_deliveries(public.reconciliations, integer), public.claim_reconciliation(jsonb), public.record_reconciliation(jsonb),
  public.finish_reconciliation(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012310'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
