-- 20261121010100_clients.sql
-- The tenants, who may look at them, and the numbers that tell whose conversation a message belongs to.
-- Safe to run again. Locks only new tables. Undo: drop the three tables (after everything that refers to them).
create table if not exists public.clients (
  id uuid constraint clients_pkey primary key default gen_random_uuid(),
  slug text not null constraint clients_slug_key unique,
  brand text not null,
  sms_sender_id text,
  sms_service_code text,
  contact_number text,
  default_locale text not null default 'en',
  default_policy text not null default 'both',
  mirror_replies boolean not null default false,
  is_default boolean not null default false,
  settings jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint clients_slug_is_lower_case check (slug ~ '^[a-z0-9][a-z0-9-]*$'),
  constraint clients_default_policy_is_known check (default_policy in ('both', 'sms_only', 'whatsapp_only', 'none')),
  constraint clients_sms_sender_id_has_at_most_11_characters check (length(sms_sender_id) <= 11),
  constraint clients_settings_is_object check (jsonb_typeof(settings) = 'object')
);
do $$
begin
  perform private.require_columns('public.clients', '{
    "id": "uuid", "slug": "text", "brand": "text", "sms_sender_id": "text", "sms_service_code": "text", "contact_number": "text",
    "default_locale": "text", "default_policy": "text", "mirror_replies": "boolean", "is_default": "boolean", "settings": "jsonb",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists clients_one_default on public.clients (is_default) where is_default;
comment on table public.clients is 'A client is the tenant: whose numbers, sender names, conversations and costs these are.';
comment on column public.clients.brand is 'Name that texts are signed with.';
comment on column public.clients.sms_sender_id is 'Alphanumeric SMS sender (at most 11 characters); one-way. Null: the setting MTN_SMS_SENDER_ID.';
comment on column public.clients.sms_service_code is 'Short code or number that people can answer by SMS. Null: the setting MTN_SMS_SERVICE_CODE, or replies are not promised.';
comment on column public.clients.contact_number is 'Number that HELP names, E.164 or a short code; null: HELP names none.';
comment on column public.clients.default_policy is 'Which channels carry a message where the profile has no wish of its own (notification_preferences.policy).';
comment on column public.clients.mirror_replies is 'Answer an SMS on WhatsApp as well; off, because the same answer twice costs money and confuses.';
comment on column public.clients.is_default is 'The client of numbers that are not in client_numbers; exactly one.';
comment on column public.clients.settings is 'Rarely used: sms_provider names another provider than MTN.';

insert into public.clients (slug, brand, sms_sender_id, default_locale, default_policy, mirror_replies, is_default)
select 'easymo', 'EasyMO', 'EasyMO', 'en', 'both', false, true
 where not exists (select from public.clients where is_default)
on conflict (slug) do nothing;

create table if not exists public.client_members (
  client_id uuid not null constraint client_members_client_id_fkey references public.clients (id) on delete cascade,
  user_id uuid not null,
  role text not null default 'viewer',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint client_members_pkey primary key (client_id, user_id),
  constraint client_members_role_is_known check (role in ('owner', 'admin', 'agent', 'viewer'))
);
do $$
begin
  perform private.require_columns('public.client_members', '{
    "client_id": "uuid", "user_id": "uuid", "role": "text", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_client_members_user on public.client_members (user_id);
comment on table public.client_members is 'Which users (auth.users.id) may see a client''s rows.';

create table if not exists public.client_numbers (
  id uuid constraint client_numbers_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint client_numbers_client_id_fkey references public.clients (id) on delete cascade,
  channel text not null,
  address text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint client_numbers_channel_is_known check (channel in ('voice', 'sms', 'whatsapp')),
  constraint client_numbers_channel_address_key unique (channel, address)
);
do $$
begin
  perform private.require_columns('public.client_numbers', '{
    "id": "uuid", "client_id": "uuid", "channel": "text", "address": "text", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_client_numbers_client on public.client_numbers (client_id);
comment on table public.client_numbers is 'The address a message or call came to determines the client; an address not listed belongs to the default client.';
comment on column public.client_numbers.address is 'E.164 number, short code, sender name, or WhatsApp phone number id.';

create or replace function private.default_client_id() returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return (
    select id from public.clients where is_default);
end
$$;
comment on function private.default_client_id is 'The client of everything that names no other.';

create or replace function private.client_of_address(p_channel text, p_address text) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(
      (select client_id from public.client_numbers where channel = p_channel and address = p_address),
      private.default_client_id()));
end
$$;
comment on function private.client_of_address is 'Whose number this is; the default client''s when it is not listed.';

create or replace function private.my_client_ids() returns setof uuid
language sql stable security definer set search_path = '' as $$
  select client_id from public.client_members where user_id = (select auth.uid())
$$;
comment on function private.my_client_ids is
  'Clients of the signed-in user. Security definer: policies of client_members itself use it, and would else call themselves.';

drop trigger if exists clients_touch on public.clients;
create trigger clients_touch before update on public.clients for each row execute function private.touch_updated_at();
drop trigger if exists client_members_touch on public.client_members;
create trigger client_members_touch before update on public.client_members for each row execute function private.touch_updated_at();
drop trigger if exists client_numbers_touch on public.client_numbers;
create trigger client_numbers_touch before update on public.client_numbers for each row execute function private.touch_updated_at();

alter table public.clients enable row level security;
alter table public.client_members enable row level security;
alter table public.client_numbers enable row level security;
drop policy if exists clients_select on public.clients;
create policy clients_select on public.clients for select to authenticated
  using (id in (select private.my_client_ids()));
drop policy if exists client_members_select on public.client_members;
create policy client_members_select on public.client_members for select to authenticated
  using (user_id = (select auth.uid()) or client_id in (select private.my_client_ids()));
drop policy if exists client_numbers_select on public.client_numbers;
create policy client_numbers_select on public.client_numbers for select to authenticated
  using (client_id in (select private.my_client_ids()));

revoke all on public.clients, public.client_members, public.client_numbers from public, anon, authenticated;
grant select on public.clients, public.client_members, public.client_numbers to authenticated;
grant select, insert, update, delete on public.clients, public.client_members, public.client_numbers to service_role;
revoke execute on function private.default_client_id(), private.client_of_address(text, text), private.my_client_ids() from public, anon, authenticated;
grant execute on function private.default_client_id(), private.client_of_address(text, text), private.my_client_ids() to service_role;
grant execute on function private.my_client_ids() to authenticated;
