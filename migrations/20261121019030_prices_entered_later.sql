-- 20261121019030_prices_entered_later.sql
-- An SMS that was written before anybody had entered a price for it gets the price of its day once there is one. What has a cost or a price keeps it.
-- Safe to run again. Locks channel_prices for a moment and builds an index on agent_sms (on a large table first `migrate --indexes`). Undo: drop the
-- trigger, its function, private.price_what_is_unpriced, the index and the two columns, and apply private.keep_sms_figures of 20261121013230.

alter table public.channel_prices add column if not exists fills_from timestamptz;
alter table public.channel_prices add column if not exists fills_after uuid;
do $$
begin
  perform private.require_columns('public.channel_prices', '{"fills_from": "timestamp with time zone", "fills_after": "uuid"}');
end
$$;
comment on column public.channel_prices.fills_from is
  'SMS without a price are still to be looked at from this time on, by sent_at: begins as valid_from, moves on with each sweep; null: all were.';
comment on column public.channel_prices.fills_after is 'Of that very time those whose id comes after this one; null: all of them.';

create or replace function private.let_price_fill() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.fills_from := case when new.kind = 'segment' then new.valid_from end;
  new.fills_after := null;
  return new;
end
$$;
comment on function private.let_price_fill is 'Trigger: a price that is entered, or corrected, is for SMS of its time that have none yet, too.';
drop trigger if exists channel_prices_fill on public.channel_prices;
create trigger channel_prices_fill
  before insert or update of client_id, side, provider, kind, prefix, country, operator, price, currency, valid_from, valid_until on public.channel_prices
  for each row execute function private.let_price_fill();
do $$
begin
  -- What was entered before this file came has not filled anything: once.
  if not exists (select from pg_catalog.pg_class where oid = to_regclass('public.idx_agent_sms_unpriced')) then
    update public.channel_prices set fills_from = valid_from where kind = 'segment';
  end if;
end
$$;

-- Holds only those without a price. Cost and price are in another index already: a status still touches none.
create index if not exists idx_agent_sms_unpriced on public.agent_sms (sent_at, id) where (cost is null or revenue is null) and segments is not null;

create or replace function private.price_what_is_unpriced(p_limit integer default 2000, p_now timestamptz default now()) returns integer
language plpgsql set search_path = '' as $$
declare
  -- A message that was being written while the price was entered has not seen it, and is not to be seen yet.
  v_lists uuid[] := array(
    select x.id from (
      select r.id from public.channel_prices r where r.fills_from is not null and r.updated_at <= p_now - interval '30 seconds'
       order by r.id for no key update skip locked) x);
  v_from timestamptz;
  v_after uuid;
  v_ids uuid[];
  v_priced integer;
begin
  if cardinality(v_lists) = 0 then
    return 0;
  end if;
  select r.fills_from, coalesce(r.fills_after, '00000000-0000-0000-0000-000000000000') into v_from, v_after
    from public.channel_prices r where r.id = any (v_lists) order by 1, 2 limit 1;
  v_ids := array(
    select s.id from public.agent_sms s
     where (s.cost is null or s.revenue is null) and s.segments is not null and (s.sent_at, s.id) > (v_from, v_after)
       and exists (select from public.channel_prices r
                    where r.id = any (v_lists) and r.fills_from <= s.sent_at and r.provider in (s.provider, 'any')
                      and (r.client_id is null or r.client_id = s.client_id)
                      and (r.side = 'cost' and s.cost is null or r.side = 'revenue' and s.revenue is null))
     order by s.sent_at, s.id limit p_limit);
  -- In the order in which reports lock them.
  perform from public.agent_sms s where s.id = any (v_ids) order by s.delivery_id for no key update;
  -- By the whole of the lists, as if they had been there: the trigger makes amounts of it, once.
  with found as materialized (
    select s.id, p.* from public.agent_sms s, lateral private.prices_of(s.client_id, s.provider, 'segment', s.phone_number, s.sent_at) p
     where s.id = any (v_ids)
  ), priced as (
    update public.agent_sms s
       set unit_cost = case when s.cost is null then f.cost else s.unit_cost end,
           cost_currency = case when s.cost is null then f.cost_currency else s.cost_currency end,
           unit_revenue = case when s.revenue is null then f.revenue else s.unit_revenue end,
           revenue_currency = case when s.revenue is null then f.revenue_currency else s.revenue_currency end
      from found f
     where f.id = s.id and (s.cost is null and f.cost is not null or s.revenue is null and f.revenue is not null)
    returning 1
  )
  select count(*) into v_priced from priced;
  if cardinality(v_ids) < p_limit then
    update public.channel_prices r set fills_from = null, fills_after = null where r.id = any (v_lists);
  else
    update public.channel_prices r set fills_from = s.sent_at, fills_after = s.id
      from public.agent_sms s
     where s.id = v_ids[cardinality(v_ids)] and r.id = any (v_lists)
       and (r.fills_from, coalesce(r.fills_after, '00000000-0000-0000-0000-000000000000')) < (s.sent_at, s.id);
  end if;
  return v_priced;
end
$$;
comment on function private.price_what_is_unpriced is
  'Looks at so many SMS without cost or price for which a price was entered meanwhile, the oldest first, and gives them that of their day; how many it was. What has an amount keeps it.';

create or replace function private.keep_sms_figures(p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_folded integer := 0;
  v_round integer;
  v_purged integer;
  v_priced integer;
  v_watched integer := 0;
  -- The sweep has other things to do, and a limit of time; what is left waits a minute.
  v_ends constant timestamptz := clock_timestamp() + interval '2 seconds';
begin
  loop
    v_round := private.fold_sms_changes(5000);
    v_folded := v_folded + v_round;
    exit when v_round < 5000 or clock_timestamp() > v_ends;
  end loop;
  v_purged := private.purge_agent_sms(p_now);
  v_priced := private.price_what_is_unpriced(2000, p_now);
  -- Every quarter of an hour: they change slowly, and cost a look at a day.
  if extract(minute from p_now)::integer % 15 = 0 then
    v_watched := private.watch_sms_of_clients(30, p_now) + private.watch_success(p_now);
  end if;
  return jsonb_build_object('folded', v_folded, 'purged', v_purged, 'priced', v_priced, 'alerts', v_watched);
exception when others then
  -- Figures can wait; what else the sweep has found cannot.
  perform private.raise_alert('sms_figures', 'warning', 'sms_figures', 'The figures of SMS could not be brought up to date.', jsonb_build_object('code', sqlstate));
  return jsonb_build_object('code', sqlstate);
end
$$;
comment on function private.keep_sms_figures is
  'What the sweep does for agent_sms: folds sums, deletes what is too old, prices what had no price, and each quarter of an hour looks at targets, failures and costs; {folded, purged, priced, alerts}, or {code} of what went wrong, with an alert.';

revoke execute on function private.let_price_fill(), private.price_what_is_unpriced(integer, timestamptz), private.keep_sms_figures(timestamptz)
  from public, anon, authenticated;
grant execute on function private.let_price_fill(), private.price_what_is_unpriced(integer, timestamptz), private.keep_sms_figures(timestamptz)
  to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019030'::text $$;

notify pgrst, 'reload schema';
