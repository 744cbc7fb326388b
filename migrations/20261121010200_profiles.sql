-- 20261121010200_profiles.sql
-- People, whichever channel they come by. An existing table `profiles` is extended, not replaced.
-- Safe to run again. Locks profiles briefly (add column with constant defaults; one index each where missing).
-- Undo: drop profile_identities and the columns added here; the rows of people stay.
create table if not exists public.profiles (
  id uuid constraint profiles_pkey primary key default gen_random_uuid()
);
alter table public.profiles add column if not exists id uuid not null default gen_random_uuid();
alter table public.profiles add column if not exists user_id uuid;
alter table public.profiles add column if not exists phone_number text;
alter table public.profiles add column if not exists display_name text;
alter table public.profiles add column if not exists whatsapp_jid text;
alter table public.profiles add column if not exists has_whatsapp boolean not null default false;
alter table public.profiles add column if not exists has_whatsapp_source text;
alter table public.profiles add column if not exists has_whatsapp_at timestamptz;
alter table public.profiles add column if not exists allows_sms boolean not null default true;
alter table public.profiles add column if not exists allows_sms_source text;
alter table public.profiles add column if not exists allows_sms_at timestamptz;
alter table public.profiles add column if not exists last_active_channel text;
alter table public.profiles add column if not exists notification_preferences jsonb not null default '{}';
alter table public.profiles add column if not exists locale text;
alter table public.profiles add column if not exists last_whatsapp_inbound_at timestamptz;
alter table public.profiles add column if not exists created_at timestamptz not null default now();
alter table public.profiles add column if not exists updated_at timestamptz not null default now();

do $$
declare
  v_key name;
