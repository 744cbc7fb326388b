-- 20261121012630_channels_used.sql
-- active_channels counts an SMS that waits for WhatsApp when it is sent, not when it begins to wait; and what is sent later (a retry, the
-- other channel in its place) counts as well.
-- Safe to run again. Locks no table. Undo: apply public.finish_call_notification of 20261121011500 and public.record_delivery_results of
-- 20261121012015 again.

create or replace function public.finish_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_id uuid := private.required(p, 'notification_id')::uuid;
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := coalesce(p ->> 'correlation_id', '');
  v_outcome text := private.required(p, 'outcome');
  v_deliveries jsonb := coalesce(nullif(p -> 'deliveries', 'null'), '[]');
  v_message jsonb := nullif(p -> 'message', 'null');
  v_summary jsonb := nullif(p -> 'summary', 'null');
  v_claim public.call_notifications;
  v_stored jsonb;
  v_result jsonb;
begin
  if v_outcome not in ('done', 'released') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into v_claim from public.call_notifications where id = v_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'notification not found';
  end if;
  perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
  select * into strict v_claim from public.call_notifications where id = v_id for no key update;
  if v_token <> v_claim.lease_token and v_token is distinct from v_claim.previous_lease_token then
    raise exception using errcode = 'PT409', message = 'claim_not_held';
  end if;
  if v_token = v_claim.lease_token and v_claim.result is not null then
    return v_claim.result;
  end if;

  if v_outcome = 'released' and v_deliveries = '[]' then
    if v_token = v_claim.lease_token and v_claim.status = 'open' then
      v_result := jsonb_build_object('status', 'released', 'session', private.session_json(v_claim.session_id, false),
        'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
      update public.call_notifications
         set status = 'released', next_attempt_at = coalesce((p ->> 'next_attempt_at')::timestamptz, v_now), lease_until = v_now, result = v_result
       where id = v_id;
      perform private.note_provider_calls(p -> 'providers', v_token, v_now);
      perform private.release_probes(v_token);
      return v_result;
    end if;
    -- A former holder gives back what another has by now.
    return jsonb_build_object('status', v_claim.status, 'session', private.session_json(v_claim.session_id, false),
      'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
  end if;

  if v_summary is not null then
    insert into public.call_summaries (client_id, call_id, language, headline, points, next_step, intent, source, model, usage)
    values (v_claim.client_id, v_claim.call_id, v_summary ->> 'language', coalesce(v_summary ->> 'headline', ''),
            coalesce(nullif(v_summary -> 'points', 'null'), '[]'), v_summary ->> 'next_step', v_summary ->> 'intent',
            coalesce(v_summary ->> 'source', 'model'), v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'))
    on conflict (call_id) do update
      set language = excluded.language, headline = excluded.headline, points = excluded.points, next_step = excluded.next_step,
          intent = excluded.intent, source = excluded.source, model = excluded.model, usage = excluded.usage
      where call_summaries.source = 'facts' and excluded.source = 'model';
  end if;

  if v_message is not null and v_claim.message_id is null then
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, renditions, routing,
       source, model, usage, agent_id, correlation_id, occurred_at, handled_at)
    select v_claim.client_id, t.id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, 'outbound', 'assistant',
           coalesce(v_deliveries -> 0 ->> 'channel', 'sms'), 'call_summary', coalesce(v_message ->> 'content', ''), v_message ->> 'language',
           nullif(v_message -> 'renditions', 'null'), nullif(v_message -> 'routing', 'null'), coalesce(v_summary ->> 'source', 'database'),
           v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'),
           (select c.agent_id from public.voice_calls c where c.id = v_claim.call_id), v_claim.correlation_id, v_now, v_now
      from public.conversation_threads t where t.session_id = v_claim.session_id
    returning id into v_claim.message_id;
  end if;

  v_stored := private.store_deliveries(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.message_id,
    v_deliveries, v_token, coalesce(nullif(v_correlation, ''), v_claim.correlation_id), 'call:' || v_claim.call_id,
    v_claim.possible_duplicate, v_claim.unknown_wait_seconds, v_now);
  perform private.touch_session(v_claim.session_id, 'follow_up',
    -- What waits for WhatsApp may never be sent.
    array(select distinct d ->> 'channel' from jsonb_array_elements(v_deliveries) d
           where d -> 'attempt' ->> 'outcome' <> 'suppressed' and d ->> 'waits_until' is null),
    v_now, v_summary ->> 'intent');
  v_result := jsonb_build_object('status', 'done',
    'session', private.session_json(v_claim.session_id, false), 'deliveries', v_stored -> 'deliveries', 'fallbacks', v_stored -> 'fallbacks');
  update public.call_notifications
     set status = 'done', finished_at = coalesce(finished_at, v_now), message_id = v_claim.message_id, next_attempt_at = null,
         result = case when v_token = lease_token then v_result else result end
   where id = v_id;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.after_attempts(v_stored -> 'noted', v_token, v_now);
  return v_result;
end
$$;

create or replace function public.record_delivery_results(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_results jsonb := coalesce(nullif(p -> 'results', 'null'), '[]');
  v_result record;
  v_row public.message_delivery_log;
  v_status text;
  v_noted jsonb := '[]';
  v_stored jsonb := '[]';
  v_fallbacks jsonb := '[]';
  v_fallback jsonb;
begin
  -- Conversations in which a channel is used for the first time. They are locked before any delivery, as everywhere.
  perform 1 from (
    select s.id from public.omnichannel_sessions s
     where s.status in ('active', 'follow_up') and s.id in (
             select l.session_id from jsonb_array_elements(v_results) r join public.message_delivery_log l on l.id = (r ->> 'id')::uuid
              where r -> 'attempt' ->> 'outcome' = 'accepted' and l.session_id is not null)
       and exists (
             select from jsonb_array_elements(v_results) r join public.message_delivery_log l on l.id = (r ->> 'id')::uuid
              where r -> 'attempt' ->> 'outcome' = 'accepted' and l.session_id = s.id and l.channel <> all (s.active_channels))
     order by s.id for no key update) locked;
  perform private.lock_refs(array(
    select l.provider || ':' || k
      from jsonb_array_elements(v_results) r
      join public.message_delivery_log l on l.id = (r ->> 'id')::uuid,
      unnest(private.provider_message_keys(r -> 'attempt' ->> 'provider_message_id')) k
    union all
    select lower(r ->> 'id') from jsonb_array_elements(v_results) r));
  for v_result in select (r ->> 'id')::uuid as id, r -> 'attempt' as attempt from jsonb_array_elements(v_results) r order by 1 loop
    select * into v_row from public.message_delivery_log where id = v_result.id for no key update;
    if not found then
      continue;
    end if;
    if private.apply_attempt(v_row.id, v_result.attempt, v_token, coalesce(v_row.correlation_id, p ->> 'correlation_id'), v_now, false) then
      v_noted := v_noted || jsonb_build_object('id', v_row.id, 'provider', v_row.provider, 'outcome', v_result.attempt ->> 'outcome',
        'counts', coalesce((v_result.attempt ->> 'breaker')::boolean, true), 'error_code', v_result.attempt ->> 'error_code');
    end if;
    perform private.join_orphans(v_row.id);
    v_status := private.refold_delivery(v_row.id);
    v_stored := v_stored || jsonb_build_object('id', v_row.id, 'channel', v_row.channel, 'status', v_status);
  end loop;
  for v_result in select (s ->> 'id')::uuid as id from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable', 'expired') loop
    v_fallback := private.create_fallback(v_result.id, v_now);
    if v_fallback is not null then
      v_fallbacks := v_fallbacks || v_fallback;
    end if;
  end loop;
  for v_result in select (s ->> 'id')::uuid as id from jsonb_array_elements(v_stored) s
                   where s ->> 'channel' = 'whatsapp' or s ->> 'status' = 'undeliverable' loop
    perform private.apply_evidence(v_result.id);
  end loop;
  update public.omnichannel_sessions s
     set active_channels = s.active_channels || x.channels
    from (select l.session_id, array_agg(distinct l.channel order by l.channel) as channels
            from jsonb_array_elements(v_noted) n join public.message_delivery_log l on l.id = (n ->> 'id')::uuid
            join public.omnichannel_sessions o on o.id = l.session_id
           where n ->> 'outcome' = 'accepted' and l.channel <> all (o.active_channels) group by 1) x
   where s.id = x.session_id and s.status in ('active', 'follow_up');
  perform private.after_attempts(v_noted, v_token, v_now);
  return jsonb_build_object('deliveries', v_stored, 'fallbacks', v_fallbacks);
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012630'::text $$;

notify pgrst, 'reload schema';
