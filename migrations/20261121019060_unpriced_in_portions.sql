-- 20261121019060_unpriced_in_portions.sql
-- private.price_what_is_unpriced passes by a limited number of SMS at a time: also where millions have no price and the one that was entered is for others.
-- Safe to run again. Locks no table. Undo: apply private.price_what_is_unpriced of 20261121019030.

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
  v_last uuid;
  v_looked_at integer;
  v_priced integer;
begin
  if cardinality(v_lists) = 0 then
    return 0;
  end if;
  select r.fills_from, coalesce(r.fills_after, '00000000-0000-0000-0000-000000000000') into v_from, v_after
    from public.channel_prices r where r.id = any (v_lists) order by 1, 2 limit 1;
  -- Of rows for which nothing was entered there may be millions: they are passed by, but not all of them at once.
  with looked_at as materialized (
    select s.id, s.client_id, s.provider, s.sent_at, s.cost, s.revenue, row_number() over (order by s.sent_at, s.id) as place
      from (select o.* from public.agent_sms o
             where (o.cost is null or o.revenue is null) and o.segments is not null and (o.sent_at, o.id) > (v_from, v_after)
             order by o.sent_at, o.id limit 10 * p_limit) s
  ), meant as (
    select l.id, l.place from looked_at l
     where exists (select from public.channel_prices r
                    where r.id = any (v_lists) and r.fills_from <= l.sent_at and r.provider in (l.provider, 'any')
                      and (r.client_id is null or r.client_id = l.client_id)
                      and (r.side = 'cost' and l.cost is null or r.side = 'revenue' and l.revenue is null))
     order by l.place limit p_limit
  )
  select array(select m.id from meant m order by m.place), (select count(*) from looked_at),
         case when (select count(*) from meant) = p_limit then (select m.id from meant m order by m.place desc limit 1)
              else (select l.id from looked_at l order by l.place desc limit 1) end
    into v_ids, v_looked_at, v_last;
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
  if cardinality(v_ids) < p_limit and v_looked_at < 10 * p_limit then
    update public.channel_prices r set fills_from = null, fills_after = null where r.id = any (v_lists);
  else
    update public.channel_prices r set fills_from = s.sent_at, fills_after = s.id
      from public.agent_sms s
     where s.id = v_last and r.id = any (v_lists)
       and (r.fills_from, coalesce(r.fills_after, '00000000-0000-0000-0000-000000000000')) < (s.sent_at, s.id);
  end if;
  return v_priced;
end
$$;
comment on function private.price_what_is_unpriced is
  'Gives so many SMS without cost or price, the oldest first, the price of their day that was entered meanwhile, and passes by at most ten times as many others; how many it was. What has an amount keeps it.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019060'::text $$;

notify pgrst, 'reload schema';
