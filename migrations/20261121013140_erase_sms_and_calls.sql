-- 20261121013140_erase_sms_and_calls.sql
-- Forgetting a person reaches what clients count: the texts, numbers and names in agent_sms, agent_calls and prospects go, the money stays.
-- Safe to run again. Locks no table. Undo: apply private.erase_person of 20261121012510 and drop the function added here.

create or replace function private.erase_sms_and_calls(p_profile_id uuid, p_numbers text[], p_calls uuid[], p_deliveries uuid[]) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_prospects uuid[] := array(
    select r.id from public.prospects r where r.profile_id = p_profile_id
    union
    select r.id from public.clients c join public.prospects r on r.client_id = c.id and r.phone_number = any (p_numbers));
  v_sms uuid[] := array(
    select s.id from public.clients c join public.agent_sms s on s.client_id = c.id and s.phone_number = any (p_numbers)
    union
    select s.id from public.agent_sms s where s.delivery_id = any (p_deliveries)
    union
    select s.id from public.agent_sms s where s.prospect_id = any (v_prospects));
  v_agent_calls uuid[] := array(
    select a.id from public.clients c join public.agent_calls a on a.client_id = c.id and a.phone_number = any (p_numbers)
    union
    select a.id from public.agent_calls a where a.voice_call_id = any (p_calls)
    union
    select a.id from public.agent_calls a where a.prospect_id = any (v_prospects));
begin
  perform from public.agent_sms s where s.id = any (v_sms) order by s.delivery_id, s.id for no key update;
  delete from public.agent_sms_reports r using public.agent_sms s
   where s.id = any (v_sms) and r.provider_message_sid = s.provider_message_sid and r.provider = s.provider;
  delete from public.message_status_events e using public.agent_sms s
   where s.id = any (v_sms) and s.provider_message_sid is not null and e.delivery_id is null and e.provider = s.provider
     and e.provider_message_id is not null and e.provider_message_key = private.provider_message_key(s.provider_message_sid);
  update public.agent_sms s
     set phone_number = null, message_content = null, provider_message_sid = null, session_id = null, metadata = '{}',
         -- Somebody else's words may name the person; a code of ours does not.
         failure_reason = case when s.delivery_id is not null then s.failure_reason end
   where s.id = any (v_sms);
  update public.agent_calls a set phone_number = null, session_id = null, metadata = '{}' where a.id = any (v_agent_calls);
  update public.prospects r set phone_number = null, full_name = null, profile_id = null, metadata = '{}' where r.id = any (v_prospects);
  return jsonb_build_object('agent_sms', cardinality(v_sms), 'agent_calls', cardinality(v_agent_calls), 'prospects', cardinality(v_prospects));
end
$$;
comment on function private.erase_sms_and_calls is
  'Part of private.erase_person: texts, numbers and names go, amounts, segments and times stay. How many rows of each table.';

