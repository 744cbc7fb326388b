-- 20261121013010_price_lists.sql
-- One price list for both sides: what a message or a minute costs us, and what a client pays for it, by number, operator or country,
-- each with the time it holds for; and rates between currencies with their date.
-- Safe to run again. Locks channel_prices for a moment. Undo: drop the columns, the two tables and the functions, and apply
-- private.prices_in_force of 20261121012400.
create table if not exists public.number_ranges (
  prefix text constraint number_ranges_pkey primary key,
  country char(2) not null,
  operator text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint number_ranges_prefix_is_of_numbers check (prefix ~ '^[+][0-9]{1,14}$'),
  constraint number_ranges_country_is_iso_3166 check (country ~ '^[A-Z]{2}$'),
  constraint number_ranges_operator_is_a_word check (operator ~ '^[a-z][a-z0-9_-]{0,39}$')
);
do $$
begin
  perform private.require_columns('public.number_ranges', '{
    "prefix": "text", "country": "character(2)", "operator": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_number_ranges_operator on public.number_ranges (country, operator);
comment on table public.number_ranges is 'Which country and operator a number was given to, by how it begins; the longest prefix counts. A number may have been taken to another operator since.';
comment on column public.number_ranges.prefix is 'With its plus, such as +25078.';
comment on column public.number_ranges.country is 'ISO 3166-1.';
comment on column public.number_ranges.operator is 'mtn, airtel, ...; null: the country''s numbers that no other row knows.';
insert into public.number_ranges (prefix, country, operator) values
  ('+250', 'RW', null), ('+25078', 'RW', 'mtn'), ('+25079', 'RW', 'mtn'), ('+25072', 'RW', 'airtel'), ('+25073', 'RW', 'airtel'),
  ('+243', 'CD', null), ('+254', 'KE', null), ('+255', 'TZ', null), ('+256', 'UG', null), ('+257', 'BI', null),
  ('+32', 'BE', null), ('+33', 'FR', null), ('+44', 'GB', null)
on conflict do nothing;

alter table public.channel_prices add column if not exists side text not null default 'cost';
alter table public.channel_prices add column if not exists country char(2);
alter table public.channel_prices add column if not exists operator text;
alter table public.channel_prices add column if not exists valid_until timestamptz;
do $$
declare
  v_rule record;
begin
  perform private.require_columns('public.channel_prices', '{
    "side": "text", "country": "character(2)", "operator": "text", "valid_until": "timestamp with time zone"}');
  -- Whom a price is for is part of what may stand there once.
  if exists (select from pg_catalog.pg_constraint c where c.conrelid = 'public.channel_prices'::regclass and c.conname = 'channel_prices_once'
                and cardinality(c.conkey) = 5) then
    alter table public.channel_prices drop constraint channel_prices_once;
  end if;
  for v_rule in
    select * from (values
      ('channel_prices_once', 'unique nulls not distinct (client_id, side, provider, kind, prefix, country, operator, valid_from)'),
      ('channel_prices_side_is_known', 'check (side in (''cost'', ''revenue''))'),
      ('channel_prices_country_is_iso_3166', 'check (country ~ ''^[A-Z]{2}$'')'),
      ('channel_prices_for_prefix_or_country', 'check ((prefix = '''' or country is null) and (operator is null or country is not null))'),
      ('channel_prices_ends_after_it_begins', 'check (valid_until > valid_from)')
    ) x (name, rule)
  loop
    if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.channel_prices'::regclass and conname = v_rule.name) then
      execute format('alter table public.channel_prices add constraint %I %s', v_rule.name, v_rule.rule);
    end if;
  end loop;
end
$$;
create index if not exists idx_channel_prices_kind on public.channel_prices (side, kind, provider);
comment on table public.channel_prices is
  'What one message or minute costs us, and what a client pays for it. Operators write it; a change of price is a new row, so that the price of an old message stays.';
comment on column public.channel_prices.side is 'cost: what we pay the provider; revenue: what the client pays us.';
comment on column public.channel_prices.provider is 'mtn, whatsapp, twilio, africas_talking, for minutes the trunk (mtn_sip, ...); any: whichever carries it.';
comment on column public.channel_prices.kind is
  'segment: one segment of an SMS. minute: one begun minute of a call. Of WhatsApp the category of a template (utility, marketing, authentication), or service: free text in the window, free without a row.';
comment on column public.channel_prices.prefix is 'How the recipients'' numbers begin, such as +250; empty: all. The longest that fits counts, before operator and country.';
comment on column public.channel_prices.country is 'ISO 3166-1, instead of a prefix: the numbers of number_ranges; null: wherever.';
comment on column public.channel_prices.operator is 'Of the country, as number_ranges names it; null: whichever.';
comment on column public.channel_prices.price is 'Of one message, segment or minute, in currency.';
comment on column public.channel_prices.valid_until is 'From then on it is out of force, without a successor needed; null: until a newer row begins.';

create or replace function private.prefixes_of(p_number text) returns text[]
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return array(select left(p_number, n) from generate_series(0, coalesce(length(p_number), 0)) n);
end
$$;
comment on function private.prefixes_of is 'All beginnings of a number, the empty one first.';

create or replace function private.price_of(
  p_client_id uuid, p_side text, p_provider text, p_kind text, p_number text, p_at timestamptz, out price numeric, out currency char(3)
) language plpgsql stable set search_path = '' as $$
declare
  v_prefixes text[] := private.prefixes_of(p_number);
  v_country char(2);
  v_operator text;
begin
  select r.country, r.operator into v_country, v_operator
    from public.number_ranges r where r.prefix = any (v_prefixes) order by length(r.prefix) desc limit 1;
  select r.price, r.currency into price_of.price, price_of.currency
    from public.channel_prices r
   where r.side = p_side and r.kind = p_kind and r.provider in (p_provider, 'any')
     and (r.client_id = p_client_id or r.client_id is null)
     and r.valid_from <= p_at and (r.valid_until is null or p_at < r.valid_until)
     and r.prefix = any (v_prefixes)
     and (r.country is null or r.country = v_country) and (r.operator is null or r.operator = v_operator)
   -- A client's own list before the general one; in it the most particular row; of those alike the newest.
   order by (r.client_id is null), length(r.prefix) desc, (r.operator is null), (r.country is null), (r.provider = 'any'), r.valid_from desc
   limit 1;
end
$$;
comment on function private.price_of is
  'The price that holds for a number at a time, per segment, message or minute; nulls where no list has one. A client''s own list counts before the general one; in a list a prefix before an operator, before a country, before none.';

create or replace function private.prices_in_force(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    with listed as (
      select r.client_id, r.provider, r.kind, coalesce(n.prefix, r.prefix) as prefix, r.price, r.currency, r.valid_from,
             (r.operator is null) as any_operator, (r.country is null) as anywhere
        from public.channel_prices r
        left join public.number_ranges n on n.country = r.country and (r.operator is null or n.operator = r.operator)
       where r.side = 'cost' and (r.client_id = p_client_id or r.client_id is null)
         and r.valid_from <= now() and (r.valid_until is null or now() < r.valid_until)
         and (r.country is null or n.prefix is not null)
    ), ranked as (
      select distinct on (l.provider, l.kind, l.prefix) l.*
        from listed l
       -- Where a client has a list of its own for these numbers, the general one does not count.
       where l.client_id is not null or not exists (
               select from listed o where o.client_id is not null and o.provider = l.provider and o.kind = l.kind and starts_with(l.prefix, o.prefix))
       order by l.provider, l.kind, l.prefix, (l.client_id is null), l.anywhere, l.any_operator, l.valid_from desc
    )
    select jsonb_agg(jsonb_build_object('provider', x.provider, 'kind', x.kind, 'prefix', x.prefix, 'price', trim_scale(x.price), 'currency', x.currency)
             order by x.provider, x.kind, x.prefix)
      from (select * from ranked limit 500) x), '[]');
end
$$;
comment on function private.prices_in_force is 'What counts for a client now on the side of cost, one price a provider, kind and prefix: what private.price_of goes by, for functions that compare channels.';

create table if not exists public.fx_rates (
  base char(3) not null,
  quote char(3) not null,
  valid_from date not null,
  rate numeric(18,9) not null,
  created_at timestamptz not null default now(),
  constraint fx_rates_pkey primary key (base, quote, valid_from),
  constraint fx_rates_currencies_are_codes check (base ~ '^[A-Z]{3}$' and quote ~ '^[A-Z]{3}$' and base <> quote),
  constraint fx_rates_rate_is_positive check (rate > 0)
);
do $$
begin
  perform private.require_columns('public.fx_rates', '{
    "base": "character(3)", "quote": "character(3)", "valid_from": "date", "rate": "numeric(18,9)", "created_at": "timestamp with time zone"}');
end
$$;
comment on table public.fx_rates is 'What one unit of base is worth in quote, from a day (UTC) until the next row of the pair. Operators write it; no rate is turned round or chained.';
comment on column public.fx_rates.base is 'ISO 4217, of the cost.';
comment on column public.fx_rates.quote is 'ISO 4217, of the revenue.';

comment on column public.fx_rates.valid_from is 'First day, UTC.';
comment on column public.fx_rates.rate is 'Quote for one base.';

create or replace function private.fx_rate_of(p_base text, p_quote text, p_at timestamptz, out rate numeric, out rate_date date)
language plpgsql stable set search_path = '' as $$
begin
  select r.rate, r.valid_from into fx_rate_of.rate, fx_rate_of.rate_date
    from public.fx_rates r
   where r.base = p_base and r.quote = p_quote and r.valid_from <= (p_at at time zone 'utc')::date
   order by r.valid_from desc limit 1;
end
$$;
comment on function private.fx_rate_of is 'The rate of a day and since when it holds; nulls where there is none.';

drop trigger if exists number_ranges_touch on public.number_ranges;
create trigger number_ranges_touch before update on public.number_ranges for each row execute function private.touch_updated_at();
alter table public.number_ranges enable row level security;
alter table public.fx_rates enable row level security;
drop policy if exists number_ranges_select on public.number_ranges;
create policy number_ranges_select on public.number_ranges for select to authenticated using (false);
drop policy if exists fx_rates_select on public.fx_rates;
create policy fx_rates_select on public.fx_rates for select to authenticated using (false);
revoke all on public.number_ranges, public.fx_rates from public, anon, authenticated;
grant select, insert, update, delete on public.number_ranges, public.fx_rates to service_role;
revoke execute on function private.prefixes_of(text), private.price_of(uuid, text, text, text, text, timestamptz),
  private.fx_rate_of(text, text, timestamptz) from public, anon, authenticated;
grant execute on function private.prefixes_of(text), private.price_of(uuid, text, text, text, text, timestamptz),
  private.fx_rate_of(text, text, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013010'::text $$;

notify pgrst, 'reload schema';
