-- 20261121012402_message_templates.sql
-- Templates of WhatsApp as Meta judges them: which are approved in which languages, and what they are paid for as.
-- Safe to run again. Locks only a new table. Undo: apply client_json of 20261121012400 again; drop the functions and the table.
create table if not exists public.message_templates (
  id uuid constraint message_templates_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint message_templates_client_id_fkey references public.clients (id) on delete cascade,
  name text not null,
  language text not null,
  status text,
  status_at timestamptz,
  category text,
  previous_category text,
  category_at timestamptz,
  quality text,
  quality_at timestamptz,
  source text not null default 'operator',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint message_templates_client_id_name_language_key unique (client_id, name, language),
  constraint message_templates_name_is_a_name check (name ~ '^[a-z0-9_]+$' and length(name) <= 512),
  constraint message_templates_language_is_a_code check (language ~ '^[A-Za-z0-9_]{2,16}$'),
  constraint message_templates_status_is_a_word check (status ~ '^[a-z0-9_]{1,40}$'),
  constraint message_templates_category_is_a_word check (category ~ '^[a-z0-9_]{1,40}$'),
  constraint message_templates_quality_is_a_word check (quality ~ '^[a-z0-9_]{1,40}$'),
  constraint message_templates_source_is_known check (source in ('operator', 'webhook'))
);
do $$
begin
  perform private.require_columns('public.message_templates', '{
    "id": "uuid", "client_id": "uuid", "name": "text", "language": "text", "status": "text", "status_at": "timestamp with time zone",
    "category": "text", "previous_category": "text", "category_at": "timestamp with time zone", "quality": "text",
    "quality_at": "timestamp with time zone", "source": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.message_templates is
  'WhatsApp templates in each language, as Meta last spoke of them, or as an operator wrote. Where it has no status for one, the setting WHATSAPP_TEMPLATE_LANGUAGES counts.';
comment on column public.message_templates.name is 'As at Meta.';
comment on column public.message_templates.language is 'Meta''s code as it is sent: en, fr, rw_RW, sw.';
comment on column public.message_templates.status is
  'Meta''s word in lower case. Sent only when approved, reinstated, unarchived or flagged; not when paused, rejected, disabled, pending ... Null: nobody said.';
comment on column public.message_templates.status_at is 'When Meta said so; an older word changes nothing.';
comment on column public.message_templates.category is 'What it is paid for as: utility, marketing, authentication.';
comment on column public.message_templates.previous_category is 'What it was before Meta changed it.';
comment on column public.message_templates.category_at is 'When Meta said so.';
comment on column public.message_templates.quality is 'green, yellow, red or unknown; red comes before paused.';
comment on column public.message_templates.quality_at is 'When Meta said so.';
comment on column public.message_templates.source is 'Who wrote last: operator, webhook.';

drop trigger if exists message_templates_touch on public.message_templates;
create trigger message_templates_touch before update on public.message_templates for each row execute function private.touch_updated_at();
alter table public.message_templates enable row level security;
drop policy if exists message_templates_select on public.message_templates;
create policy message_templates_select on public.message_templates for select to authenticated
  using (client_id in (select private.my_client_ids()));
revoke all on public.message_templates from public, anon, authenticated;
grant select on public.message_templates to authenticated;
grant select, insert, update, delete on public.message_templates to service_role;

create or replace function private.templates_of(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object('name', x.name, 'language', x.language, 'category', x.category, 'status', x.status) order by x.name, x.language)
      from (
        select t.name, t.language, t.category, t.status
          from public.message_templates t
         where t.client_id = p_client_id
            -- One account may send for several clients: what is said of it counts for all that have no row of their own.
            or (t.client_id = private.default_client_id() and not exists (
                  select from public.message_templates o where o.client_id = p_client_id and o.name = t.name and o.language = t.language))
         -- A claim stays small. Whatever Meta spoke of last is among them.
         order by t.updated_at desc limit 100
      ) x), '[]');
end
$$;
comment on function private.templates_of is 'Templates that a client''s messages may be sent by, those that changed last first, a hundred at most.';

create or replace function private.client_json(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', c.id, 'slug', c.slug, 'brand', c.brand, 'sms_sender_id', c.sms_sender_id, 'sms_service_code', c.sms_service_code,
      'contact_number', c.contact_number,
      'default_locale', c.default_locale, 'default_policy', c.default_policy, 'mirror_replies', c.mirror_replies, 'settings', c.settings,
      'prices', private.prices_in_force(c.id),
      'templates', private.templates_of(c.id))
      from public.clients c where c.id = p_client_id);
end
$$;

create or replace function private.is_newer(p_at timestamptz, p_word text, p_known_at timestamptz, p_known text) returns boolean
language sql immutable parallel safe set search_path = '' as $$
  -- Of two words of one second the one that stops a template counts, then the later in the alphabet: the same in any order.
  select p_word is not null and (p_known is null or p_known_at is null
    or (p_at, p_word <> 'approved', p_word) > (p_known_at, p_known <> 'approved', p_known))
$$;
comment on function private.is_newer is 'Whether a word of this time counts over the one that is known.';

