-- 20261121019500_tables_taken_over.sql
-- Tables of before that were taken over demand nothing that ours may leave out, have what ours demand, and let two providers use one id.
-- Calls from withheld numbers are priced.
-- Safe to run again. Locks agent_sms, agent_calls and prospects for a moment, and agent_sms longer where it had messages without a time or a status
-- (their sums are counted again). Undo: apply private.count_sms of 20261121013150 and private.prefixes_of of 20261121013010.

do $$
declare
  v_column record;
begin
  -- Ours become null when they are erased or not known; those of others that have no default are not written at all.
  for v_column in
    select a.attrelid::regclass as table_name, a.attname
      from (values
        ('public.agent_sms'::regclass, true, '{call_id,prospect_id,sequence_id,session_id,delivery_id,phone_number,message_content,encoding,segments,
           provider_status,provider_message_sid,delivered_at,failed_at,replied_at,failure_reason,unit_cost,cost,cost_currency,cost_source,unit_revenue,
           revenue,revenue_currency,revenue_source,fx_rate,fx_date}'::name[],
         '{id,client_id,deployment_id,status,provider,sent_at,metadata,created_at,updated_at}'::name[]),
        ('public.agent_calls', true, '{voice_call_id,session_id,prospect_id,sequence_id,phone_number,answered_at,ended_at,duration_seconds,cost,cost_currency,
           revenue,revenue_currency,fx_rate,fx_date}',
         '{id,client_id,deployment_id,direction,status,started_at,metadata,created_at,updated_at}'),
        ('public.prospects', false, '{profile_id,phone_number,full_name}', '{}')
      ) t (id, written, nullable, demanded)
      join pg_catalog.pg_attribute a on a.attrelid = t.id and a.attnum > 0 and not a.attisdropped and a.attnotnull and a.attidentity = ''
     where (a.attname = any (t.nullable) or t.written and not a.atthasdef and a.attname <> all (t.demanded))
       and not exists (select from pg_catalog.pg_index i where i.indrelid = t.id and i.indisprimary and a.attnum = any (i.indkey))
  loop
    execute format('alter table %s alter column %I drop not null', v_column.table_name, v_column.attname);
  end loop;
end
$$;

do $$
declare
  v_rule record;
  v_rules text[] := '{}';
begin
  -- Rows of before may break rules that hold from now on (not valid): filling in what is missing must not stop at these.
  for v_rule in
    select c.conrelid::regclass as table_name, c.conname, pg_catalog.pg_get_constraintdef(c.oid) as rule
      from pg_catalog.pg_constraint c
     where c.conrelid in ('public.agent_sms'::regclass, 'public.agent_calls'::regclass) and c.contype = 'c' and not c.convalidated
  loop
    execute format('alter table %s drop constraint %I', v_rule.table_name, v_rule.conname);
    v_rules := v_rules || format('alter table %s add constraint %I %s', v_rule.table_name, v_rule.conname, v_rule.rule);
  end loop;
  -- The triggers have no sums for a message without a time: they are kept out, and the sums counted again.
  if exists (select from public.agent_sms where sent_at is null or status is null) then
    alter table public.agent_sms disable trigger user;
    update public.agent_sms
       set sent_at = coalesce(sent_at, created_at, now()), status = coalesce(status, private.simple_sms_status(provider_status), 'pending')
     where sent_at is null or status is null;
    alter table public.agent_sms enable trigger user;
    perform private.rebuild_sms_rollups();
  end if;
  update public.agent_sms
     set metadata = coalesce(metadata, '{}'), created_at = coalesce(created_at, sent_at), updated_at = coalesce(updated_at, created_at, sent_at),
         provider = coalesce(provider, 'twilio')
   where metadata is null or created_at is null or updated_at is null or provider is null;
  update public.agent_calls
     set started_at = coalesce(started_at, answered_at, created_at, now()), status = coalesce(status, 'completed'),
         direction = coalesce(direction, 'inbound'), metadata = coalesce(metadata, '{}'), created_at = coalesce(created_at, started_at, now()),
         updated_at = coalesce(updated_at, created_at, now())
   where started_at is null or status is null or direction is null or metadata is null or created_at is null or updated_at is null;
  foreach v_rule.rule in array v_rules loop
    execute v_rule.rule;
  end loop;
end
$$;
alter table public.agent_sms
  alter column status set default 'pending', alter column status set not null,
  alter column provider set default 'twilio', alter column provider set not null,
  alter column sent_at set default now(), alter column sent_at set not null,
  alter column metadata set default '{}', alter column metadata set not null,
  alter column created_at set default now(), alter column created_at set not null,
  alter column updated_at set default now(), alter column updated_at set not null;
