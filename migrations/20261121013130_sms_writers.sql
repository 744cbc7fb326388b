-- 20261121013130_sms_writers.sql
-- Workflows outside (n8n with Twilio, say) write their SMS, what becomes of them and who answered, each through one function that may be called
-- again; and a key that can do nothing else. A report that comes before its message waits for it.
-- Safe to run again. Locks message_status_events and message_delivery_log for a moment (a trigger each).
-- Undo: drop the triggers, the functions and the table; `drop owned by sms_writer; drop role sms_writer`.

do $$
begin
  -- Roles belong to the whole server: another database of it may be migrated at this moment.
  if not exists (select from pg_catalog.pg_roles where rolname = 'sms_writer') then
    create role sms_writer nologin noinherit;
  end if;
exception when duplicate_object or unique_violation then
  null;
end
$$;
do $$
begin
  if exists (select from pg_catalog.pg_roles where rolname = 'authenticator') and not exists (
       select from pg_catalog.pg_auth_members m join pg_catalog.pg_roles r on r.oid = m.roleid join pg_catalog.pg_roles a on a.oid = m.member
        where r.rolname = 'sms_writer' and a.rolname = 'authenticator') then
    grant sms_writer to authenticator;
  end if;
exception when unique_violation or internal_error then
  null;
end
$$;

