-- 20261121012140_services.sql
-- What a client offers, found by words and by words that are only nearly right: a name is heard over the phone and spelt by a model.
-- Needs the extension pg_trgm (there on Supabase); an installed one is used where it is.
-- Safe to run again. Locks only a new table. Undo: drop the function and the table.
create schema if not exists extensions;
create extension if not exists pg_trgm with schema extensions;

create table if not exists public.services (
  id uuid constraint services_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint services_client_id_fkey references public.clients (id) on delete cascade,
  name text not null,
  category text,
  description text,
  area text,
  keywords text,
  price text,
  contact_number text,
  is_active boolean not null default true,
  search tsvector not null generated always as (
    setweight(to_tsvector('simple'::regconfig, name), 'A')
    || setweight(to_tsvector('simple'::regconfig, coalesce(category, '') || ' ' || coalesce(keywords, '')), 'B')
    || setweight(to_tsvector('simple'::regconfig, coalesce(area, '') || ' ' || coalesce(description, '')), 'C')) stored,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint services_name_is_given check (btrim(name) <> ''),
  constraint services_contact_number_is_a_number check (contact_number ~ '^[+]?[0-9]{3,15}$')
);
do $$
declare
  v_schema name;
begin
  perform private.require_columns('public.services', '{
    "id": "uuid", "client_id": "uuid", "name": "text", "category": "text", "description": "text", "area": "text", "keywords": "text",
    "price": "text", "contact_number": "text", "is_active": "boolean", "search": "tsvector", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
  select n.nspname into strict v_schema
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'pg_trgm';
  if not has_schema_privilege('service_role', v_schema, 'usage') then
    execute format('grant usage on schema %I to service_role', v_schema);
  end if;
  execute format('create index if not exists idx_services_name_trigrams on public.services using gin (name %I.gin_trgm_ops)', v_schema);
  -- The body names the extension's schema, which is not the same in every database.
  execute format($create$
create or replace function private.find_services(p_client_id uuid, p_query text, p_area text, p_category text, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $function$
declare
  -- A category alone is looked for as a word is.
  v_text text := coalesce(nullif(p_query, ''), p_category);
  v_query tsquery := websearch_to_tsquery('simple'::regconfig, replace(v_text, '-', ' '));
  v_any tsquery := replace(plainto_tsquery('simple'::regconfig, v_text)::text, ' & ', ' | ')::tsquery;
  v_found uuid[];
begin
  -- Each half finds its own index; with an `or` neither would.
  v_found := array(
    (select s.id from public.services s
      where s.search @@ v_any and s.client_id = p_client_id and s.is_active
            and (p_area is null or s.area is null or %1$I.word_similarity(p_area, s.area) >= 0.5)
            and (p_category is null or s.category is null or %1$I.word_similarity(p_category, s.category) >= 0.5)
      order by (s.search @@ v_query) desc, ts_rank(s.search, v_any) desc limit 100)
    union
    (select s.id from public.services s
      where v_text operator(%1$I.<%%) s.name and s.client_id = p_client_id and s.is_active
            and (p_area is null or s.area is null or %1$I.word_similarity(p_area, s.area) >= 0.5)
            and (p_category is null or s.category is null or %1$I.word_similarity(p_category, s.category) >= 0.5)
      order by %1$I.word_similarity(v_text, s.name) desc limit 100));
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', f.name, 'category', f.category, 'description', left(f.description, 300), 'area', f.area,
                                                 'price', f.price, 'contact_number', f.contact_number) order by f.score desc, f.name), '[]')
      from (
        select s.*, 4 * (s.search @@ v_query)::integer + 2 * ts_rank(s.search, v_any) + %1$I.word_similarity(v_text, s.name) as score
          from public.services s where s.id = any (v_found)
         order by score desc, s.name limit p_limit) f);
end
$function$
$create$, v_schema);
end
$$;
create index if not exists idx_services_client on public.services (client_id, name);
create index if not exists idx_services_search on public.services using gin (search);
comment on table public.services is 'What a client offers, as an agent may tell it. Operators write it.';
comment on column public.services.category is 'Such as housing, transport, health.';
comment on column public.services.area is 'Where it is offered; null: everywhere.';
comment on column public.services.keywords is 'Other words that people use for it, in any language.';
comment on column public.services.price is 'As it is to be told: a text.';
comment on column public.services.contact_number is 'E.164 or a short code that a caller may be given.';
comment on column public.services.description is 'At most 300 characters of it are read out.';
comment on column public.services.search is 'Words of name (A), category and keywords (B), area and description (C); language-neutral, for Kinyarwanda has no dictionary.';
comment on function private.find_services is
  'Services of a client that fit the words, the best first: all words before any word, and a name that is only nearly right still counts.';

drop trigger if exists services_touch on public.services;
create trigger services_touch before update on public.services for each row execute function private.touch_updated_at();
alter table public.services enable row level security;
drop policy if exists services_select on public.services;
create policy services_select on public.services for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.services from public, anon, authenticated;
grant select on public.services to authenticated;
grant select, insert, update, delete on public.services to service_role;
revoke execute on function private.find_services(uuid, text, text, text, integer) from public, anon, authenticated;
grant execute on function private.find_services(uuid, text, text, text, integer) to service_role;