create or replace function public.record_template_updates(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_update jsonb;
  v_client_id uuid;
  v_at timestamptz;
  v_row public.message_templates;
  v_old public.message_templates;
  v_key text;
  v_ids uuid[] := '{}';
begin
  -- In one order whoever comes: two webhooks about the same templates wait for each other once.
  for v_update in
    select e.value from jsonb_array_elements(coalesce(nullif(p -> 'updates', 'null'), '[]')) with ordinality as e (value, n)
     order by e.value ->> 'name', e.value ->> 'language', e.value ->> 'account', e.value ->> 'occurred_at', e.n
  loop
    v_client_id := private.client_of_address('whatsapp', v_update ->> 'account');
    v_at := least(coalesce((v_update ->> 'occurred_at')::timestamptz, v_now), v_now);
    insert into public.message_templates (client_id, name, language, source)
    values (v_client_id, private.required(v_update, 'name'), private.required(v_update, 'language'), 'webhook')
    on conflict (client_id, name, language) do nothing;
    select * into strict v_old from public.message_templates t
     where t.client_id = v_client_id and t.name = v_update ->> 'name' and t.language = v_update ->> 'language' for no key update;
    v_row := v_old;
    if private.is_newer(v_at, v_update ->> 'status', v_old.status_at, v_old.status) then
      v_row.status := v_update ->> 'status';
      v_row.status_at := v_at;
    end if;
    if private.is_newer(v_at, v_update ->> 'category', v_old.category_at, v_old.category) then
      v_row.category := v_update ->> 'category';
      v_row.category_at := v_at;
      v_row.previous_category := case
        when v_update ->> 'previous_category' <> v_row.category then v_update ->> 'previous_category'
        when v_old.category <> v_row.category then v_old.category
        else v_old.previous_category end;
    end if;
    if private.is_newer(v_at, v_update ->> 'quality', v_old.quality_at, v_old.quality) then
      v_row.quality := v_update ->> 'quality';
      v_row.quality_at := v_at;
    end if;
    v_ids := v_ids || v_old.id;
    v_key := v_client_id || ':' || v_row.name || ':' || v_row.language;

    if v_row.category_at is distinct from v_old.category_at
       and coalesce(v_update ->> 'previous_category', v_old.category) <> v_row.category then
      perform private.raise_alert('template_category', 'warning', 'template_category:' || v_key || ':' || v_row.category,
        format('Meta files the template %s (%s) under %s now, no longer under %s: each message has another price.',
          v_row.name, v_row.language, v_row.category, coalesce(v_row.previous_category, 'another category')),
        jsonb_build_object('name', v_row.name, 'language', v_row.language, 'category', v_row.category, 'previous_category', v_row.previous_category),
        v_client_id);
    end if;
    if v_row.category_at is not distinct from v_at and v_update ->> 'coming_category' <> v_row.category
       and v_row.category_at is distinct from v_old.category_at then
      perform private.raise_alert('template_category', 'warning', 'template_category:' || v_key || ':' || (v_update ->> 'coming_category'),
        format('Meta will file the template %s (%s) under %s in a day: each message will have another price.',
          v_row.name, v_row.language, v_update ->> 'coming_category'),
        jsonb_build_object('name', v_row.name, 'language', v_row.language, 'category', v_row.category, 'coming_category', v_update ->> 'coming_category'),
        v_client_id);
    end if;
    if v_row.status_at is distinct from v_old.status_at and v_row.status in ('paused', 'rejected', 'disabled', 'flagged', 'deleted', 'pending_deletion') then
      perform private.raise_alert('template_status', 'warning', 'template_status:' || v_key,
        format('Meta says that the template %s (%s) is %s.', v_row.name, v_row.language, v_row.status),
        jsonb_build_object('name', v_row.name, 'language', v_row.language, 'status', v_row.status), v_client_id);
    elsif v_row.status_at is distinct from v_old.status_at and v_row.status in ('approved', 'reinstated') then
      update public.alerts a set resolved_at = v_now where a.dedupe_key = 'template_status:' || v_key and a.resolved_at is null;
    end if;
    if v_row.quality_at is distinct from v_old.quality_at and v_row.quality = 'red' then
      perform private.raise_alert('template_quality', 'warning', 'template_quality:' || v_key,
        format('People block or report the template %s (%s): Meta is about to pause it.', v_row.name, v_row.language),
        jsonb_build_object('name', v_row.name, 'language', v_row.language), v_client_id);
    end if;

    if v_row is distinct from v_old then
      update public.message_templates t
         set status = v_row.status, status_at = v_row.status_at, category = v_row.category, previous_category = v_row.previous_category,
             category_at = v_row.category_at, quality = v_row.quality, quality_at = v_row.quality_at, source = 'webhook'
       where t.id = v_old.id;
    end if;
  end loop;
  return jsonb_build_object('templates', coalesce((
    select jsonb_agg(jsonb_build_object('name', t.name, 'language', t.language, 'status', t.status, 'category', t.category,
             'previous_category', t.previous_category, 'quality', t.quality) order by t.name, t.language)
      from public.message_templates t where t.id = any (v_ids)), '[]'));
end
$$;
comment on function public.record_template_updates is
  'RPC: keeps what Meta tells of templates, in any order and any number of times; of status, category and quality the newest counts. A changed category raises an alert.';

revoke execute on function public.record_template_updates(jsonb), private.templates_of(uuid),
  private.is_newer(timestamptz, text, timestamptz, text) from public, anon, authenticated;
grant execute on function public.record_template_updates(jsonb), private.templates_of(uuid),
  private.is_newer(timestamptz, text, timestamptz, text) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012402'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