alter table public.agent_calls
  alter column status set default 'completed', alter column status set not null,
  alter column direction set default 'inbound', alter column direction set not null,
  alter column started_at set default now(), alter column started_at set not null,
  alter column metadata set default '{}', alter column metadata set not null,
  alter column created_at set default now(), alter column created_at set not null,
  alter column updated_at set default now(), alter column updated_at set not null;

do $$
declare
  v_index record;
begin
  -- An id is unique to its provider: agent_sms_provider_message_once.
  for v_index in
    select i.indexrelid::regclass as name, c.conname
      from pg_catalog.pg_index i
      join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = 'provider_message_sid'
      left join pg_catalog.pg_constraint c on c.conindid = i.indexrelid and c.contype = 'u'
     where i.indrelid = 'public.agent_sms'::regclass and i.indisunique and i.indnkeyatts = 1
  loop
    if v_index.conname is not null then
      execute format('alter table public.agent_sms drop constraint %I', v_index.conname);
    else
      execute format('drop index %s', v_index.name);
    end if;
  end loop;
end
$$;

create or replace function private.count_sms(p_log public.message_delivery_log) returns void
language plpgsql set search_path = '' as $$
declare
  v_phone text := private.e164_of(p_log.recipient);
  v_simple text := private.simple_sms_status(p_log.status);
  v_sid text := p_log.provider_message_id;
  v_other record;
begin
  -- A delivery that was put back.
  if exists (select from public.agent_sms s where s.delivery_id = p_log.id) then
    return;
  end if;
  loop
    -- Where somebody else has written the same message already, the row becomes ours.
    select s.id, s.client_id, s.delivery_id into v_other
      from public.agent_sms s where s.provider_message_sid = p_log.provider_message_id and s.provider = p_log.provider;
    if v_other.client_id = p_log.client_id and v_other.delivery_id is null then
      update public.agent_sms set delivery_id = p_log.id where id = v_other.id;
      perform private.follow_delivery(p_log);
      return;
    elsif v_other.id is not null then
      v_sid := null;
    end if;
    insert into public.agent_sms
      (client_id, deployment_id, call_id, prospect_id, session_id, delivery_id, phone_number, message_content, encoding, segments, status, provider,
       provider_status, provider_message_sid, sent_at, delivered_at, failed_at, failure_reason, cost, cost_currency, cost_source)
    select
      p_log.client_id,
      private.own_deployment(p_log.client_id, 'sms', coalesce(p_log.sender, c.sms_sender_id),
        (select o.last_agent_id from public.omnichannel_sessions o where o.id = p_log.session_id)),
      (select a.id from public.agent_calls a where a.voice_call_id = p_log.call_id),
      (select r.id from public.prospects r where r.client_id = p_log.client_id and r.phone_number = v_phone),
      p_log.session_id, p_log.id, v_phone, p_log.content, p_log.encoding, p_log.segments, v_simple,
      -- The carrier that would take it, where none has been asked yet.
      coalesce(p_log.provider, c.settings ->> 'sms_provider', 'mtn'),
      p_log.status, v_sid, coalesce(p_log.sent_at, p_log.created_at),
      case when v_simple = 'delivered' then coalesce(p_log.delivered_at, p_log.read_at, p_log.status_at) end,
      case when v_simple = 'failed' then coalesce(p_log.failed_at, p_log.expired_at, p_log.status_at) end,
      case when v_simple = 'failed' then p_log.error_code end,
      p_log.cost, p_log.cost_currency, case when p_log.cost is not null then 'provider' end
      from public.clients c where c.id = p_log.client_id
    on conflict (provider_message_sid, provider) where provider_message_sid is not null do nothing;
    -- Somebody wrote it in between, under the id that their row has now.
    exit when found or v_sid is null;
  end loop;
end
$$;

create or replace function private.prefixes_of(p_number text) returns text[]
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return array(select left(coalesce(p_number, ''), n) from generate_series(0, coalesce(length(p_number), 0)) n);
end
$$;
comment on function private.prefixes_of is 'All beginnings of a number, the empty one first; of a withheld number (null) that one alone.';
do $$
begin
  perform private.count_voice_call(v)
    from public.voice_calls v join public.agent_calls c on c.voice_call_id = v.id
   where v.direction = 'inbound' and v.from_number is null and v.ended_at is not null and v.erased_at is null and c.revenue is null;
end
$$;

revoke execute on function private.count_sms(public.message_delivery_log), private.prefixes_of(text) from public, anon, authenticated;
grant execute on function private.count_sms(public.message_delivery_log), private.prefixes_of(text) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019500'::text $$;

notify pgrst, 'reload schema';
