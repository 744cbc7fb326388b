-- 20261121012640_prices_that_come_late.sql
-- A price that a carrier names only after its day was compared is taken along: while messages of a day have no price, its list is read
-- again, once a day and three times at most, without anybody asking for it.
-- Safe to run again. Locks reconciliations for a moment (two columns). Undo: apply public.claim_reconciliation and
-- public.finish_reconciliation of 20261121012310 again, drop private.unpriced_deliveries and the two columns.

alter table public.reconciliations add column if not exists unpriced integer not null default 0;
alter table public.reconciliations add column if not exists asked_again smallint not null default 0;
do $$
begin
  perform private.require_columns('public.reconciliations', '{"unpriced": "integer", "asked_again": "smallint"}');
end
$$;
comment on column public.reconciliations.unpriced is 'list: messages of that day that went out and had no price when it was compared last.';
comment on column public.reconciliations.asked_again is 'list: how often it was read again for their prices.';
comment on column public.reconciliations.finished_at is 'When it was done last.';
comment on column public.reconciliations.repaired is 'Messages whose status the provider knew better, each time that it was asked.';
comment on column public.reconciliations.priced is 'Messages whose cost was new, their status as we had it, each time.';

create or replace function private.unpriced_deliveries(p_row public.reconciliations) returns integer
language plpgsql stable set search_path = '' as $$
begin
  return (
    select count(*)::integer from public.message_delivery_log l
     where l.direction = 'outbound' and l.provider = p_row.provider and l.created_at >= p_row.period_start and l.created_at < p_row.period_end
       and l.provider_message_id is not null and l.cost is null and l.status in ('sent', 'delivered', 'read')
       -- Of what the provider does not know it never names a price.
       and not exists (select from public.reconciled_messages m
                        where m.reconciliation_id = p_row.id and m.delivery_id = l.id and m.outcome = 'unknown_there'));
end
$$;
comment on function private.unpriced_deliveries is 'How many messages of the period went out and have no price.';

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
    -- A price may come after its day was compared: that day's list is read again, a day later each time.
    update public.reconciliations r
       set status = 'open', lease_token = v_token, lease_until = v_now + v_lease, asked_again = r.asked_again + 1
     where r.id = (
       select x.id from public.reconciliations x
        where x.provider = v_provider and x.kind = 'list' and x.status = 'done' and x.unpriced > 0 and x.asked_again < 3
          and x.period_start >= v_today - interval '7 days' and x.finished_at <= v_now - interval '20 hours'
        order by x.period_start limit 1 for update skip locked)
    returning * into v_row;
    if v_row.id is not null then
      return jsonb_build_object('id', v_row.id, 'provider', v_row.provider, 'day', to_char(v_row.period_start at time zone 'UTC', 'YYYY-MM-DD'),
        'closed', v_closed);
    end if;
  end loop;
  return jsonb_build_object('id', null, 'closed', v_closed);
end
$$;
comment on function public.claim_reconciliation is
  'RPC of the sweep: closes what nobody tells of any more, and claims a day of a provider that lists its messages, once it is over and has settled, or again where prices are missing; the same to the same token.';

create or replace function public.finish_reconciliation(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_row public.reconciliations := private.held_reconciliation(p, v_now);
  v_day text := to_char(v_row.period_start at time zone 'UTC', 'YYYY-MM-DD');
  v_details jsonb;
  v_told integer := v_row.unknown_here + v_row.unknown_there + v_row.unchecked;
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
       set status = 'done', finished_at = v_now, error = null, compared = m.compared,
           -- What an earlier time has put right was put right.
           repaired = r.repaired + m.repaired, priced = r.priced + m.priced, unpriced = private.unpriced_deliveries(v_row),
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
    if v_row.unknown_here + v_row.unknown_there + v_row.unchecked > v_told then
      perform private.raise_alert('reconciliation_difference', 'warning', 'reconciliation_difference:' || v_row.provider,
        format('%s and we do not know the same messages: see reconciled_messages.', v_row.provider), v_details);
    end if;
  end if;
  return jsonb_build_object('status', v_row.status, 'compared', v_row.compared, 'repaired', v_row.repaired, 'priced', v_row.priced,
    'unknown_here', v_row.unknown_here, 'unknown_there', v_row.unknown_there, 'unchecked', v_row.unchecked,
    'unpriced', v_row.unpriced);
end
$$;

revoke execute on function private.unpriced_deliveries(public.reconciliations) from public, anon, authenticated;
grant execute on function private.unpriced_deliveries(public.reconciliations) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012640'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
