-- 20261121019540_prices_of_a_claim_quickly.sql
-- The same prices that functions compare channels by, looked up by their beginnings instead of each beside each: every claim brings them.
-- Safe to run again. Locks no table. Undo: apply private.prices_in_force of 20261121019530.

create or replace function private.prices_in_force(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    with listed as materialized (
      select r.client_id, r.provider, r.kind, r.prefix, r.country, r.operator, r.price, r.currency, r.valid_from
        from public.channel_prices r
       where r.side = 'cost' and (r.client_id = p_client_id or r.client_id is null)
         and r.valid_from <= now() and (r.valid_until is null or now() < r.valid_until)
    ), beginnings as (
      -- Numbers that begin alike, up to the next of these, cost alike.
      select l.provider, l.kind, l.prefix from listed l
      union
      select l.provider, l.kind, n.prefix from listed l join public.number_ranges n on n.country = l.country
    ), parts as materialized (
      select b.prefix, left(b.prefix, n) as part
        from (select distinct b.prefix from beginnings b) b cross join lateral generate_series(0, length(b.prefix)) n
    ), places as (
      select distinct on (p.prefix) p.prefix, n.country, n.operator
        from parts p join public.number_ranges n on n.prefix = p.part
       order by p.prefix, length(n.prefix) desc
    ), named as (
      select l.provider, l.kind from listed l where l.provider <> 'any'
      union
      -- What holds for any holds for those that we send by.
      select k.provider, l.kind
        from listed l join (values ('mtn', true), ('twilio', true), ('africas_talking', true), ('whatsapp', false)) k (provider, sms)
          on l.provider = 'any' and l.kind <> 'minute' and k.sms = (l.kind = 'segment')
    ), wanted as (
      select distinct m.provider, m.kind, b.prefix
        from named m join beginnings b on b.kind = m.kind and (b.provider = m.provider or b.provider = 'any')
    ), found as (
      -- As private.prices_of chooses, a provider and a beginning each.
      select distinct on (m.provider, m.kind, p.prefix) m.provider, m.kind, p.prefix, l.price, l.currency
        from listed l
        join parts p on p.part = l.prefix
        join wanted m on m.kind = l.kind and (l.provider = m.provider or l.provider = 'any') and m.prefix = p.prefix
        left join places a on a.prefix = p.prefix
       where (l.country is null or l.country = a.country) and (l.operator is null or l.operator = a.operator)
       order by m.provider, m.kind, p.prefix, (l.client_id is null), length(l.prefix) desc, (l.operator is null), (l.country is null),
                (l.provider = 'any'), l.valid_from desc
    )
    select jsonb_agg(jsonb_build_object('provider', x.provider, 'kind', x.kind, 'prefix', x.prefix, 'price', trim_scale(x.price), 'currency', x.currency)
             order by x.provider, x.kind, x.prefix)
      from (select f.* from found f order by f.provider, f.kind, f.prefix limit 500) x), '[]');
end
$$;
comment on function private.prices_in_force is
  'What counts for a client now on the side of cost, one price a provider, kind and prefix, of which the longest that fits counts: what private.price_of says, for every provider that a list names and, where a list says any, for those that we send by.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019540'::text $$;

notify pgrst, 'reload schema';
