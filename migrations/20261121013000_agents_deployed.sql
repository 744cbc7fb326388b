-- 20261121013000_agents_deployed.sql
-- Who sends and calls in a client's name: kinds of agents, their deployments, the people they reach for and the sequences they follow.
-- Tables of these names that are there already are extended.
-- Safe to run again. Locks client_numbers and clients for a moment. Undo: drop the trigger, the column of client_numbers and the four tables.
create table if not exists public.agent_types (
  id uuid constraint agent_types_pkey primary key default gen_random_uuid()
);
alter table public.agent_types add column if not exists name text;
alter table public.agent_types add column if not exists display_name text;
alter table public.agent_types add column if not exists created_at timestamptz not null default now();
alter table public.agent_types add column if not exists updated_at timestamptz not null default now();

create table if not exists public.agent_deployments (
  id uuid constraint agent_deployments_pkey primary key default gen_random_uuid()
);
alter table public.agent_deployments add column if not exists client_id uuid;
alter table public.agent_deployments add column if not exists agent_type_id uuid;
alter table public.agent_deployments add column if not exists agent_id uuid;
alter table public.agent_deployments add column if not exists name text;
alter table public.agent_deployments add column if not exists status text not null default 'active';
alter table public.agent_deployments add column if not exists is_default boolean not null default false;
alter table public.agent_deployments add column if not exists created_at timestamptz not null default now();
alter table public.agent_deployments add column if not exists updated_at timestamptz not null default now();

create table if not exists public.prospects (
  id uuid constraint prospects_pkey primary key default gen_random_uuid()
);
alter table public.prospects add column if not exists client_id uuid;
alter table public.prospects add column if not exists profile_id uuid;
alter table public.prospects add column if not exists phone_number text;
alter table public.prospects add column if not exists full_name text;
alter table public.prospects add column if not exists status text not null default 'new';
alter table public.prospects add column if not exists metadata jsonb not null default '{}';
alter table public.prospects add column if not exists created_at timestamptz not null default now();
alter table public.prospects add column if not exists updated_at timestamptz not null default now();

create table if not exists public.sequences (
  id uuid constraint sequences_pkey primary key default gen_random_uuid()
);
alter table public.sequences add column if not exists client_id uuid;
alter table public.sequences add column if not exists deployment_id uuid;
alter table public.sequences add column if not exists name text;
alter table public.sequences add column if not exists status text not null default 'active';
alter table public.sequences add column if not exists created_at timestamptz not null default now();
alter table public.sequences add column if not exists updated_at timestamptz not null default now();

alter table public.client_numbers add column if not exists deployment_id uuid;

do $$
declare
  v_rule record;
