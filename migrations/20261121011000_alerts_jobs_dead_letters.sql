-- 20261121011000_alerts_jobs_dead_letters.sql
-- What an operator must see: alerts, work that a queue refused, work that was given up.
-- Safe to run again. Locks only new tables. Undo: drop the three tables.
create table if not exists public.alerts (
  id uuid constraint alerts_pkey primary key default gen_random_uuid(),
  client_id uuid constraint alerts_client_id_fkey references public.clients (id) on delete cascade,
  kind text not null,
  severity text not null,
  dedupe_key text not null,
  message text not null,
  details jsonb not null default '{}',
  occurrences integer not null default 1,
  first_at timestamptz not null default now(),
  last_at timestamptz not null default now(),
  resolved_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint alerts_severity_is_known check (severity in ('warning', 'critical'))
);
do $$
begin
  perform private.require_columns('public.alerts', '{
    "id": "uuid", "client_id": "uuid", "kind": "text", "severity": "text", "dedupe_key": "text", "message": "text", "details": "jsonb",
    "occurrences": "integer", "first_at": "timestamp with time zone", "last_at": "timestamp with time zone",
    "resolved_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists alerts_one_open on public.alerts (dedupe_key) where resolved_at is null;
create index if not exists idx_alerts_client on public.alerts (client_id) where client_id is not null;
create index if not exists idx_alerts_last on public.alerts (last_at desc);
comment on table public.alerts is 'Something a person must look at. The same again only counts up until somebody resolves it.';
comment on column public.alerts.message is 'A whole sentence without phone numbers or message text.';
comment on column public.alerts.client_id is 'Null: concerns the whole installation.';
comment on column public.alerts.kind is 'What happened, as code: dead_letter, provider_open, provider_config, delivery_bug, deliveries_expired, deliveries_overdue, ...';
comment on column public.alerts.dedupe_key is 'One alert a key is open; the same again counts up occurrences.';
comment on column public.alerts.details is 'Facts for the person who looks: ids, counts, codes; never a number or text of a message.';

create table if not exists public.jobs (
  id uuid constraint jobs_pkey primary key default gen_random_uuid(),
  queue text not null,
  payload jsonb not null,
  reason text,
  correlation_id text,
  status text not null default 'pending',
  dedupe_key text not null generated always as (md5(queue || ' ' || payload::text)) stored,
  leases integer not null default 0,
  lease_until timestamptz,
  completed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint jobs_status_is_known check (status in ('pending', 'done'))
);
do $$
begin
  perform private.require_columns('public.jobs', '{
    "id": "uuid", "queue": "text", "payload": "jsonb", "reason": "text", "correlation_id": "text", "status": "text", "dedupe_key": "text",
    "leases": "integer", "lease_until": "timestamp with time zone", "completed_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists jobs_once_pending on public.jobs (dedupe_key) where status = 'pending';
create index if not exists idx_jobs_pending on public.jobs (created_at) where status = 'pending';
create index if not exists idx_jobs_done on public.jobs (completed_at) where status = 'done';
comment on table public.jobs is 'Envelopes that a queue refused or that are too large for one; the sweeper puts them back.';
comment on column public.jobs.dedupe_key is 'The same envelope waits once, though an answer was lost and it came again.';
comment on column public.jobs.lease_until is 'Until then a sweeper is putting it back.';
comment on column public.jobs.payload is 'The envelope, as the queue would have had it.';
comment on column public.jobs.reason is 'Why it is here: the queue refused it, or it is too large for one.';
comment on column public.jobs.leases is 'How often a sweeper took it.';

create table if not exists public.dead_letters (
  id uuid constraint dead_letters_pkey primary key default gen_random_uuid(),
  client_id uuid constraint dead_letters_client_id_fkey references public.clients (id) on delete cascade,
  queue text not null,
  message_id text not null,
  payload jsonb,
  attempts integer,
  reason text,
  correlation_id text,
  replayed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint dead_letters_queue_message_id_key unique (queue, message_id)
);
do $$
begin
  perform private.require_columns('public.dead_letters', '{
    "id": "uuid", "client_id": "uuid", "queue": "text", "message_id": "text", "payload": "jsonb", "attempts": "integer", "reason": "text",
    "correlation_id": "text", "replayed_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_dead_letters_client on public.dead_letters (client_id) where client_id is not null;
create index if not exists idx_dead_letters_created on public.dead_letters (created_at desc);
comment on table public.dead_letters is 'Work that was given up, with all that is needed to do it again.';
comment on column public.dead_letters.message_id is 'The queue''s id of the message, or call:<id> and turn:<id> for a claim that was given up.';
comment on column public.dead_letters.payload is 'The envelope, or the ids of the claim.';
comment on column public.dead_letters.reason is 'Why it was given up, as code.';
comment on column public.dead_letters.replayed_at is 'When an operator put it back.';

create or replace function private.raise_alert(
  p_kind text, p_severity text, p_dedupe_key text, p_message text, p_details jsonb default '{}', p_client_id uuid default null
) returns void language plpgsql set search_path = '' as $$
begin
  insert into public.alerts (kind, severity, dedupe_key, message, details, client_id)
  values (p_kind, p_severity, p_dedupe_key, p_message, coalesce(p_details, '{}'), p_client_id)
  on conflict (dedupe_key) where resolved_at is null
  do update set occurrences = alerts.occurrences + 1, last_at = now(), details = excluded.details;
end
$$;
comment on function private.raise_alert is 'Raises an alert, or counts up the open one of the same key.';

drop trigger if exists alerts_touch on public.alerts;
create trigger alerts_touch before update on public.alerts for each row execute function private.touch_updated_at();
drop trigger if exists jobs_touch on public.jobs;
create trigger jobs_touch before update on public.jobs for each row execute function private.touch_updated_at();
drop trigger if exists dead_letters_touch on public.dead_letters;
create trigger dead_letters_touch before update on public.dead_letters for each row execute function private.touch_updated_at();

alter table public.alerts enable row level security;
alter table public.jobs enable row level security;
alter table public.dead_letters enable row level security;
drop policy if exists alerts_select on public.alerts;
create policy alerts_select on public.alerts for select to authenticated
  using (client_id in (select private.my_client_ids()));
drop policy if exists jobs_select on public.jobs;
create policy jobs_select on public.jobs for select to authenticated using (false);
drop policy if exists dead_letters_select on public.dead_letters;
create policy dead_letters_select on public.dead_letters for select to authenticated using (false);
revoke all on public.alerts, public.jobs, public.dead_letters from public, anon, authenticated;
grant select on public.alerts to authenticated;
grant select, insert, update, delete on public.alerts, public.jobs, public.dead_letters to service_role;
revoke execute on function private.raise_alert(text, text, text, text, jsonb, uuid) from public, anon, authenticated;
grant execute on function private.raise_alert(text, text, text, text, jsonb, uuid) to service_role;
