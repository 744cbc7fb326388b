-- 20261121018300_words_of_services.sql
-- A search among very many services is bounded: what is misspelt is looked for among the words that services have, which are few, and
-- not among the services themselves, where some words took seconds.
-- Safe to run again. Fills a new table from public.services once, which takes some seconds per 100,000 services, and takes the place of an
-- index of theirs. Undo: apply private.find_services and idx_services_spelling_trigrams of 20261121014000; drop the triggers, functions, table.
create table if not exists public.service_words (
  client_id uuid not null constraint service_words_client_id_fkey references public.clients (id) on delete cascade,
  word text not null,
  created_at timestamptz not null default now(),
  constraint service_words_pkey primary key (client_id, word),
  constraint service_words_word_is_a_word check (length(word) between 3 and 40)
);
do $$
begin
  perform private.require_columns('public.service_words', '{"client_id": "uuid", "word": "text", "created_at": "timestamp with time zone"}');
end
$$;
comment on table public.service_words is 'Words of names, categories and keywords of services, for searches that are misspelt. Words that no service has any more may stay.';
comment on column public.service_words.word is 'In lower case, without digits: numbers are not misspelt words of each other.';
alter table public.service_words enable row level security;
drop policy if exists service_words_select on public.service_words;
create policy service_words_select on public.service_words for select to authenticated using (false);
revoke all on public.service_words from public, anon, authenticated;
grant select, insert, update, delete on public.service_words to service_role;

create or replace function private.note_service_words() returns trigger
language plpgsql set search_path = '' as $$
begin
  -- In order, so that two writers wait for each other and do not lock each other out.
  insert into public.service_words (client_id, word)
  select distinct a.client_id, w.word
    from added a, lateral regexp_split_to_table(a.spelling, '[^[:alpha:]]+') w (word)
   where length(w.word) between 3 and 40 and a.client_id is not null
   order by 1, 2
  on conflict do nothing;
  return null;
end
$$;
comment on function private.note_service_words is 'Trigger: the words of services that were written.';
drop trigger if exists services_words_added on public.services;
create trigger services_words_added after insert on public.services referencing new table as added
  for each statement execute function private.note_service_words();
drop trigger if exists services_words_changed on public.services;
create trigger services_words_changed after update on public.services referencing new table as added
  for each statement execute function private.note_service_words();
insert into public.service_words (client_id, word)
select distinct s.client_id, w.word
  from public.services s, lateral regexp_split_to_table(s.spelling, '[^[:alpha:]]+') w (word)
 where length(w.word) between 3 and 40 and s.client_id is not null
on conflict do nothing;

do $$
declare
  v_schema name;
begin
  select n.nspname into strict v_schema
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'pg_trgm';
  execute format('create index if not exists idx_service_words_trigrams on public.service_words using gin (word %I.gin_trgm_ops)', v_schema);
  -- The bodies name the extension's schema, which is not the same in every database.
  execute format($create$
create or replace function private.find_services(p_client_id uuid, p_query text, p_area text, p_category text, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $function$
declare
  -- A category alone is looked for as a word is.
  v_text text := left(lower(coalesce(nullif(p_query, ''), p_category)), 200);
  v_query tsquery := websearch_to_tsquery('simple'::regconfig, replace(v_text, '-', ' '));
  -- Twelve words say what is meant; of a hundred each costs a look at all that have it.
  v_any tsquery := replace(plainto_tsquery('simple'::regconfig, (
    select coalesce(string_agg(w.w, ' ' order by w.at), '')
      from (select s.w, min(s.at) as at from regexp_split_to_table(v_text, '\s+') with ordinality s (w, at) where s.w <> '' group by s.w order by 2 limit 12) w))::text,
    ' & ', ' | ')::tsquery;
  v_place public.places := private.find_place(p_area);
  -- A place that is named among the words is preferred; only one that is asked for leaves others out.
  v_meant integer := coalesce(v_place.id, (private.find_place(p_query, 0.6)).id);
  v_near integer[] := private.places_near(v_meant);
  -- Words that services have and that are nearly those asked for.
  v_like text[];
  v_nearly tsquery;
  v_found uuid[];
begin
  -- One letter that is missing in a word of seven leaves 0.4 of it.
  perform set_config('pg_trgm.similarity_threshold', '0.4', true);
  v_like := array(
    select k.word
      from (select distinct w.w from regexp_split_to_table(v_text, '[^[:alnum:]]+') w (w) where length(w.w) between 3 and 24 limit 8) asked, lateral (
             select n.word from public.service_words n
              where n.client_id = p_client_id and n.word operator(%1$I.%%) asked.w
              order by %1$I.similarity(n.word, asked.w) desc, n.word limit 4) k);
  if v_like <> '{}' then
    v_nearly := replace(plainto_tsquery('simple'::regconfig, array_to_string(v_like, ' '))::text, ' & ', ' | ')::tsquery;
  end if;
  -- Each part finds its own index; with an `or` none would. What everything matches is not ranked as a whole.
  v_found := array(
    select x.id from (
      (select s.id from public.services s
        where s.search @@ v_query and s.client_id = p_client_id and s.is_active
              and (p_area is null or s.place_id = any (v_near) or s.place_id is null and (s.area is null or %1$I.word_similarity(p_area, s.area) >= 0.5))
              and (p_category is null or s.category is null or %1$I.word_similarity(p_category, s.category) >= 0.5)
        limit 300)
      union
      (select s.id from public.services s
        where s.search @@ v_any and s.client_id = p_client_id and s.is_active
              and (p_area is null or s.place_id = any (v_near) or s.place_id is null and (s.area is null or %1$I.word_similarity(p_area, s.area) >= 0.5))
              and (p_category is null or s.category is null or %1$I.word_similarity(p_category, s.category) >= 0.5)
        limit 300)
      union
      -- A word that everything nearly has says nothing: no more than a thousand are looked at for it.
      (select n.id
         from (select s.id, s.category from public.services s
                where s.search @@ v_nearly and s.client_id = p_client_id and s.is_active
                      and (p_area is null or s.place_id = any (v_near) or s.place_id is null and (s.area is null or %1$I.word_similarity(p_area, s.area) >= 0.5))
                limit 1000) n
        where p_category is null or n.category is null or %1$I.word_similarity(p_category, n.category) >= 0.5
        limit 300)) x);
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', f.name, 'category', f.category, 'description', left(f.description, 300), 'area', f.area,
                                                 'price', f.price, 'contact_number', f.contact_number) order by f.score desc, f.name), '[]')
      from (
        select s.*, 4 * (s.search @@ v_query)::integer + 2 * ts_rank(s.search, v_any) + %1$I.word_similarity(v_text, s.spelling)
                      + case when v_meant is not null and s.place_id = any (v_near) then 1 + (s.place_id = v_meant)::integer else 0 end as score
          from public.services s where s.id = any (v_found)
         order by score desc, s.name limit p_limit) f);
end
$function$
$create$, v_schema);
end
$$;
drop index if exists public.idx_services_spelling_trigrams;
revoke execute on function private.note_service_words() from public, anon, authenticated;
grant execute on function private.note_service_words() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018300'::text $$;

notify pgrst, 'reload schema';