create table if not exists public.agent_sms_reports (
  id bigint generated always as identity constraint agent_sms_reports_pkey primary key,
  client_id uuid constraint agent_sms_reports_client_id_fkey references public.clients (id) on delete cascade,
  provider text not null,
  provider_message_sid text not null,
  provider_status text not null,
  occurred_at timestamptz not null,
  failure_reason text,
  cost numeric(12,6),
  cost_currency char(3),
  created_at timestamptz not null default now(),
  constraint agent_sms_reports_once unique nulls not distinct (provider_message_sid, provider, provider_status, occurred_at, failure_reason, client_id),
  constraint agent_sms_reports_cost_has_currency check ((cost is null) = (cost_currency is null))
);
do $$
begin
  perform private.require_columns('public.agent_sms_reports', '{
    "id": "bigint", "client_id": "uuid", "provider": "text", "provider_message_sid": "text", "provider_status": "text",
    "occurred_at": "timestamp with time zone", "failure_reason": "text", "cost": "numeric(12,6)", "cost_currency": "character(3)",
    "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_agent_sms_reports_client on public.agent_sms_reports (client_id);
create index if not exists idx_agent_sms_reports_age on public.agent_sms_reports (created_at);
comment on table public.agent_sms_reports is
  'What writers outside reported of messages that nobody has written yet. Joined when the message comes; a week later forgotten.';
comment on column public.agent_sms_reports.client_id is 'Whose key reported it: only a message of that client takes it. Null: the service key.';
comment on column public.agent_sms_reports.provider_message_sid is 'The provider''s id of the message.';
comment on column public.agent_sms_reports.provider_status is 'The provider''s word.';
comment on column public.agent_sms_reports.failure_reason is 'Code or words of the provider.';
comment on column public.agent_sms_reports.cost is 'What the provider charges for the message, in cost_currency.';
alter table public.agent_sms_reports enable row level security;
drop policy if exists agent_sms_reports_select on public.agent_sms_reports;
create policy agent_sms_reports_select on public.agent_sms_reports for select to authenticated using (false);
revoke all on public.agent_sms_reports from public, anon, authenticated;
grant select, insert, update, delete on public.agent_sms_reports to service_role;
revoke all on sequence public.agent_sms_reports_id_seq from public, anon, authenticated;
grant usage, select on sequence public.agent_sms_reports_id_seq to service_role;

create or replace function private.writer_client() returns uuid
language plpgsql stable set search_path = '' as $$
declare
  v_claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
  v_client_id uuid := private.uuid_or_null(v_claims ->> 'client_id');
begin
  if v_client_id is null and (current_setting('role') = 'sms_writer' or v_claims ->> 'role' = 'sms_writer') then
    raise exception using errcode = 'PT403', message = 'key_names_no_client', hint = 'Mint the key with the claim client_id: docs/n8n.md.';
  end if;
  return v_client_id;
end
$$;
comment on function private.writer_client is 'The client that the caller''s key is for; null: every client, as the service key. A key of sms_writer must name one.';

create or replace function private.refuse_empty(p_field text, p_value text) returns void
language plpgsql immutable set search_path = '' as $$
begin
  if nullif(btrim(p_value), '') is null then
    raise exception using errcode = 'PT400', message = format('field %s is missing', p_field);
  end if;
end
$$;
comment on function private.refuse_empty is 'PT400 with the name of a field that must be there.';

create or replace function private.lock_sms(p_provider text, p_sid text) returns void
language plpgsql set search_path = '' as $$
begin
  -- The same locks as record_delivery_events takes for its reports.
  perform private.lock_refs(array(select p_provider || ':' || k from unnest(private.provider_message_keys(p_sid)) k));
end
$$;
comment on function private.lock_sms is 'Whoever writes a message and whoever reports of it go one after the other, so that no report is missed between them.';

create or replace function private.word_of_report(p_status text, p_raw_status text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  -- Words that nobody knows come to pending. Where our own word knows more, it is taken.
  return case when private.simple_sms_status(p_raw_status) <> 'pending' or private.simple_sms_status(p_status) = 'pending'
    then coalesce(p_raw_status, p_status) else p_status end;
end
$$;
comment on function private.word_of_report is 'How a report of message_status_events is told in agent_sms: in the provider''s word where that is understood, else in ours.';

-- One report, applied to one row. The order in which reports come does not matter.
create or replace function private.apply_sms_report(
  p_id uuid, p_status text, p_at timestamptz, p_reason text, p_cost numeric, p_currency text
) returns void language plpgsql set search_path = '' as $$
declare
  v_simple text := private.simple_sms_status(p_status);
begin
  update public.agent_sms s
     set status = v_simple,  -- the trigger knows whether that is news
         provider_status = case
           when private.simple_sms_rank(v_simple) < private.simple_sms_rank(s.status) then s.provider_status
           -- Of two failures the earlier one counts.
           when v_simple = s.status and v_simple = 'failed' and p_at >= s.failed_at then s.provider_status
           when v_simple = s.status and lower(s.provider_status) = 'read' then s.provider_status
           -- What is not known to be later stays: queued after sending, and words that nobody knows.
           when v_simple = s.status and v_simple = 'pending' and s.provider_status is not null
                and coalesce(array_position('{accepted,scheduled,queued,sending}', lower(p_status)), 0)
                  <= coalesce(array_position('{accepted,scheduled,queued,sending}', lower(s.provider_status)), 0) then s.provider_status
           else p_status end,
         delivered_at = case when v_simple = 'delivered' then least(s.delivered_at, p_at) else s.delivered_at end,
         failed_at = case when v_simple = 'failed' then least(s.failed_at, p_at) else s.failed_at end,
         failure_reason = case
           when v_simple = 'failed' and (s.status <> 'failed' or p_at < s.failed_at or s.failure_reason is null) then coalesce(p_reason, s.failure_reason)
           else s.failure_reason end,
         cost = coalesce(p_cost, s.cost), cost_currency = coalesce(p_currency, s.cost_currency),
         cost_source = case when p_cost is not null then 'provider' else s.cost_source end
   where s.id = p_id;
end
$$;
comment on function private.apply_sms_report is 'Applies what a provider reported of a message to its row in agent_sms; late, early or again, in any order.';

create or replace function private.write_agent_sms(
  p_id uuid, p_provider text, p_provider_message_sid text, p_phone_number text, p_message_content text, p_client_id uuid, p_deployment_id uuid,
  p_call_id uuid, p_prospect_id uuid, p_sequence_id uuid, p_session_id uuid, p_status text, p_segments integer, p_sent_at timestamptz,
  p_failure_reason text, p_cost numeric, p_cost_currency text, p_revenue numeric, p_revenue_currency text, p_metadata jsonb
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_client_id uuid := coalesce(p_client_id, v_own);
  v_phone text := private.e164_of(p_phone_number);
  v_status text := coalesce(nullif(btrim(p_status), ''), 'queued');
  v_sent_at timestamptz := coalesce(p_sent_at, now());
  v_call_id uuid;
  v_prospect_id uuid := p_prospect_id;
  v_row public.agent_sms;
  v_created boolean := false;
  v_report record;
begin
  perform private.refuse_empty('p_provider', p_provider);
  perform private.refuse_empty('p_phone_number', p_phone_number);
  perform private.refuse_empty('p_message_content', p_message_content);
  if p_id is null then
    perform private.refuse_empty('p_provider_message_sid', p_provider_message_sid);
  end if;
  if p_provider !~ '^[a-z][a-z0-9_]{0,39}$' then
    raise exception using errcode = 'PT400', message = 'field p_provider is no provider''s name', hint = 'Lower case, such as twilio.';
  end if;
  if v_phone is null then
    raise exception using errcode = 'PT400', message = 'field p_phone_number is not a phone number', hint = 'E.164, such as +250788123456.';
  end if;
  if length(p_message_content) > 10000 or length(p_provider_message_sid) > 200 or length(v_status) > 100 or length(p_failure_reason) > 500 then
    raise exception using errcode = 'PT400', message = format('field %s is too long', case
      when length(p_message_content) > 10000 then 'p_message_content' when length(p_provider_message_sid) > 200 then 'p_provider_message_sid'
      when length(v_status) > 100 then 'p_status' else 'p_failure_reason' end);
  end if;
  if p_segments not between 1 and 1000 then
    raise exception using errcode = 'PT400', message = 'field p_segments must be 1 to 1000';
  end if;
  if (p_cost is null) <> (p_cost_currency is null) or (p_revenue is null) <> (p_revenue_currency is null) then
    raise exception using errcode = 'PT400', message = format('field %s is missing', case
      when p_cost is null and p_cost_currency is not null then 'p_cost' when p_cost is not null and p_cost_currency is null then 'p_cost_currency'
      when p_revenue is null then 'p_revenue' else 'p_revenue_currency' end), hint = 'An amount and its currency go together.';
  end if;
  if p_cost_currency !~ '^[A-Z]{3}$' or p_revenue_currency !~ '^[A-Z]{3}$' then
    raise exception using errcode = 'PT400', message = format('field %s is no currency', case
      when p_cost_currency !~ '^[A-Z]{3}$' then 'p_cost_currency' else 'p_revenue_currency' end), hint = 'ISO 4217, such as USD.';
  end if;
  -- numeric(12,6) would round without a word.
  if p_cost <> round(p_cost, 6) or p_revenue <> round(p_revenue, 6) then
    raise exception using errcode = 'PT400', message = format('field %s has more than six decimals', case when p_cost <> round(p_cost, 6) then 'p_cost' else 'p_revenue' end);
  end if;
  if abs(p_cost) >= 1000000 or abs(p_revenue) >= 1000000 then
    raise exception using errcode = 'PT400', message = format('field %s is too large', case when abs(p_cost) >= 1000000 then 'p_cost' else 'p_revenue' end);
  end if;
  if jsonb_typeof(p_metadata) <> 'object' then
    raise exception using errcode = 'PT400', message = 'field p_metadata must be an object';
  end if;
  if v_own is not null and v_client_id <> v_own then
    raise exception using errcode = 'PT403', message = 'client_of_another_key';
  end if;
  -- Whoever sends does not say what is billed for it.
  if v_own is not null and p_revenue is not null then
    raise exception using errcode = 'PT403', message = 'field p_revenue is not for this key', hint = 'Leave it out: the price list says what the client pays.';
  end if;
  if p_deployment_id is not null then
    select d.client_id into v_client_id from public.agent_deployments d
     where d.id = p_deployment_id and d.client_id = coalesce(v_client_id, d.client_id);
    if not found then
      raise exception using errcode = 'PT404', message = 'deployment not found', hint = 'field p_deployment_id: of agent_deployments, of the same client.';
    end if;
  elsif v_client_id is null then
    raise exception using errcode = 'PT400', message = 'field p_deployment_id is missing', hint = 'Or p_client_id: its default deployment is taken.';
  elsif not exists (select from public.clients c where c.id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'client not found', hint = 'field p_client_id';
  end if;
  if p_call_id is not null then
    select a.id into v_call_id from public.agent_calls a where (a.id = p_call_id or a.voice_call_id = p_call_id) and a.client_id = v_client_id;
    if not found then
      raise exception using errcode = 'PT404', message = 'call not found', hint = 'field p_call_id: of agent_calls or voice_calls, of the same client.';
    end if;
  end if;
  if p_prospect_id is not null then
    if not exists (select from public.prospects r where r.id = p_prospect_id and r.client_id = v_client_id) then
      raise exception using errcode = 'PT404', message = 'prospect not found', hint = 'field p_prospect_id: of the same client.';
    end if;
  else
    v_prospect_id := (select r.id from public.prospects r where r.client_id = v_client_id and r.phone_number = v_phone);
  end if;
  if p_sequence_id is not null and not exists (select from public.sequences q where q.id = p_sequence_id and q.client_id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'sequence not found', hint = 'field p_sequence_id: of the same client.';
  end if;
  if p_session_id is not null and not exists (select from public.omnichannel_sessions o where o.id = p_session_id and o.client_id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'session not found', hint = 'field p_session_id: of the same client.';
  end if;

  perform private.lock_sms(p_provider, p_provider_message_sid);
  insert into public.agent_sms
    (id, client_id, deployment_id, call_id, prospect_id, sequence_id, session_id, phone_number, message_content, segments, status, provider,
     provider_status, provider_message_sid, sent_at, delivered_at, failed_at, failure_reason, cost, cost_currency, revenue, revenue_currency, metadata)
  values
    (coalesce(p_id, gen_random_uuid()), v_client_id, p_deployment_id, v_call_id, v_prospect_id, p_sequence_id, p_session_id, v_phone,
     p_message_content, p_segments, private.simple_sms_status(v_status), p_provider, v_status, p_provider_message_sid, v_sent_at,
     case when private.simple_sms_status(v_status) = 'delivered' then now() end,
     case when private.simple_sms_status(v_status) = 'failed' then now() end,
     p_failure_reason, p_cost, p_cost_currency, p_revenue, p_revenue_currency, coalesce(p_metadata, '{}'))
  on conflict do nothing
  returning * into v_row;
  if v_row.id is not null then
    v_created := true;
    -- What was reported before the message was written: of writers outside, and what delivery-status-webhook took from the provider.
    for v_report in
      select r.provider_status as word, r.occurred_at, r.failure_reason, r.cost, r.cost_currency
        from public.agent_sms_reports r
       where r.provider = p_provider and r.provider_message_sid = p_provider_message_sid and (r.client_id is null or r.client_id = v_client_id)
      union all
      select private.word_of_report(e.status, e.raw_status),
             e.occurred_at, e.error_code, null, null
        from public.message_status_events e
       where e.provider = p_provider and e.provider_message_key = private.provider_message_key(p_provider_message_sid)
         and e.provider_message_id = p_provider_message_sid and e.delivery_id is null
       order by 2, 1
    loop
      perform private.apply_sms_report(v_row.id, v_report.word, v_report.occurred_at, v_report.failure_reason, v_report.cost, v_report.cost_currency);
    end loop;
    delete from public.agent_sms_reports r
     where r.provider = p_provider and r.provider_message_sid = p_provider_message_sid and (r.client_id is null or r.client_id = v_client_id);
  else
    select * into v_row from public.agent_sms s
     where s.id = p_id or s.provider = p_provider and s.provider_message_sid = p_provider_message_sid
     order by (s.id = p_id) desc nulls last limit 1;
    if v_row.client_id <> v_client_id then
      raise exception using errcode = 'PT409', message = 'message_of_another_client', hint = 'field p_provider_message_sid, or p_id';
    end if;
    -- Again, or after a first call that knew less: what is there stays.
    update public.agent_sms s
       set provider_message_sid = coalesce(s.provider_message_sid, p_provider_message_sid), call_id = coalesce(s.call_id, v_call_id),
           prospect_id = coalesce(s.prospect_id, v_prospect_id), sequence_id = coalesce(s.sequence_id, p_sequence_id),
           session_id = coalesce(s.session_id, p_session_id),
           cost = case when s.cost_source in ('provider', 'writer') then s.cost else coalesce(p_cost, s.cost) end,
           cost_currency = case when s.cost_source in ('provider', 'writer') then s.cost_currency else coalesce(p_cost_currency, s.cost_currency) end
     where s.id = v_row.id and s.delivery_id is null
       and (s.provider_message_sid is null and p_provider_message_sid is not null or s.call_id is null and v_call_id is not null
         or s.prospect_id is null and v_prospect_id is not null or s.sequence_id is null and p_sequence_id is not null
         or s.session_id is null and p_session_id is not null
         or p_cost is not null and coalesce(s.cost_source, '') not in ('provider', 'writer'));
    if p_status is not null and v_row.delivery_id is null then
      perform private.apply_sms_report(v_row.id, v_status, now(), p_failure_reason, null, null);
    end if;
  end if;
  select * into v_row from public.agent_sms s where s.id = v_row.id;
  return jsonb_build_object('id', v_row.id, 'created', v_created, 'status', v_row.status, 'provider_status', v_row.provider_status,
    'segments', v_row.segments, 'cost', v_row.cost, 'cost_currency', v_row.cost_currency);
end
$$;
comment on function private.write_agent_sms is
  'What public.log_agent_sms does. Security definer: a key of sms_writer has no right on any table; the claim client_id of the key bounds what it may write.';

create or replace function public.log_agent_sms(
  p_phone_number text default null, p_message_content text default null, p_provider_message_sid text default null, p_provider text default 'twilio',
  p_deployment_id uuid default null, p_client_id uuid default null, p_status text default null, p_call_id uuid default null,
  p_prospect_id uuid default null, p_sequence_id uuid default null, p_session_id uuid default null, p_segments integer default null,
  p_sent_at timestamptz default null, p_failure_reason text default null, p_cost numeric default null, p_cost_currency text default null,
  p_revenue numeric default null, p_revenue_currency text default null, p_metadata jsonb default null, p_id uuid default null
) returns jsonb language plpgsql set search_path = '' as $$
begin
  return private.write_agent_sms(p_id, p_provider, p_provider_message_sid, p_phone_number, p_message_content, p_client_id, p_deployment_id, p_call_id,
    p_prospect_id, p_sequence_id, p_session_id, p_status, p_segments, p_sent_at, p_failure_reason, p_cost, p_cost_currency, p_revenue,
    p_revenue_currency, p_metadata);
end
$$;
comment on function public.log_agent_sms is
  'RPC: keeps an SMS that somebody else sent, once for each provider and sid (or p_id, where there is no sid), with what was reported of it already; {id, created, status, provider_status, segments, cost, cost_currency}.';

create or replace function private.write_agent_sms_status(
  p_provider text, p_provider_message_sid text, p_status text, p_occurred_at timestamptz, p_failure_reason text, p_cost numeric, p_cost_currency text
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_at timestamptz := least(coalesce(p_occurred_at, now()), now());
  v_row public.agent_sms;
begin
  perform private.refuse_empty('p_provider', p_provider);
  perform private.refuse_empty('p_provider_message_sid', p_provider_message_sid);
  perform private.refuse_empty('p_status', p_status);
  if length(p_provider) > 40 or length(p_provider_message_sid) > 200 or length(p_status) > 100 or length(p_failure_reason) > 500 then
    raise exception using errcode = 'PT400', message = format('field %s is too long', case
      when length(p_provider) > 40 then 'p_provider' when length(p_provider_message_sid) > 200 then 'p_provider_message_sid'
      when length(p_status) > 100 then 'p_status' else 'p_failure_reason' end);
  end if;
  if (p_cost is null) <> (p_cost_currency is null) then
    raise exception using errcode = 'PT400', message = format('field %s is missing', case when p_cost is null then 'p_cost' else 'p_cost_currency' end),
      hint = 'An amount and its currency go together.';
  end if;
  if p_cost_currency !~ '^[A-Z]{3}$' then
    raise exception using errcode = 'PT400', message = 'field p_cost_currency is no currency', hint = 'ISO 4217, such as USD.';
  end if;
  if p_cost <> round(p_cost, 6) then
    raise exception using errcode = 'PT400', message = 'field p_cost has more than six decimals';
  end if;
  if abs(p_cost) >= 1000000 then
    raise exception using errcode = 'PT400', message = 'field p_cost is too large';
  end if;
  perform private.lock_sms(p_provider, p_provider_message_sid);
  select * into v_row from public.agent_sms s where s.provider_message_sid = p_provider_message_sid and s.provider = p_provider;
  if not found then
    delete from public.agent_sms_reports where id in (
      select r.id from public.agent_sms_reports r where r.created_at < now() - interval '7 days' order by r.created_at limit 100 for update skip locked);
    insert into public.agent_sms_reports (client_id, provider, provider_message_sid, provider_status, occurred_at, failure_reason, cost, cost_currency)
    values (v_own, p_provider, p_provider_message_sid, p_status, v_at, p_failure_reason, p_cost, p_cost_currency)
    on conflict do nothing;
    return jsonb_build_object('id', null, 'status', null, 'provider_status', null, 'waits', true);
  end if;
  if v_own is not null and v_row.client_id <> v_own then
    raise exception using errcode = 'PT404', message = 'message not found';
  end if;
  -- Of our own messages the delivery log speaks, and its reports come to delivery-status-webhook.
  if v_row.delivery_id is null then
    perform private.apply_sms_report(v_row.id, p_status, v_at, p_failure_reason, p_cost, p_cost_currency);
    select * into v_row from public.agent_sms s where s.id = v_row.id;
  end if;
  return jsonb_build_object('id', v_row.id, 'status', v_row.status, 'provider_status', v_row.provider_status, 'waits', false);
end
$$;
comment on function private.write_agent_sms_status is
  'What public.update_agent_sms_status does. Security definer: a key of sms_writer has no right on any table; the claim client_id of the key bounds what it may write.';

create or replace function public.update_agent_sms_status(
  p_provider_message_sid text default null, p_status text default null, p_provider text default 'twilio', p_occurred_at timestamptz default null,
  p_failure_reason text default null, p_cost numeric default null, p_cost_currency text default null
) returns jsonb language plpgsql set search_path = '' as $$
begin
  return private.write_agent_sms_status(p_provider, p_provider_message_sid, p_status, p_occurred_at, p_failure_reason, p_cost, p_cost_currency);
end
$$;
comment on function public.update_agent_sms_status is
  'RPC: what a provider reports of an SMS, in any order and any number of times; one that comes before its message waits for it. {id, status, provider_status, waits}.';

create or replace function private.note_sms_reply(p_client_id uuid, p_phone text, p_at timestamptz) returns uuid
language plpgsql set search_path = '' as $$
declare
  v_id uuid;
  v_replied_at timestamptz;
begin
  select s.id, s.replied_at into v_id, v_replied_at
    from public.agent_sms s
   where s.client_id = p_client_id and s.phone_number = p_phone and s.sent_at <= p_at and s.sent_at > p_at - interval '7 days'
     and s.status not in ('failed', 'cancelled')
   order by s.sent_at desc, s.id limit 1;
  -- The first answer counts, also when it is told last.
  if v_id is not null and (v_replied_at is null or v_replied_at > p_at) then
    update public.agent_sms s set replied_at = p_at where s.id = v_id and (s.replied_at is null or s.replied_at > p_at);
  end if;
  return v_id;
end
$$;
comment on function private.note_sms_reply is 'A person answered: the newest SMS of the client to them in the seven days before has its answer; its id, or null.';

create or replace function private.write_agent_sms_reply(p_phone_number text, p_client_id uuid, p_received_at timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_client_id uuid := coalesce(p_client_id, v_own);
  v_phone text := private.e164_of(p_phone_number);
begin
  perform private.refuse_empty('p_phone_number', p_phone_number);
  perform private.refuse_empty('p_client_id', v_client_id::text);
  if v_phone is null then
    raise exception using errcode = 'PT400', message = 'field p_phone_number is not a phone number', hint = 'E.164, such as +250788123456.';
  end if;
  if v_own is not null and v_client_id <> v_own then
    raise exception using errcode = 'PT403', message = 'client_of_another_key';
  end if;
  return jsonb_build_object('id', private.note_sms_reply(v_client_id, v_phone, least(coalesce(p_received_at, now()), now())));
end
$$;
comment on function private.write_agent_sms_reply is
  'What public.record_agent_sms_reply does. Security definer: a key of sms_writer has no right on any table; the claim client_id of the key bounds what it may write.';

create or replace function public.record_agent_sms_reply(
  p_phone_number text default null, p_client_id uuid default null, p_received_at timestamptz default null
) returns jsonb language plpgsql set search_path = '' as $$
begin
  return private.write_agent_sms_reply(p_phone_number, p_client_id, p_received_at);
end
$$;
comment on function public.record_agent_sms_reply is
  'RPC: a person answered by SMS somewhere else than at sms-inbound-webhook; {id} of the message that they answered, or null. Once is enough, again does no harm.';

-- What comes in at sms-inbound-webhook answers the newest SMS to that person.
create or replace function private.answer_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_phone text := coalesce(private.e164_of(new.sender), (select p.phone_number from public.profiles p where p.id = new.profile_id));
begin
  if v_phone is not null then
    perform private.note_sms_reply(new.client_id, v_phone, new.status_at);
  end if;
  return null;
end
$$;
comment on function private.answer_sms is 'Trigger: an SMS from a person is an answer to the newest one to them.';
drop trigger if exists message_delivery_log_answers_sms on public.message_delivery_log;
create trigger message_delivery_log_answers_sms after insert on public.message_delivery_log
  for each row when (new.channel = 'sms' and new.direction = 'inbound') execute function private.answer_sms();

-- Twilio may call delivery-status-webhook for messages of others too: what our log does not know may be in agent_sms.
create or replace function private.report_to_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_id uuid := (select s.id from public.agent_sms s
                 where s.provider_message_sid = new.provider_message_id and s.provider = new.provider and s.delivery_id is null);
begin
  if v_id is not null then
    perform private.apply_sms_report(v_id,
      private.word_of_report(new.status, new.raw_status),
      new.occurred_at, new.error_code,
      case when new.pricing ->> 'amount' ~ '^[0-9]{1,6}([.][0-9]{1,12})?$' and new.pricing ->> 'currency' ~ '^[A-Z]{3}$'
        then trunc((new.pricing ->> 'amount')::numeric, 6) end,
      case when new.pricing ->> 'amount' ~ '^[0-9]{1,6}([.][0-9]{1,12})?$' and new.pricing ->> 'currency' ~ '^[A-Z]{3}$'
        then new.pricing ->> 'currency' end);
  end if;
  return null;
end
$$;
comment on function private.report_to_agent_sms is 'Trigger: a report of a message that is not ours goes to the row that somebody else wrote of it.';
drop trigger if exists message_status_events_tell_agent_sms on public.message_status_events;
create trigger message_status_events_tell_agent_sms after insert on public.message_status_events
  for each row when (new.delivery_id is null and new.provider_message_id is not null) execute function private.report_to_agent_sms();

revoke execute on function
  private.writer_client(), private.refuse_empty(text, text), private.lock_sms(text, text), private.word_of_report(text, text),
  private.apply_sms_report(uuid, text, timestamptz, text, numeric, text),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb),
  public.log_agent_sms(text, text, text, text, uuid, uuid, text, uuid, uuid, uuid, uuid, integer, timestamptz, text, numeric, text, numeric, text, jsonb, uuid),
  private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  public.update_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  private.note_sms_reply(uuid, text, timestamptz), private.write_agent_sms_reply(text, uuid, timestamptz),
  public.record_agent_sms_reply(text, uuid, timestamptz), private.answer_sms(), private.report_to_agent_sms()
  from public, anon, authenticated;
grant execute on function
  private.writer_client(), private.refuse_empty(text, text), private.lock_sms(text, text), private.word_of_report(text, text),
  private.apply_sms_report(uuid, text, timestamptz, text, numeric, text),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb),
  public.log_agent_sms(text, text, text, text, uuid, uuid, text, uuid, uuid, uuid, uuid, integer, timestamptz, text, numeric, text, numeric, text, jsonb, uuid),
  private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  public.update_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  private.note_sms_reply(uuid, text, timestamptz), private.write_agent_sms_reply(text, uuid, timestamptz),
  public.record_agent_sms_reply(text, uuid, timestamptz), private.answer_sms(), private.report_to_agent_sms()
  to service_role;
-- The scoped key: these and nothing else.
grant usage on schema public, private to sms_writer;
grant execute on function
  public.log_agent_sms(text, text, text, text, uuid, uuid, text, uuid, uuid, uuid, uuid, integer, timestamptz, text, numeric, text, numeric, text, jsonb, uuid),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb),
  public.update_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  public.record_agent_sms_reply(text, uuid, timestamptz), private.write_agent_sms_reply(text, uuid, timestamptz)
  to sms_writer;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013130'::text $$;

notify pgrst, 'reload schema';