create or replace function private.erase_person(p_profile_id uuid, p_reason text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_numbers text[];
  v_sessions uuid[];
  v_calls uuid[];
  v_turns uuid[];
  v_notes uuid[];
  v_deliveries uuid[];
  -- A payload with one of these in it is theirs: numbers, ids that we made, and, in quotes, ids that others chose.
  v_digits text[];
  v_words text[];
  v_names text[];
  v_client uuid;
  v_count integer;
  v_list text;
  v_counts jsonb := '{}';
begin
  if p_reason is null or p_reason !~ '^[a-z][a-z_]{2,59}$' then
    raise exception using errcode = 'PT400', message = 'reason must be a code, such as asked_by_person';
  end if;
  if not exists (select from public.profiles where id = p_profile_id) then
    raise exception using errcode = 'PT404', message = 'person not found';
  end if;
  for v_client in select distinct s.client_id from public.omnichannel_sessions s where s.profile_id = p_profile_id order by 1 loop
    perform private.lock_person(v_client, p_profile_id);
  end loop;
  perform from public.omnichannel_sessions where profile_id = p_profile_id order by id for update;

  select array_agg(distinct n) into v_numbers
    from (
      select p.phone_number as n from public.profiles p where p.id = p_profile_id
      union all
      select split_part(p.whatsapp_jid, '@', 1) from public.profiles p where p.id = p_profile_id
      union all
      select i.value from public.profile_identities i where i.profile_id = p_profile_id
      union all
      select c.phone_number from public.call_notifications c where c.profile_id = p_profile_id
      union all
      select case l.direction when 'inbound' then l.sender else l.recipient end from public.message_delivery_log l where l.profile_id = p_profile_id
    ) known where length(n) >= 7;
  -- +250..., and the same digits as carriers and WhatsApp write them.
  v_numbers := array(select distinct x from unnest(v_numbers) n, lateral (values (n), (ltrim(n, '+')), ('+' || ltrim(n, '+'))) v (x));
  v_sessions := array(select s.id from public.omnichannel_sessions s where s.profile_id = p_profile_id);
  v_calls := array(
    select c.id from public.voice_calls c
     where c.profile_id = p_profile_id or private.e164_of(c.from_number) = any (v_numbers) or private.e164_of(c.to_number) = any (v_numbers));
  v_turns := array(select t.id from public.conversation_turns t where t.profile_id = p_profile_id);
  v_notes := array(select n.id from public.call_notifications n where n.profile_id = p_profile_id or n.call_id = any (v_calls));
  v_deliveries := array(
    select l.id from public.message_delivery_log l
     where l.profile_id = p_profile_id or l.session_id = any (v_sessions) or l.call_id = any (v_calls)
        or l.recipient = any (v_numbers) or l.sender = any (v_numbers)
     order by l.id);
  perform from public.message_delivery_log where id = any (v_deliveries) order by id for no key update;
  -- What is on its way would be recorded after we have forgotten it.
  if exists (select from public.conversation_turns t where t.id = any (v_turns) and t.status = 'open' and t.lease_until > v_now)
     or exists (select from public.call_notifications n where n.id = any (v_notes) and n.status = 'open' and n.lease_until > v_now)
     or exists (select from public.message_delivery_log l where l.id = any (v_deliveries) and l.lease_until > v_now)
     -- A call that runs still tells; one whose end nobody told of is over after three hours.
     or exists (select from public.voice_calls c
                 where c.id = any (v_calls) and c.ended_at is null and c.correlation_id is not null and c.started_at > v_now - interval '3 hours') then
    raise exception using errcode = 'PT409', message = 'person_is_being_answered', hint = 'Try again in two minutes.';
  end if;
  v_digits := array(select distinct ltrim(n, '+') from unnest(v_numbers) n where n ~ '^[+]?[0-9]+$');
  v_names := array(
    select c.provider_call_id from public.voice_calls c where c.id = any (v_calls) and c.provider_call_id is not null
    union
    select c.mtn_call_sid from public.voice_calls c where c.id = any (v_calls) and c.mtn_call_sid is not null
    union
    select l.correlation_id from public.message_delivery_log l where l.id = any (v_deliveries) and l.correlation_id is not null
    union
    select r.correlation_id from public.notification_requests r where r.call_id = any (v_calls)
    union
    select c.correlation_id from public.voice_calls c where c.id = any (v_calls) and c.correlation_id is not null);
  v_words := array(select n from unnest(v_numbers) n where n !~ '^[+]?[0-9]+$')
    || array(select to_jsonb(n)::text from unnest(v_names) n)
    || array(select i::text from unnest(v_sessions || v_calls || v_turns || v_notes || v_deliveries || p_profile_id) i)
    || array(select t.sms_delivery_id::text from public.conversation_turns t where t.id = any (v_turns))
    || array(select t.whatsapp_delivery_id::text from public.conversation_turns t where t.id = any (v_turns))
    || array(select n.sms_delivery_id::text from public.call_notifications n where n.id = any (v_notes))
    || array(select n.whatsapp_delivery_id::text from public.call_notifications n where n.id = any (v_notes))
    || array(select s.id::text from public.call_summaries s where s.call_id = any (v_calls));

  -- Envelopes. Reports of several people travel together, and so do calls: only this person's are taken out.
  foreach v_list in array array['events', 'calls'] loop
    update public.jobs j
       set payload = jsonb_set(j.payload, array['body', v_list], (
             select coalesce(jsonb_agg(e), '[]') from jsonb_array_elements(j.payload #> array['body', v_list]) e where not private.mentions(e::text, v_words, v_digits)))
     where jsonb_typeof(j.payload #> array['body', v_list]) = 'array' and private.mentions(j.payload::text, v_words, v_digits);
    update public.dead_letters d
       set payload = jsonb_set(d.payload, array['body', v_list], (
             select coalesce(jsonb_agg(e), '[]') from jsonb_array_elements(d.payload #> array['body', v_list]) e where not private.mentions(e::text, v_words, v_digits)))
     where jsonb_typeof(d.payload #> array['body', v_list]) = 'array' and private.mentions(d.payload::text, v_words, v_digits);
  end loop;
  delete from public.jobs j
   where j.correlation_id = any (v_names) or private.mentions(concat_ws(' ', j.payload::text, j.correlation_id), v_words, v_digits)
      or '[]' in (j.payload #> '{body,events}', j.payload #> '{body,calls}');
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('jobs', v_count);
  delete from public.dead_letters d
   where d.correlation_id = any (v_names)
      or private.mentions(concat_ws(' ', d.payload::text, d.message_id, d.correlation_id), v_words, v_digits)
      or '[]' in (d.payload #> '{body,events}', d.payload #> '{body,calls}');
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('dead_letters', v_count);
  update public.alerts a set details = '{}' where private.mentions(a.details::text, v_words, v_digits);
  delete from public.rate_limits r where private.mentions(r.bucket, v_words, v_digits);

  -- What was said in calls. The calls themselves stay as figures.
  delete from public.transcripts t where t.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('transcripts', v_count);
  delete from public.voice_events e where e.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('voice_events', v_count);
  delete from public.call_consents s where s.call_id = any (v_calls) or s.profile_id = p_profile_id;
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('call_consents', v_count);
  delete from public.wa_threads w where w.profile_id = p_profile_id or w.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('wa_threads', v_count);
  delete from public.voice_memories m where m.profile_id = p_profile_id or m.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('voice_memories', v_count);
  update public.openai_sessions o set provider_session_id = null, locale = null where o.call_id = any (v_calls);
  delete from public.call_summaries s where s.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('call_summaries', v_count);
  delete from public.mcp_tool_calls m where m.call_id = any (v_calls) or m.session_id = any (v_sessions) or m.turn_id = any (v_turns);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('mcp_tool_calls', v_count);
  delete from public.notification_requests r
   where r.call_id = any (v_calls) or r.call_ref = any (v_names) or r.correlation_id = any (v_names)
      or private.mentions(concat_ws(' ', r.call_ref, r.correlation_id), v_words, v_digits);
  delete from public.call_notification_resends r where r.call_id = any (v_calls);
  delete from public.call_notifications n where n.id = any (v_notes);
  update public.voice_calls c
     set profile_id = null, from_number = null, to_number = null, provider_call_id = null, mtn_call_sid = null, metadata = '{}', end_reason = null,
         locale = null, correlation_id = null, session_id = null, erased_at = v_now, notified_at = coalesce(c.notified_at, v_now)
   where c.id = any (v_calls);
  v_counts := v_counts || jsonb_build_object('voice_calls', cardinality(v_calls));

  -- Messages: a WhatsApp id spells the number, so ids, events and attempts go with the text.
  delete from public.message_status_events e where e.delivery_id = any (v_deliveries) or e.delivery_ref = any (v_words);
  delete from public.message_delivery_attempts a where a.delivery_id = any (v_deliveries);
  update public.message_delivery_log l
     set recipient = null, sender = null, content = null, payload = null, provider_message_id = null, provider_request_id = null,
         correlation_id = null, idempotency_key = null, lease_token = null, lease_until = null, next_attempt_at = null, profile_id = null,
         status = case when l.status in ('queued', 'sending') then 'suppressed' else l.status end,
         suppress_reason = case when l.status in ('queued', 'sending') then 'erased' else l.suppress_reason end,
         erased_at = v_now
   where l.id = any (v_deliveries);
  v_counts := v_counts || jsonb_build_object('message_delivery_log', cardinality(v_deliveries));

  -- What clients count. Our own rows have lost their texts and numbers with the deliveries and calls; those of other writers have not.
  v_counts := v_counts || private.erase_sms_and_calls(p_profile_id, v_numbers, v_calls, v_deliveries);

  select count(*) into v_count from public.conversation_messages m where m.profile_id = p_profile_id;
  -- Identities, sessions, threads, turns and messages go with it.
  delete from public.profiles where id = p_profile_id;
  v_counts := v_counts || jsonb_build_object('conversation_messages', v_count, 'omnichannel_sessions', cardinality(v_sessions), 'profiles', 1);
  insert into public.erasures (profile_id, reason, counts, created_at) values (p_profile_id, p_reason, v_counts, v_now);
  return v_counts;
end
$$;
comment on function private.erase_person is
  'Erases a person and says how many rows of each table. Refused while somebody works for them. Security definer: events and attempts are append-only for the API roles.';

revoke execute on function private.erase_sms_and_calls(uuid, text[], uuid[], uuid[]) from public, anon, authenticated;
grant execute on function private.erase_sms_and_calls(uuid, text[], uuid[], uuid[]) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013140'::text $$;

notify pgrst, 'reload schema';