begin
  perform private.require_columns('public.agent_types', '{
    "id": "uuid", "name": "text", "display_name": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.agent_deployments', '{
    "id": "uuid", "client_id": "uuid", "agent_type_id": "uuid", "agent_id": "uuid", "name": "text", "status": "text", "is_default": "boolean",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.prospects', '{
    "id": "uuid", "client_id": "uuid", "profile_id": "uuid", "phone_number": "text", "full_name": "text", "status": "text", "metadata": "jsonb",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.sequences', '{
    "id": "uuid", "client_id": "uuid", "deployment_id": "uuid", "name": "text", "status": "text", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.client_numbers', '{"deployment_id": "uuid"}');
  -- What a database of before says of nobody belongs to the default client.
  update public.agent_deployments set client_id = private.default_client_id() where client_id is null;
  update public.prospects set client_id = private.default_client_id() where client_id is null;
  update public.sequences set client_id = private.default_client_id() where client_id is null;
  update public.agent_types set name = 'type-' || left(id::text, 8) where name is null;
  update public.agent_deployments set name = 'deployment-' || left(id::text, 8) where name is null;
  update public.sequences set name = 'sequence-' || left(id::text, 8) where name is null;
  alter table public.agent_types alter column name set not null;
  alter table public.agent_deployments alter column client_id set not null, alter column name set not null;
  alter table public.prospects alter column client_id set not null;
  alter table public.sequences alter column client_id set not null, alter column name set not null;
  for v_rule in
    select * from (values
      ('agent_types', 'agent_types_name_key', 'unique (name)'),
      ('agent_types', 'agent_types_name_is_lower_case', 'check (name ~ ''^[a-z0-9][a-z0-9_-]*$'') not valid'),
      ('agent_deployments', 'agent_deployments_client_id_name_key', 'unique (client_id, name)'),
      ('agent_deployments', 'agent_deployments_client_id_fkey', 'foreign key (client_id) references public.clients (id) not valid'),
      ('agent_deployments', 'agent_deployments_agent_type_id_fkey', 'foreign key (agent_type_id) references public.agent_types (id) not valid'),
      ('agent_deployments', 'agent_deployments_agent_id_fkey', 'foreign key (agent_id) references public.ai_agents (id) on delete set null not valid'),
      ('agent_deployments', 'agent_deployments_status_is_known', 'check (status in (''active'', ''paused'', ''retired'')) not valid'),
      ('prospects', 'prospects_client_id_phone_number_key', 'unique (client_id, phone_number)'),
      ('prospects', 'prospects_client_id_fkey', 'foreign key (client_id) references public.clients (id) not valid'),
      ('prospects', 'prospects_profile_id_fkey', 'foreign key (profile_id) references public.profiles (id) on delete set null not valid'),
      ('prospects', 'prospects_phone_number_is_e164', 'check (private.is_e164(phone_number)) not valid'),
      ('prospects', 'prospects_metadata_is_object', 'check (jsonb_typeof(metadata) = ''object'') not valid'),
      ('sequences', 'sequences_client_id_name_key', 'unique (client_id, name)'),
      ('sequences', 'sequences_client_id_fkey', 'foreign key (client_id) references public.clients (id) not valid'),
      ('sequences', 'sequences_deployment_id_fkey', 'foreign key (deployment_id) references public.agent_deployments (id) on delete set null not valid'),
      ('client_numbers', 'client_numbers_deployment_id_fkey',
       'foreign key (deployment_id) references public.agent_deployments (id) on delete set null not valid')
    ) x (relation, name, rule)
  loop
    if not exists (select from pg_catalog.pg_constraint where conrelid = format('public.%I', v_rule.relation)::regclass and conname = v_rule.name) then
      execute format('alter table public.%I add constraint %I %s', v_rule.relation, v_rule.name, v_rule.rule);
    end if;
    perform private.validate_where_kept(format('public.%I', v_rule.relation)::regclass, array[v_rule.name]);
  end loop;
end
$$;
create unique index if not exists agent_deployments_one_default on public.agent_deployments (client_id) where is_default;
create index if not exists idx_agent_deployments_type on public.agent_deployments (agent_type_id);
create index if not exists idx_agent_deployments_agent on public.agent_deployments (agent_id) where agent_id is not null;
create index if not exists idx_prospects_profile on public.prospects (profile_id) where profile_id is not null;
create index if not exists idx_sequences_deployment on public.sequences (deployment_id) where deployment_id is not null;
create index if not exists idx_client_numbers_deployment on public.client_numbers (deployment_id) where deployment_id is not null;
comment on table public.agent_types is 'Kinds of agents, such as louis, arthur and alexandra; call-center is the one that answers. Operators write it.';
comment on column public.agent_types.name is 'As queries name it, in lower case.';
comment on column public.agent_types.display_name is 'As people are shown it.';
comment on table public.agent_deployments is 'An agent at work for one client: what calls and messages, their costs and their figures are counted by.';
comment on column public.agent_deployments.agent_id is 'The agent of ai_agents whose calls and messages count here, unless the number says otherwise; null: none in particular.';
comment on column public.agent_deployments.is_default is 'Takes whatever names no other deployment of the client.';
comment on column public.agent_deployments.status is 'active, paused, retired. For reading: nothing is held back by it.';
comment on table public.prospects is 'People a client''s agents reach for, known by number; the profile is there once they have talked with us.';
comment on column public.prospects.phone_number is 'E.164; null: erased.';
comment on column public.prospects.full_name is 'As the client calls them; null: unknown, or erased.';
comment on column public.prospects.status is 'The client''s own word.';
comment on column public.prospects.metadata is 'The client''s own; nothing here reads it.';
comment on table public.sequences is 'Series of messages and calls that agents follow, as workflows outside define them.';
comment on column public.sequences.deployment_id is 'Who follows it; null: more than one.';
comment on column public.sequences.status is 'The client''s own word.';
comment on column public.client_numbers.deployment_id is 'Calls and messages over this address count for this deployment; null: for that of the agent, else the client''s default.';

insert into public.agent_types (name, display_name)
values ('call-center', 'Call center'), ('louis', 'Louis'), ('arthur', 'Arthur'), ('alexandra', 'Alexandra')
on conflict (name) do nothing;

create or replace function private.add_default_deployment() returns trigger
language plpgsql set search_path = '' as $$
begin
  insert into public.agent_deployments (client_id, agent_type_id, name, is_default)
  values (new.id, (select id from public.agent_types where name = 'call-center'), 'default', true)
  on conflict do nothing;
  return null;
end
$$;
comment on function private.add_default_deployment is 'Trigger: every client has a deployment that takes what names no other.';
drop trigger if exists clients_add_default_deployment on public.clients;
create trigger clients_add_default_deployment after insert on public.clients for each row execute function private.add_default_deployment();
insert into public.agent_deployments (client_id, agent_type_id, name, is_default)
select c.id, (select id from public.agent_types where name = 'call-center'), 'default', true
  from public.clients c
 where not exists (select from public.agent_deployments d where d.client_id = c.id and d.is_default)
on conflict do nothing;

create or replace function private.deployment_of(p_client_id uuid, p_channel text, p_address text, p_agent_id uuid) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (select d.id from public.client_numbers n join public.agent_deployments d on d.id = n.deployment_id and d.client_id = p_client_id
      where n.channel = p_channel and n.address = p_address),
    (select d.id from public.agent_deployments d where d.agent_id = p_agent_id and d.client_id = p_client_id order by d.created_at, d.id limit 1),
    (select d.id from public.agent_deployments d where d.client_id = p_client_id and d.is_default));
end
$$;
comment on function private.deployment_of is 'Whom a call or message counts for: the deployment of its number or sender, else that of the agent, else the client''s default.';

drop trigger if exists agent_types_touch on public.agent_types;
create trigger agent_types_touch before update on public.agent_types for each row execute function private.touch_updated_at();
drop trigger if exists agent_deployments_touch on public.agent_deployments;
create trigger agent_deployments_touch before update on public.agent_deployments for each row execute function private.touch_updated_at();
drop trigger if exists prospects_touch on public.prospects;
create trigger prospects_touch before update on public.prospects for each row execute function private.touch_updated_at();
drop trigger if exists sequences_touch on public.sequences;
create trigger sequences_touch before update on public.sequences for each row execute function private.touch_updated_at();

alter table public.agent_types enable row level security;
alter table public.agent_deployments enable row level security;
alter table public.prospects enable row level security;
alter table public.sequences enable row level security;
drop policy if exists agent_deployments_select on public.agent_deployments;
create policy agent_deployments_select on public.agent_deployments for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists agent_types_select on public.agent_types;
create policy agent_types_select on public.agent_types for select to authenticated
  using (id in (select d.agent_type_id from public.agent_deployments d where d.client_id = any (array(select private.my_client_ids()))));
drop policy if exists prospects_select on public.prospects;
create policy prospects_select on public.prospects for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists sequences_select on public.sequences;
create policy sequences_select on public.sequences for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.agent_types, public.agent_deployments, public.prospects, public.sequences from public, anon, authenticated;
grant select on public.agent_types, public.agent_deployments, public.prospects, public.sequences to authenticated;
grant select, insert, update, delete on public.agent_types, public.agent_deployments, public.prospects, public.sequences to service_role;
revoke execute on function private.add_default_deployment(), private.deployment_of(uuid, text, text, uuid) from public, anon, authenticated;
grant execute on function private.add_default_deployment(), private.deployment_of(uuid, text, text, uuid) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013000'::text $$;

notify pgrst, 'reload schema';