begin
  perform private.require_columns('public.profiles', '{
    "id": "uuid", "user_id": "uuid", "phone_number": "text", "display_name": "text", "whatsapp_jid": "text",
    "has_whatsapp": "boolean", "has_whatsapp_source": "text", "has_whatsapp_at": "timestamp with time zone",
    "allows_sms": "boolean", "allows_sms_source": "text", "allows_sms_at": "timestamp with time zone",
    "last_active_channel": "text", "notification_preferences": "jsonb", "locale": "text",
    "last_whatsapp_inbound_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');

  -- A person who only ever sent an SMS has no account, so an id that must be one of auth.users cannot hold them.
  if exists (
    select from pg_catalog.pg_constraint c
     where c.conrelid = 'public.profiles'::regclass and c.contype = 'f' and c.confrelid = to_regclass('auth.users')
       and c.conkey = array[(select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'id')]
  ) then
    raise exception 'profiles.id refers to auth.users, but most people who call have no account'
      using hint = 'Move that reference to profiles.user_id and drop the foreign key of profiles.id, then apply the migration again.';
  end if;
  -- An older table may have the account as its key. It stays unique, but people without one come in as well.
  alter table public.profiles alter column phone_number drop not null;
  if (select attnotnull and (not atthasdef or exists (
        select from pg_catalog.pg_constraint f
         where f.conrelid = a.attrelid and f.contype = 'f' and f.conkey = array[a.attnum] and f.confrelid = to_regclass('auth.users')))
        from pg_catalog.pg_attribute a where a.attrelid = 'public.profiles'::regclass and a.attname = 'user_id') then
    select c.conname into v_key from pg_catalog.pg_constraint c
     where c.conrelid = 'public.profiles'::regclass and c.contype = 'p'
       and (select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'user_id') = any (c.conkey);
    if v_key is not null then
      if exists (select from pg_catalog.pg_constraint f where f.contype = 'f' and f.confrelid = 'public.profiles'::regclass) then
        raise exception 'profiles has user_id as its primary key, other tables refer to it, and most people who call have no account'
          using hint = 'Let those tables refer to a unique constraint of user_id instead of the primary key, drop the primary key, then apply the migration again.';
      end if;
      execute format('alter table public.profiles drop constraint %I', v_key);
      alter table public.profiles add constraint profiles_pkey primary key (id);
    end if;
    alter table public.profiles alter column user_id drop not null;
  end if;
  perform private.require_insertable('public.profiles', array['id', 'phone_number']);

  if (select atthasdef from pg_catalog.pg_attribute where attrelid = 'public.profiles'::regclass and attname = 'id') is not true then
    alter table public.profiles alter column id set default gen_random_uuid();
  end if;

  -- Foreign keys need a unique constraint on id, whichever name it has and whatever the primary key of an older table is.
  if not exists (
    select from pg_catalog.pg_constraint c
     where c.conrelid = 'public.profiles'::regclass and c.contype in ('p', 'u')
       and c.conkey = array[(select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'id')]
  ) then
    alter table public.profiles add constraint profiles_id_key unique (id);
  end if;
  if not exists (
    select from pg_catalog.pg_constraint c
     where c.conrelid = 'public.profiles'::regclass and c.contype = 'u'
       and c.conkey = array[(select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'phone_number')]
  ) then
    alter table public.profiles add constraint profiles_phone_number_key unique (phone_number);
  end if;
  -- not valid: rows of an older table may hold other spellings; new and changed rows may not.
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.profiles'::regclass and conname = 'profiles_phone_number_is_e164') then
    alter table public.profiles add constraint profiles_phone_number_is_e164 check (private.is_e164(phone_number)) not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.profiles'::regclass and conname = 'profiles_last_active_channel_is_known') then
    alter table public.profiles add constraint profiles_last_active_channel_is_known
      check (last_active_channel in ('voice', 'whatsapp', 'sms')) not valid;
  end if;
  -- A number that is not E.164 is not matched until it is rewritten.
  perform private.validate_where_kept('public.profiles', '{profiles_phone_number_is_e164, profiles_last_active_channel_is_known}');
end
$$;
create unique index if not exists idx_profiles_user on public.profiles (user_id) where user_id is not null;

comment on table public.profiles is 'A person, known by phone number, WhatsApp or account. Global: sessions, messages and calls carry the client.';
comment on column public.profiles.user_id is 'The account (auth.users.id) of a person who signed in; null for most.';
comment on column public.profiles.phone_number is 'E.164. Null for a WhatsApp sender who shares no number.';
comment on column public.profiles.has_whatsapp is 'Newest evidence, for or against; read it with its date (private.whatsapp_evidence), the Cloud API cannot be asked.';
comment on column public.profiles.has_whatsapp_source is 'Where the evidence is from: inbound, delivered, not_on_whatsapp, ... Null with has_whatsapp false: nothing is known.';
comment on column public.profiles.allows_sms is 'False after STOP, or when a provider says the person opted out.';
comment on column public.profiles.allows_sms_source is 'Who changed allows_sms last: keyword, provider, preference; allows_sms_at says when.';
comment on column public.profiles.last_whatsapp_inbound_at is 'Opens Meta''s 24-hour window: the person''s last message or WhatsApp call to us.';
comment on column public.profiles.whatsapp_jid is 'Name in WhatsApp''s own network (<digits>@s.whatsapp.net), where an older system knew it.';
comment on column public.profiles.notification_preferences is '{policy: both | sms_only | whatsapp_only | none, mirror_replies}; a missing key: the client''s default.';
comment on column public.profiles.last_active_channel is 'Where the person last spoke: voice, whatsapp, sms.';

create table if not exists public.profile_identities (
  id uuid constraint profile_identities_pkey primary key default gen_random_uuid(),
  profile_id uuid not null constraint profile_identities_profile_id_fkey references public.profiles (id) on delete cascade,
  kind text not null,
  value text not null,
  created_at timestamptz not null default now(),
  constraint profile_identities_kind_is_known check (kind in ('phone', 'whatsapp_phone', 'whatsapp_user_id', 'whatsapp_jid')),
  constraint profile_identities_kind_value_key unique (kind, value)
);
do $$
begin
  perform private.require_columns('public.profile_identities', '{
    "id": "uuid", "profile_id": "uuid", "kind": "text", "value": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_profile_identities_profile on public.profile_identities (profile_id);
comment on table public.profile_identities is 'Every name a channel knows a person by. A WhatsApp sender may have no phone number.';
comment on column public.profile_identities.value is 'phone: E.164; whatsapp_phone: digits without plus (wa_id); whatsapp_user_id: business-scoped id; whatsapp_jid: as received.';
comment on column public.profile_identities.kind is 'phone, whatsapp_phone, whatsapp_user_id, whatsapp_jid; see value.';

create or replace function private.my_profile_ids() returns setof uuid
language sql stable security definer set search_path = '' as $$
  select id from public.profiles where user_id = (select auth.uid())
$$;
comment on function private.my_profile_ids is
  'Profiles of the signed-in user. Security definer: policies use it, and must not run the policies of profiles inside.';

create or replace function private.whatsapp_evidence(p_has boolean, p_source text, p_at timestamptz, p_now timestamptz) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case
    when p_has and (p_at is null or p_at > p_now - interval '180 days') then 'yes'
    when not p_has and p_source is not null and p_at > p_now - interval '30 days' then 'no'
    else 'unknown' end;
end
$$;
comment on function private.whatsapp_evidence is
  'yes, no or unknown. Evidence decays: 180 days for, 30 days against (people install it; a number changes hands).';

create or replace function private.profile_of_phone(p_phone text) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(
      (select id from public.profiles where phone_number = p_phone),
      (select profile_id from public.profile_identities where kind = 'phone' and value = p_phone)));
end
$$;
comment on function private.profile_of_phone is 'The profile that a number belongs to, or null.';

create or replace function private.ensure_profile(p_phone text) returns uuid
language plpgsql set search_path = '' as $$
declare
  v_id uuid := private.profile_of_phone(p_phone);
begin
  if v_id is not null then
    return v_id;
  end if;
  -- Insert first: of many at once one wins, the others wait here and then find its row.
  insert into public.profiles (phone_number) values (p_phone)
  on conflict (phone_number) do nothing
  returning id into v_id;
  if v_id is null then
    select id into strict v_id from public.profiles where phone_number = p_phone;
  end if;
  insert into public.profile_identities (profile_id, kind, value) values (v_id, 'phone', p_phone)
  on conflict (kind, value) do nothing;
  return v_id;
end
$$;
comment on function private.ensure_profile is 'The profile of a number, created if there is none. Locks no existing profile row.';

drop trigger if exists profiles_touch on public.profiles;
create trigger profiles_touch before update on public.profiles for each row execute function private.touch_updated_at();

-- profiles' select policy is in the sessions' migration: a client''s member sees the people it talks with.
alter table public.profiles enable row level security;
alter table public.profile_identities enable row level security;
drop policy if exists profile_identities_select on public.profile_identities;
create policy profile_identities_select on public.profile_identities for select to authenticated
  using (profile_id in (select private.my_profile_ids()));

revoke all on public.profiles, public.profile_identities from public, anon, authenticated;
grant select on public.profiles, public.profile_identities to authenticated;
grant select, insert, update, delete on public.profiles, public.profile_identities to service_role;
revoke execute on function private.my_profile_ids(), private.whatsapp_evidence(boolean, text, timestamptz, timestamptz),
  private.profile_of_phone(text), private.ensure_profile(text) from public, anon, authenticated;
grant execute on function private.my_profile_ids(), private.whatsapp_evidence(boolean, text, timestamptz, timestamptz),
  private.profile_of_phone(text), private.ensure_profile(text) to service_role;
grant execute on function private.my_profile_ids() to authenticated;
